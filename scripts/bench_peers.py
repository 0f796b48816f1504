"""Times the planners of vLLM, SGLang and TokenSpeed beside eplb's on the same loads, on one thread: bench_peers.py PROGRAM [DUMP].

PROGRAM is that of benches/peers. DUMP, one iteration of one rank, adds its loads. The planners take turns, and the time of each is the
median of its runs. Balancedness is mean / max of the ranks' loads with replicas that share evenly, averaged over samples and layers.
"""

import importlib
import json
import os
import statistics
import struct
import subprocess
import sys
import time

sys.path.pop(0)
sys.path.insert(0, "peers")
import numpy as np
import torch

from program import packages, stand_in

PROGRAM, DUMP = sys.argv[1], (sys.argv[2:] or [None])[0]
LAYERS, EXPERTS, ROUNDS = 58, 256, 9

packages("vllm", "vllm.distributed", "vllm.distributed.eplb", "vllm.distributed.eplb.policy")
packages("sglang", "sglang.srt", "sglang.srt.eplb", "sglang.srt.eplb.eplb_algorithms")
stand_in("vllm.logger", "sglang.srt.utils")
vllm = importlib.import_module("vllm.distributed.eplb.policy.default").DefaultEplbPolicy.rebalance_experts
sglang = importlib.import_module("sglang.srt.eplb.eplb_algorithms.deepseek").rebalance_experts


def dump_loads(path):
    """The counts of one iteration, [layers][experts]."""
    with open(f"{path}/rank0.safetensors", "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    tensors = {int(name.split("_")[1]): entry for name, entry in header.items() if name != "__metadata__"}
    types = {"I64": np.int64, "I32": np.int32}
    return np.stack([np.frombuffer(data[slice(*tensors[layer]["data_offsets"])], types[tensors[layer]["dtype"]])
                     for layer in sorted(tensors)]).astype(float)


def zipf(exponent):
    """[layers][experts], in another order in each layer."""
    random = np.random.default_rng(0)
    loads = np.round(1e6 / np.arange(1, EXPERTS + 1) ** exponent)
    return np.stack([random.permutation(loads) for _ in range(LAYERS)])


def windows(loads, num_samples):
    """Samples with a popularity of their own: 60,000 choices of loads times Gamma(8, 1/8). [layers][samples][experts]"""
    random = np.random.default_rng(5)

    def draw(layer):
        shares = layer * random.gamma(8, 1 / 8, len(layer))
        return random.multinomial(60000, shares / shares.sum())

    return np.stack([np.stack([draw(layer) for _ in range(num_samples)]) for layer in loads]).astype(float)


def balancedness(placement, loads, num_ranks):
    balance = []
    for experts, samples in zip(placement, loads):
        replicas = np.bincount(experts, minlength=samples.shape[1])
        assert replicas.all()
        ranks = (samples / replicas)[:, experts].reshape(len(samples), num_ranks, -1).sum(axis=2)
        balance.append((ranks.mean(axis=1) / ranks.max(axis=1)).mean())
    return np.mean(balance)


def timed(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def of_program(planner, loads, num_slots, num_ranks):
    """Seconds and placement of a planner of the program, which plans once before it is timed."""
    args = [PROGRAM, planner, *loads.shape, num_slots, num_ranks, 3]
    run = subprocess.run([*map(str, args)], input=loads.astype("<f8").tobytes(), capture_output=True, check=True)
    lines = run.stdout.decode().splitlines()
    return statistics.median(map(float, lines[:3])), np.array([list(map(int, line.split())) for line in lines[3:]])


def compare(name, loads, num_slots, num_ranks):
    total = torch.from_numpy(loads.sum(axis=1))
    planners = {
        "vLLM": lambda: timed(lambda: vllm(total, num_slots, 1, 1, num_ranks)),
        "SGLang": lambda: timed(lambda: sglang(total, num_slots, 1, 1, num_ranks, False)[0]),
        "TokenSpeed": lambda: of_program("tokenspeed", loads, num_slots, num_ranks),
        "eplb `deepseek-global`": lambda: of_program("deepseek-global", loads, num_slots, num_ranks),
        "eplb `search`": lambda: of_program("search", loads, num_slots, num_ranks),
    }
    times = {planner: [] for planner in planners}
    balance = {}
    for _ in range(ROUNDS):
        for planner, run in planners.items():
            seconds, placement = run()
            times[planner].append(seconds)
            balance[planner] = balancedness(np.asarray(placement), loads, num_ranks)
    for planner in planners:
        print(f"| {name} | {num_slots} / {num_ranks} | {planner} | {1e3 * statistics.median(times[planner]):.1f} ms "
              f"| {balance[planner]:.4f} |", flush=True)


torch.set_num_threads(1)
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
print(f"{LAYERS} layers x {EXPERTS} experts, one thread, medians of {ROUNDS}\n")
print("| loads | slots / ranks | planner | time | balancedness |\n|---|---|---|---|---|")
cases = [("zipf 0.6", zipf(0.6)), ("zipf 1.0", zipf(1.0))]
if DUMP:
    cases.append((os.path.basename(DUMP), dump_loads(DUMP)))
for name, loads in cases:
    for num_ranks in (32, 72):
        compare(name, loads[:, None, :], 288, num_ranks)
name, loads = cases[-1]
for num_ranks in (32, 72):
    compare(f"{name}, 16 samples", windows(loads, 16), 288, num_ranks)
