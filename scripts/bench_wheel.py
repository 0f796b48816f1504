"""Times the Python package: above the C call, and beside the functions of vLLM and SGLang, in one run: bench_wheel.py [DUMP].

58 layers x 256 experts, 288 slots on 32 ranks. The functions take turns of five runs, and the time of each is the shortest, on one
thread: CPU time, which other work on the machine disturbs least. The first table is from NumPy to NumPy, the second from tensor to
tensor. There eplb is also as it is by default, on all cores, by the clock on the wall. DUMP, one iteration of one rank, adds its
loads. Without the packages of scripts/peers_packages.sh on the PYTHONPATH only the first table is printed.
"""

import functools
import importlib
import os
import pathlib
import sys
import time
import types
from unittest.mock import MagicMock

import eplb
import numpy
from eplb import _drop_in
from eplb._library import Struct, address, ffi, lib

LAYERS, EXPERTS, SLOTS, RANKS, TURN, ROUNDS, PEER_ROUNDS = 58, 256, 288, 32, 5, 20, 5

ALL_CORES = f", {os.cpu_count()} cores"


def zipf(exponent):
    """[layers][experts], in another order in each layer."""
    random = numpy.random.default_rng(0)
    loads = numpy.round(1e6 / numpy.arange(1, EXPERTS + 1) ** exponent)
    return numpy.stack([random.permutation(loads) for _ in range(LAYERS)])


def shortest(calls, rounds):
    """Milliseconds of each call, which take turns. Those whose name has ALL_CORES are timed by the clock on the wall."""
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            clock = time.perf_counter if ALL_CORES in name else time.process_time
            for _ in range(TURN):
                start = clock()
                call()
                times[name].append(clock() - start)
    return {name: 1e3 * min(values) for name, values in times.items()}


def c_calls(loads):
    """The C functions, with arguments and results made beforehand."""
    config = _drop_in.placement_config(EXPERTS, RANKS, SLOTS, 0, None)
    layers, width = numpy.arange(LAYERS, dtype=numpy.int32), SLOTS - EXPERTS + 1
    results = [
        numpy.zeros(shape, numpy.int32)
        for shape in ((LAYERS, SLOTS), (LAYERS, EXPERTS, width), (LAYERS, EXPERTS))
    ]
    pointers = [address(array) for array in results]
    deepseek = Struct("eplb_solve_options", num_threads=1, num_groups=1, num_nodes=1)
    search = Struct("eplb_solve_options", num_threads=1, policy=lib.EPLB_POLICY_SEARCH)
    numbers, values, kept = address(layers), address(loads), (layers, results)

    def rebalance():
        assert kept and not lib.eplb_deepseek_rebalance(
            config.pointer, deepseek.pointer, values, LAYERS, width, *pointers
        )

    def solve():
        placement = ffi.new("eplb_placement **")
        assert not lib.eplb_solve(
            config.pointer, search.pointer, numbers, LAYERS, values, 1, placement
        )
        lib.eplb_placement_destroy(placement[0])

    return rebalance, solve


def packages(*names):
    """Makes packages importable without their __init__.py, which would import a whole engine."""
    for name in names:
        module = types.ModuleType(name)
        paths = os.environ["PYTHONPATH"].split(os.pathsep)
        module.__path__ = [
            str(pathlib.Path(path, name.replace(".", "/"))) for path in paths
        ]
        sys.modules[name] = module


def peers():
    """vLLM's and SGLang's functions and their tensors; none if they are not there."""
    if not any(
        pathlib.Path(path, "vllm").is_dir()
        for path in os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if path
    ):
        return None
    import torch

    torch.set_num_threads(1)
    packages(
        "vllm",
        "vllm.distributed",
        "vllm.distributed.eplb",
        "vllm.distributed.eplb.policy",
    )
    packages(
        "sglang", "sglang.srt", "sglang.srt.eplb", "sglang.srt.eplb.eplb_algorithms"
    )
    for name in ("vllm.logger", "sglang.srt.utils"):
        sys.modules[name] = MagicMock(name=name)
    vllm = importlib.import_module(
        "vllm.distributed.eplb.policy.default"
    ).DefaultEplbPolicy.rebalance_experts
    sglang = importlib.import_module(
        "sglang.srt.eplb.eplb_algorithms.deepseek"
    ).rebalance_experts
    return (
        torch.from_numpy,
        lambda weight: vllm(weight, SLOTS, 1, 1, RANKS),
        lambda weight: sglang(weight, SLOTS, 1, 1, RANKS, False),
    )


def main():
    found = peers()
    cases = [("zipf 0.6", zipf(0.6)), ("zipf 1.0", zipf(1.0))]
    for dump in sys.argv[1:]:
        cases.append(
            (
                os.path.basename(dump),
                numpy.ascontiguousarray(eplb.Stats.load(dump).loads(1)[:, 0]),
            )
        )

    print(
        f"{LAYERS} x {EXPERTS} -> {SLOTS} / {RANKS}, one thread, shortest of {ROUNDS * TURN}, milliseconds\n"
    )
    print("| loads | function | C | NumPy to NumPy | above |\n|---|---|---|---|---|")
    for name, loads in cases:
        rebalance, solve = c_calls(loads)
        times = shortest(
            {
                "c": rebalance,
                "python": lambda: eplb.rebalance_experts(
                    loads, SLOTS, 1, 1, RANKS, num_threads=1
                ),
                "c search": solve,
                "python search": lambda: (
                    eplb.solve(
                        loads, RANKS, SLOTS, policy="search", num_threads=1
                    ).slot_experts
                ),
            },
            ROUNDS,
        )
        for function, kind in (
            ("rebalance_experts()", ""),
            ("solve() by search", " search"),
        ):
            c, python = times[f"c{kind}"], times[f"python{kind}"]
            print(
                f"| {name} | {function} | {c:.2f} | {python:.2f} | {python - c:.2f} |",
                flush=True,
            )

    if found is None:
        print(
            "\nvLLM and SGLang are not there: scripts/bench_peers.sh installs them and runs this with them"
        )
        return
    print(
        f"\nrebalance_experts() from tensor to tensor, shortest of {PEER_ROUNDS * TURN}, milliseconds\n"
    )
    print(
        "| loads | function | time | vLLM's is | SGLang's is |\n|---|---|---|---|---|"
    )
    tensor, vllm, sglang = found
    for name, loads in cases:
        weight = tensor(loads)
        calls = {"vLLM": lambda: vllm(weight), "SGLang": lambda: sglang(weight)}
        for policy in ("deepseek", "search"):
            for threads, words in ((1, ""), (0, ALL_CORES)):
                calls[f"eplb `{policy}`{words}"] = functools.partial(
                    eplb.rebalance_experts,
                    weight,
                    SLOTS,
                    1,
                    1,
                    RANKS,
                    policy,
                    num_threads=threads,
                )
        times = shortest(calls, PEER_ROUNDS)
        for function, took in times.items():
            ratios = [
                f"{times[peer] / took:.1f} times" if function.startswith("eplb") else ""
                for peer in ("vLLM", "SGLang")
            ]
            print(
                f"| {name} | {function} | {took:.2f} | {ratios[0]} | {ratios[1]} |",
                flush=True,
            )


main()
