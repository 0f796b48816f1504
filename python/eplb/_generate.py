"""A dump to a configuration file, in one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

from . import _arrays
from ._arrays import HostArray
from ._constants import Objective, Phase, Policy
from ._library import Path, Struct, check, encoded, ffi, lib, refuse
from ._solve import solve_options

Progress = Callable[[Phase, int, int], object]
"""Called with the phase, the work done of it, and its work: bytes, layers, files."""


class GenerateReport(NamedTuple):
    """What `generate()` wrote: `eplb_generate_report`.

    Attributes:
        num_ranks: ranks
        num_slots: slots of all ranks together
        num_experts: experts of a layer
        num_layers: layers
        iter_start: first iteration used, of the first dump
        iter_stop: one past the last iteration used, of the first dump
        num_missing_ranks: ranks whose file is missing from the dump
        num_duplicates: slots that repeat an expert of their own rank
        imbalance_before: imbalance ratio (max - mean) / mean without a load balancer; NaN without tokens
        imbalance_after: the same with the placement, under an even split
        hash: `Placement.hash` of the placement
        off_node_share: share of the load off its home node, 0 to 1; NaN if the policy ignores nodes
    """

    num_ranks: int
    num_slots: int
    num_experts: int
    num_layers: int
    iter_start: int
    iter_stop: int
    num_missing_ranks: int
    num_duplicates: int
    imbalance_before: float
    imbalance_after: float
    hash: int
    off_node_share: float


def generate(
    expert_statistic_path: Path | Sequence[Path],
    output_path: Path,
    *,
    num_ranks: int = 0,
    num_slots: int = 0,
    policy: Policy | str = Policy.DEFAULT,
    progress: Progress | None = None,
    num_samples: int = 0,
    path_weights: HostArray | None = None,
    iter_start: int = 0,
    iter_stop: int = 0,
    allow_missing_ranks: bool = False,
    expected_ranks: int = 0,
    layer_updates_per_iter: int = 0,
    rank_num_slots: HostArray | None = None,
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
) -> GenerateReport:
    """Generates a configuration file from a dump: reads it, solves, and saves the placement. `eplb_generate()`.

    The file is complete and synced to disk on return. On any exception, an existing file is unchanged.

    Args:
        expert_statistic_path: directory of the dump, or of several dumps of one model
        output_path: file to write, replaced atomically: TensorRT-LLM's, or eplb's own if named *.eplb.yaml
        num_ranks: ranks (the EP size); 0: as in the dump
        num_slots: slots of all ranks together, a multiple of num_ranks; 0: one an expert
        policy: as for `solve()`
        progress: called on this thread with the phase, the work done, and the work of the phase. An exception of
            it cancels the call, and is raised
        num_samples: samples of a dump; 0: 16, or one a row if there are fewer
        path_weights: [dumps], what the counts of each of several dumps are multiplied by; None: 1
        iter_start: first iteration to read; 0: the dump's first
        iter_stop: one past the last iteration to read; 0: to the dump's end
        allow_missing_ranks: accept a dump that lacks the files of some ranks
        expected_ranks: files of all ranks and pipeline stages; 0: as in the dump
        layer_updates_per_iter: layers that an online balancer updates per iteration; only written to the file
        rank_num_slots: [num_ranks], slots of each rank; None: num_slots / num_ranks
        objective: as for `solve()`
        num_threads: as for `solve()`, also for reading
        num_groups: as for `solve()`
        num_nodes: as for `solve()`
        rank_to_node: [num_ranks], as for `solve()`; needs num_ranks
        off_node_price: as for `solve()`
        sample_weights: [dumps x num_samples], as for `solve()`; needs num_samples
        quantile: as for `solve()`
        drift: as for `solve()`
        effort: as for `solve()`
        pinned_experts: [slots] or [layers][slots], as for `solve()`; needs num_slots
    """
    paths: Sequence[Path]
    paths = [expert_statistic_path] if isinstance(expert_statistic_path, (str, os.PathLike)) else expert_statistic_path
    strings = [ffi.new("char[]", encoded(path)) for path in paths]
    weights = None
    if path_weights is not None:
        weights = _arrays.loads(path_weights, "path_weights", "[dumps]")
        if len(weights) != len(paths):
            raise refuse(f"path_weights has {len(weights)} numbers, and there are {len(paths)} dumps")
    if sample_weights is not None and not num_samples:
        raise refuse("sample_weights needs num_samples")
    if rank_to_node is not None and not num_ranks or rank_num_slots is not None and not num_ranks:
        raise refuse("rank_to_node and rank_num_slots need num_ranks")

    raised: list[BaseException] = []

    def call(_: Any, phase: int, done: int, total: int) -> int:
        if progress is not None:
            progress(Phase(phase), done, total)
        return 0

    def keep(_: Any, error: BaseException, __: Any) -> None:
        raised.append(error)

    # Without a progress function too: Python then handles signals such as Ctrl-C, whose exception cancels the call.
    callback = ffi.callback("eplb_progress_callback", call, error=1, onerror=keep)
    config = Struct(
        "eplb_generate_config",
        output_path=output_path,
        num_ranks=num_ranks,
        num_slots=num_slots,
        num_samples=num_samples,
        progress=callback,
        layer_updates_per_iter=layer_updates_per_iter,
        rank_num_slots=_arrays.per_rank(rank_num_slots, "rank_num_slots", "<i4", num_ranks),
        paths=ffi.new("char *[]", strings),
        path_weights=weights,
        num_paths=len(strings),
    )
    stats_options = Struct(
        "eplb_stats_options",
        iter_start=iter_start,
        iter_stop=iter_stop,
        allow_missing_ranks=bool(allow_missing_ranks),
        num_threads=num_threads,
        expected_ranks=expected_ranks,
    )
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
        num_samples * len(paths),
        quantile,
        drift,
        effort,
        pinned_experts,
        num_slots,
    )
    report = Struct("eplb_generate_report")
    status = lib.eplb_generate(config.pointer, stats_options.pointer, options.pointer, report.pointer)
    if raised:
        raise raised.pop()
    check(status)
    return GenerateReport(*(getattr(report, field) for field in GenerateReport._fields))
