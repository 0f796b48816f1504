"""vllm-ascend's and MindIE's expert map. Neither is imported."""

from __future__ import annotations

from typing import Any

from ._constants import FileFormat, Policy
from ._library import Path
from ._placement import Placement
from ._solve import solve
from ._stats import Stats

__all__ = ["save_expert_map"]


def save_expert_map(
    counts: Path | Stats,
    path: Path,
    num_ranks: int,
    num_slots: int,
    *,
    policy: Policy | str = Policy.DEFAULT,
    **options: Any,
) -> Placement:
    """Plans from counts, saves the expert map for expert_map_path, and returns the placement.

    The map has no layer numbers: vllm-ascend takes its rows for the model's layers with experts, in order.

    Args:
        counts: a dump or another file of counts, or counts
        path: the file to write, replaced atomically; vllm-ascend demands *.json
        num_ranks: devices (the EP size)
        num_slots: slots of all devices together, a multiple of num_ranks
        policy: as for `eplb.solve()`. A placement that vllm-ascend would serve wrongly is refused
        options: further arguments of `eplb.solve()`
    """
    stats = counts if isinstance(counts, Stats) else Stats.load_file(counts)
    placement = solve(stats, num_ranks, num_slots, policy=policy, **options)
    placement.save_file(path, FileFormat.EXPERT_MAP)
    return placement
