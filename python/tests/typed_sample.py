"""A program of a user, for `mypy --strict`: everything public with its types."""

from __future__ import annotations

import pathlib

import eplb
import numpy
import numpy.typing as npt


def progress(phase: eplb.Phase, done: int, total: int) -> None:
    print(phase.name, done, total)


def plan(dump: pathlib.Path, output: pathlib.Path) -> tuple[eplb.Placement, float]:
    report = eplb.generate(dump, output, num_ranks=8, num_slots=72, policy="search", progress=progress)
    placement = eplb.Placement.load(output, num_ranks=8)
    stats = eplb.Stats.load(dump, iter_start=100)
    evaluations: dict[int, eplb.Evaluation] = eplb.evaluate(placement, stats)
    worst: float = max(evaluation.imbalance_ratio for evaluation in evaluations.values())
    page: str = eplb.report(stats, placement).svg
    return placement, worst + report.imbalance_after + len(page)


def drop_in(weight: npt.NDArray[numpy.float64]) -> npt.NDArray[numpy.int64]:
    phy2log, _, _ = eplb.rebalance_experts(weight, 72, 1, 1, 8, policy=eplb.Policy.SEARCH)
    experts: npt.NDArray[numpy.int64] = phy2log
    return experts


def live(placement: eplb.Placement, counts: npt.NDArray[numpy.int64]) -> list[eplb.Transfer]:
    dispatch = eplb.Dispatch(placement, 0, experts_per_token=4, rule="nearest", live=True)
    rebalancer = eplb.Rebalancer(placement, experts_per_token=4)
    rebalancer.observe(counts, num_tokens=100)
    moves: eplb.Plan = rebalancer.plan(max_moves=4)
    transfers: list[eplb.Transfer] = []
    for layer in moves.layer_ids:
        transfers += moves.transfers(int(layer), rank=0)
        dispatch.update_layer(moves, int(layer))
        rebalancer.commit_layer(moves, int(layer))
    try:
        eplb.plan(placement, rebalancer.placement()).destroy()
    except eplb.EplbError as error:
        status: eplb.Status = error.status
        print(status.name, error)
    with placement as held:
        held_experts: int = held.num_experts
    print(held_experts, eplb.suggest_num_slots(64, 8, 70)[1], eplb.vllm.EplbPolicy.policy)
    return transfers
