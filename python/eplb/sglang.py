"""SGLang's file for --init-expert-location. SGLang is not imported."""

from __future__ import annotations

from typing import Any

from ._constants import FileFormat, Policy
from ._library import Path
from ._placement import Placement
from ._solve import solve
from ._stats import Stats

__all__ = ["save_expert_location"]


def save_expert_location(
    counts: Path | Stats,
    path: Path,
    num_ranks: int,
    num_slots: int,
    *,
    policy: Policy | str = Policy.DEFAULT,
    num_model_layers: int = 0,
    **options: Any,
) -> Placement:
    """Plans from a recording, saves the file for --init-expert-location, and returns the placement.

    Start SGLang with --ep-num-redundant-experts num_slots - experts, and as many ranks.

    Args:
        counts: a recording of SGLang, .pt or JSON, or a directory of them, or another file of counts, or counts
        path: the file to write, replaced atomically
        num_ranks: ranks (the EP size)
        num_slots: slots of all ranks together, a multiple of num_ranks
        policy: as for `eplb.solve()`
        num_model_layers: layers of the model including dense ones; 0: up to the last layer with experts
        options: further arguments of `eplb.solve()`
    """
    stats = counts if isinstance(counts, Stats) else Stats.load_file(counts)
    placement = solve(stats, num_ranks, num_slots, policy=policy, **options)
    placement.save_file(path, FileFormat.SGLANG_MAP, num_model_layers=num_model_layers)
    return placement
