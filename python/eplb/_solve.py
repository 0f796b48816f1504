"""Loads to a placement."""

from __future__ import annotations

from typing import Union

import numpy

from . import _arrays
from ._arrays import Array, HostArray
from ._constants import Objective, Policy, constant
from ._library import Struct, address, call, ffi, lib, refuse
from ._placement import Placement, placement_config
from ._stats import Stats

Loads = Union[Stats, HostArray]
"""Counts, or an array of loads."""


def layers_of(loads: Loads, num_samples: int, layer_ids: HostArray | None) -> tuple[Array, Array]:
    """Loads as [layers][samples][experts], and the layers' numbers."""
    if isinstance(loads, Stats):
        if layer_ids is not None:
            raise refuse("layer_ids are those of the Stats: leave them out, or pass an array of loads")
        # As many samples as eplb_generate() takes.
        return loads.loads(num_samples or min(16, loads.num_rows)), numpy.array(loads.layer_ids)
    if num_samples:
        raise refuse("num_samples is for Stats; an array of loads has its samples: [layers][samples][experts]")
    array = _arrays.loads(loads, "loads", "[layers][experts]", "[layers][samples][experts]")
    if array.ndim == 2:
        array = array[:, None, :]
    return array, _arrays.layer_numbers(layer_ids, len(array))


def solve_options(
    policy: Policy | str,
    objective: Objective | str,
    num_threads: int,
    num_groups: int,
    num_nodes: int,
    rank_to_node: HostArray | None,
    num_ranks: int,
    off_node_price: float,
    sample_weights: HostArray | None,
    num_samples: int,
    quantile: float,
    drift: float,
    effort: int,
    pinned_experts: HostArray | None,
    num_slots: int,
) -> Struct:
    """An eplb_solve_options, whose arrays have the lengths that the library reads. num_samples 0: not known."""
    weights = None
    if sample_weights is not None:
        weights = _arrays.loads(sample_weights, "sample_weights", "[samples]")
        if len(weights) != num_samples:
            raise refuse(f"sample_weights has {len(weights)} numbers, and there are {num_samples} samples")
    pinned = _arrays.optional_integers(pinned_experts, "pinned_experts", numpy.int32, "[slots]", "[layers or 1][slots]")
    if pinned is not None:
        pinned = numpy.atleast_2d(pinned)
        if pinned.shape[1] != num_slots:
            raise refuse(f"pinned_experts has {pinned.shape[1]} slots in a row, and num_slots is {num_slots}")
    return Struct(
        "eplb_solve_options",
        policy=constant(Policy, policy, "policy"),
        objective=constant(Objective, objective, "objective"),
        num_threads=num_threads,
        num_groups=num_groups,
        num_nodes=num_nodes,
        rank_to_node=_arrays.per_rank(rank_to_node, "rank_to_node", numpy.int32, num_ranks),
        off_node_price=off_node_price,
        sample_weights=weights,
        quantile=quantile,
        drift=drift,
        effort=effort,
        pinned_experts=pinned,
        num_pinned_layers=0 if pinned is None else len(pinned),
    )


def solve(
    loads: Loads,
    num_ranks: int,
    num_slots: int = 0,
    *,
    policy: Policy | str = Policy.DEFAULT,
    layer_ids: HostArray | None = None,
    num_samples: int = 0,
    objective: Objective | str = Objective.EVEN_SPLIT,
    num_threads: int = 0,
    num_groups: int = 0,
    num_nodes: int = 0,
    rank_to_node: HostArray | None = None,
    off_node_price: float = 0.0,
    sample_weights: HostArray | None = None,
    quantile: float = 0.0,
    drift: float = 0.0,
    effort: int = 0,
    pinned_experts: HostArray | None = None,
    rank_num_slots: HostArray | None = None,
    layer_updates_per_iter: int = 0,
) -> Placement:
    """Solves: decides which expert each slot holds, so that the ranks carry equal load. `eplb_solve()`.

    The policies other than SEARCH use only num_threads, num_groups and num_nodes of the options.

    Args:
        loads: counts, or [layers][experts] or [layers][samples][experts], finite and not negative, in any unit.
            A sample is one situation to balance: some iterations, or a workload
        num_ranks: ranks of the expert-parallel group
        num_slots: slots of all ranks together, a multiple of num_ranks; 0: one an expert
        policy: how replicas and slots are assigned, such as "search" or "deepseek-global"
        layer_ids: [layers], the layers' numbers; None: 0 to layers - 1, or those of the counts
        num_samples: samples that counts are split into; 0: 16, or one a row if there are fewer
        objective: what the search minimises
        num_threads: threads, which solve layers in parallel; 0: one a core, at most 8
        num_groups: groups of consecutive experts, of equal size; 0: 1
        num_nodes: nodes of consecutive ranks, of equal size; 0: 1
        rank_to_node: [num_ranks], the node of each rank, in place of num_nodes
        off_node_price: price of load off its group's home node, in shares of the mean load; infinity: never
        sample_weights: [samples], the weight of each sample; None: equal
        quantile: minimise this quantile over samples, above 0, at most 1; 0: the mean
        drift: for BEST_SPLIT, the standard deviation of the logarithm of an expert's load; 0: 0.2; negative: none
        effort: moves to try for each slot; 0: 200
        pinned_experts: [slots] or [layers][slots], the expert that a slot holds in the result, -1 in free slots
        rank_num_slots: [num_ranks], slots of each rank; None: num_slots / num_ranks
        layer_updates_per_iter: layers that an online balancer updates per iteration; only written to the file
    """
    array, layers = layers_of(loads, num_samples, layer_ids)
    num_layers, samples, num_experts = array.shape
    config = placement_config(num_experts, num_ranks, num_slots, layer_updates_per_iter, rank_num_slots)
    options = solve_options(
        policy,
        objective,
        num_threads,
        num_groups,
        num_nodes,
        rank_to_node,
        num_ranks,
        off_node_price,
        sample_weights,
        samples,
        quantile,
        drift,
        effort,
        pinned_experts,
        num_slots or num_experts,
    )
    placement = ffi.new("eplb_placement **")
    call(
        lib.eplb_solve, config.pointer, options.pointer, address(layers), num_layers, address(array), samples, placement
    )
    return Placement(placement[0])


def suggest_num_slots(num_experts: int, num_ranks: int, num_slots: int) -> tuple[int, int]:
    """Returns the valid numbers of slots nearest to a given one, below and above; 0: none.

    Valid are multiples of num_ranks, at least num_experts. `eplb_suggest_num_slots()`.

    Args:
        num_experts: experts of a layer
        num_ranks: ranks of the expert-parallel group
        num_slots: the given number, of all ranks together
    """
    below, above = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    call(lib.eplb_suggest_num_slots, num_experts, num_ranks, num_slots, below, above)
    return int(below[0]), int(above[0])
