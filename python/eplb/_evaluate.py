"""How evenly a placement loads the ranks."""

from __future__ import annotations

from typing import NamedTuple

import numpy

from . import _arrays
from ._arrays import HostArray
from ._library import Struct, address, call, lib, pointer_of, refuse
from ._placement import Placement
from ._solve import Loads, layers_of
from ._stats import Stats


class Evaluation(NamedTuple):
    """How evenly a placement loads the ranks in one layer: `eplb_placement_evaluation`.

    Loads are in the unit of those evaluated. Figures are computed for each sample and averaged.

    Attributes:
        mean_load: mean load of a rank
        max_load: load of the most loaded rank, an expert's load split evenly over its replicas
        imbalance_ratio: (max - mean) / mean: 0 is even
        balancedness: mean / max: 1 is even
        worst_rank: the rank with the largest load over all samples
        max_replicas: most slots of any expert
        num_duplicates: slots that repeat an expert of their own rank
        lower_bound: a bound on max_load over all placements of this shape
        gap: (max - lower bound) / lower bound: 0 proves that no placement is better
        best_split_max_load: load of the most loaded rank if each expert's load is split in the best fractions
        best_split_balancedness: mean / max of the best split
        off_node_share: share of the load off its group's home node, 0 to 1; NaN without nodes
        num_idle_samples: samples without load, which ratios leave out
    """

    mean_load: float
    max_load: float
    imbalance_ratio: float
    balancedness: float
    worst_rank: int
    max_replicas: int
    num_duplicates: int
    lower_bound: float
    gap: float
    best_split_max_load: float
    best_split_balancedness: float
    off_node_share: float
    num_idle_samples: int


def evaluate(
    placement: Placement,
    loads: Loads,
    *,
    layer_ids: HostArray | None = None,
    num_samples: int = 0,
    num_groups: int = 0,
    num_nodes: int = 0,
    rank_to_node: HostArray | None = None,
) -> dict[int, Evaluation]:
    """Computes how evenly a placement loads the ranks, by layer: `eplb_placement_evaluate()`.

    Args:
        placement: the placement
        loads: counts, or [layers][experts] or [layers][samples][experts], finite and not negative, in any unit
        layer_ids: [layers], the layers' numbers in the order of an array of loads; None: those of the placement
        num_samples: samples that counts are split into; 0: each row of them, mostly an iteration
        num_groups: groups of consecutive experts, for off_node_share; 0: 1
        num_nodes: nodes of consecutive ranks, for off_node_share; 0: 1
        rank_to_node: [num_ranks], the node of each rank, in place of num_nodes

    Returns:
        An `Evaluation` for each layer's number.
    """
    handle = pointer_of(Placement, placement)
    if isinstance(loads, Stats):
        num_samples = num_samples or loads.num_rows
    elif layer_ids is None:
        layer_ids = placement.layer_ids
    array, layers = layers_of(loads, num_samples, layer_ids)
    options = Struct(
        "eplb_solve_options",
        num_groups=num_groups,
        num_nodes=num_nodes,
        rank_to_node=_arrays.per_rank(rank_to_node, "rank_to_node", numpy.int32, placement.num_ranks),
    )
    evaluations = {}
    for layer, samples in zip(layers, array):
        result = Struct("eplb_placement_evaluation")
        call(
            lib.eplb_placement_evaluate,
            handle,
            layer,
            address(samples),
            len(samples),
            samples.shape[1],
            options.pointer,
            result.pointer,
        )
        evaluations[int(layer)] = Evaluation(*(getattr(result, field) for field in Evaluation._fields))
    if not evaluations:
        raise refuse("loads has no layer")
    return evaluations
