"""Times the reading of a dump in plain Python, for docs/benchmarks.md: bench_reader.py DUMP.

Loads every file and sums over ranks and iterations, as TensorRT-LLM's script does, with numpy in place of torch.
"""

import pathlib
import sys
import time

from safetensors.numpy import load_file


def total(dump):
    layers = {}
    for path in sorted(dump.glob("rank*.safetensors")):
        for name, counts in load_file(path).items():
            layer = name.split("_")[1]
            if layer in layers:
                layers[layer] += counts
            else:
                layers[layer] = counts.copy()
    return layers


best = float("inf")
for _ in range(3):
    start = time.perf_counter()
    layers = total(pathlib.Path(sys.argv[1]))
    best = min(best, time.perf_counter() - start)
print(f"plain Python: {len(layers)} layers in {best * 1e3:.0f} ms, best of three")
