"""DeepSeek's rebalance_experts(), by this library."""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy

from . import _arrays
from ._arrays import Array, HostArray
from ._constants import EplbError, Policy, Status, constant
from ._library import Struct, address, check, lib, refuse
from ._placement import placement_config
from ._solve import solve

_DEEPSEEK = {
    "deepseek": Policy.DEFAULT,  # of eplb_deepseek_rebalance(): eplb.py's own choice
    Policy.DEEPSEEK_GLOBAL: Policy.DEEPSEEK_GLOBAL,
    Policy.DEEPSEEK_HIERARCHICAL: Policy.DEEPSEEK_HIERARCHICAL,
}

_of_thread = threading.local()
_MOST_KEPT = 1 << 22


def rebalance_experts(
    weight: HostArray,
    num_replicas: int,
    num_groups: int,
    num_nodes: int,
    num_gpus: int,
    policy: Policy | str = "deepseek",
    *,
    num_threads: int = 0,
) -> tuple[Any, Any, Any]:
    """Plans as DeepSeek's eplb.py does, with its arguments and its three results.

    "deepseek" equals it with a stable sort, ties to the lower expert, replica and rank: `eplb_deepseek_rebalance()`.
    Groups are packed onto nodes if they split evenly over them; otherwise neither groups nor nodes matter. "search"
    keeps groups on a node in the same cases, and gives better balance: `solve()`.

    Args:
        weight: [layers][experts], the load of each expert, finite and not negative, in any unit, in host memory
        num_replicas: slots of all ranks together, a multiple of num_gpus
        num_groups: groups of consecutive experts, of equal size
        num_nodes: nodes of consecutive ranks, of equal size
        num_gpus: ranks of the expert-parallel group
        policy: "deepseek", "search", "trtllm", "deepseek-global" or "deepseek-hierarchical"
        num_threads: threads, which solve layers in parallel; 0: one a core, at most 8

    Returns:
        phy2log, int64 [layers][num_replicas]: the expert of each slot. log2phy, int64 [layers][experts][most
        replicas]: the slots of each expert, padded with -1. logcnt, int64 [layers][experts]: the replicas of each
        expert. Tensors of PyTorch if weight is one, otherwise arrays of NumPy.
    """
    torch: Any = sys.modules.get("torch")
    array: Any = weight
    is_tensor = torch is not None and isinstance(array, torch.Tensor)
    if is_tensor and array.dtype == torch.bfloat16:
        # NumPy has no such type. eplb.py, too, plans in float32.
        array = array.float()
    loads = _arrays.loads(array, "weight", "[layers][experts]")
    if loads.shape[0] == 0:
        raise refuse("weight has no layer")
    chosen: Any = policy if policy == "deepseek" else constant(Policy, policy, "policy")
    if chosen in _DEEPSEEK:
        options = (_DEEPSEEK[chosen], num_threads, num_groups, num_nodes)
        try:
            arrays = _deepseek(loads, num_replicas, num_gpus, *options)
        except MemoryError:
            raise EplbError(Status.OUT_OF_MEMORY, f"no memory for {num_replicas} slots a layer") from None
    else:
        # eplb.py's choice between its two rules.
        keeps_groups = num_nodes > 1 and num_groups % num_nodes == 0
        with solve(
            loads,
            num_gpus,
            num_replicas,
            policy=chosen,
            num_threads=num_threads,
            num_groups=num_groups if keeps_groups else 0,
            num_nodes=num_nodes if keeps_groups else 0,
            off_node_price=math.inf if keeps_groups and chosen in (Policy.DEFAULT, Policy.SEARCH) else 0.0,
        ) as placement:
            arrays = replicas_of(placement.slot_experts, loads.shape[1])
    if is_tensor:
        return torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1]), torch.from_numpy(arrays[2])
    return arrays


def _deepseek(
    loads: Array, num_slots: int, num_ranks: int, policy: Policy, num_threads: int, num_groups: int, num_nodes: int
) -> tuple[Array, Array, Array]:
    num_layers, num_experts = loads.shape
    config = placement_config(num_experts, num_ranks, num_slots, 0, None)
    options = Struct(
        "eplb_solve_options", policy=policy, num_threads=num_threads, num_groups=num_groups, num_nodes=num_nodes
    )
    widest = max(1, num_slots - num_experts + 1)
    width = widest
    if policy == Policy.DEEPSEEK_GLOBAL or num_nodes <= 1 or num_groups % num_nodes:
        width = min(widest, _most_replicas(loads, num_slots))
    phy2log = numpy.empty((num_layers, num_slots), numpy.int32)
    logcnt = numpy.empty((num_layers, num_experts), numpy.int32)
    while True:
        log2phy = _scratch(num_layers * num_experts * width).reshape(num_layers, num_experts, width)
        status = lib.eplb_deepseek_rebalance(
            config.pointer,
            options.pointer,
            address(loads),
            num_layers,
            width,
            address(phy2log),
            address(log2phy),
            address(logcnt),
        )
        if status != Status.INVALID_ARGUMENT or width == widest:
            break
        width = widest
    check(status)
    most = int(logcnt.max())
    return phy2log.astype(numpy.int64), log2phy[:, :, :most].astype(numpy.int64), logcnt.astype(numpy.int64)


def _most_replicas(loads: Array, num_slots: int) -> int:
    """A bound on the replicas of an expert. The narrower log2phy is, the less memory is written.

    An expert of load w got its last of n replicas as it had the largest load per replica, w / (n - 1). No replica of
    another expert has more in the end. So an expert of load v has at least v * (n - 1) / w slots, and at least one.
    """
    with numpy.errstate(all="ignore"):
        sums, largest = loads.sum(axis=1), loads.max(axis=1)
        if not sums.all():
            return num_slots
        most = (largest / sums).max() * num_slots
        if most > 16:
            # Takes the one slot for loads below the mean of a slot, the other bound for those above.
            hot = loads >= (sums / num_slots)[:, None]
            slots_of_hot = num_slots - loads.shape[1] + hot.sum(axis=1)
            most = (largest * slots_of_hot / numpy.where(hot, loads, 0).sum(axis=1)).max()
    # One more for rounding in float32. Not a number if the loads are none, which the library refuses.
    return int(most) + 2 if 0 < most < num_slots else num_slots


def _scratch(size: int) -> Array:
    """Returns an int32 array of this thread. Memory that is new at each call takes longer than the conversion."""
    kept: Array = getattr(_of_thread, "array", numpy.empty(0, numpy.int32))
    if kept.size >= size:
        return kept[:size]
    try:
        array = numpy.empty(size, numpy.int32)
    except (MemoryError, ValueError):
        raise EplbError(
            Status.OUT_OF_MEMORY, f"no memory for log2phy, {4 * size} bytes: is num_replicas right?"
        ) from None
    if size <= _MOST_KEPT:
        _of_thread.array = array
    return array


def replicas_of(phy2log: Array, num_experts: int) -> tuple[Array, Array, Array]:
    """phy2log, log2phy and logcnt of a placement, replicas in the order of slots."""
    num_layers, num_slots = phy2log.shape
    experts = phy2log + numpy.arange(0, num_layers * num_experts, num_experts, dtype=numpy.int32)[:, None]
    logcnt = numpy.bincount(experts.ravel(), minlength=num_layers * num_experts)
    # NumPy sorts 16 bits in linear time.
    keys = phy2log.astype(numpy.uint16) if num_experts <= 65536 else phy2log
    slots = numpy.argsort(keys, axis=1, kind="stable")
    sorted_experts = numpy.take_along_axis(experts, slots, axis=1).ravel()
    replica = numpy.arange(sorted_experts.size) - (numpy.cumsum(logcnt) - logcnt)[sorted_experts]
    most = int(logcnt.max())
    log2phy = numpy.full(num_layers * num_experts * most, -1, numpy.int64)
    log2phy[sorted_experts * numpy.int64(most) + replica] = slots.ravel()
    shape = (num_layers, num_experts)
    return phy2log.astype(numpy.int64), log2phy.reshape(*shape, most), logcnt.astype(numpy.int64).reshape(shape)
