"""Times numpy.bincount on the batches that cpp_tests/bench/host_bench.cpp wrote to a folder: bench_numpy.py FOLDER."""

import pathlib
import sys
import timeit

import numpy

print("| ids | batch | numpy.bincount, million ids/s |\n|---|---|---|")
for path in sorted(pathlib.Path(sys.argv[1]).glob("int*-*"), key=lambda path: int(path.name.split("-")[1])):
    name, size = path.name.split("-")
    ids = numpy.fromfile(path, dtype=name)
    calls = max(1, 4_000_000 // len(ids))
    runs = sorted(timeit.repeat(lambda: numpy.bincount(ids, minlength=256), number=calls, repeat=31))
    print(f"| {name} | {size} | {len(ids) * calls / runs[15] / 1e6:.0f} |")
