"""Observed loads to plans."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy

from . import _arrays
from ._arrays import Array, HostArray
from ._constants import Buffering, KeepReason, Objective, constant
from ._library import Handle, Struct, address, call, ffi, lib, pointer_of, refuse
from ._placement import Placement
from ._plan import Plan


class RebalancerInfo(NamedTuple):
    """The state of a rebalancer: `eplb_rebalancer_info`.

    Attributes:
        layer_ids: int32 [layers], the layers' numbers, ascending
        generations: uint64 [layers], the generation of each: 1, and one more with each commit
        num_observations: observations, those that do not count included
        num_windows: windows with counts
        num_tokens: tokens of these windows
        num_layers_in_flight: layers that the plan in flight has yet to commit
        num_active_ranks: ranks that are active
        num_lost_experts: experts of all layers that no active rank holds
        num_plans: plans that change layers
        num_kept: plans that keep the placement, by reason
        num_commits: commits of layers
        num_moves: slots that received an expert by them
        balance: balancedness (mean / max) of the windows in the placement in force; 0 without counts
        balance_promised: what the last plan promised; 0 before the first
        balance_measured: balancedness of the last window in the placement in force; 0 before the first
    """

    layer_ids: Array
    generations: Array
    num_observations: int
    num_windows: int
    num_tokens: int
    num_layers_in_flight: int
    num_active_ranks: int
    num_lost_experts: int
    num_plans: int
    num_kept: dict[KeepReason, int]
    num_commits: int
    num_moves: int
    balance: float
    balance_promised: float
    balance_measured: float


class Rebalancer(Handle):
    """Observes counts and plans. Holds the placement in force: `eplb_rebalancer`, docs/live.md.

    Threads may share it: calls that change it take turns.

    Args:
        placement: the placement in force; may be destroyed afterwards
        experts_per_token: experts that the router chooses for each token
        num_windows: windows that each phase keeps; 0: 8
        half_life: observations after which a window counts half; 0: 6
        num_phases: phases, such as prefill and decode, each with windows of its own; 0: 1
        max_replicas: most replicas of an expert; 0: no limit
        num_threads: threads that plan layers; 0: one a core, at most 8
        objective: EVEN_SPLIT
        rank_to_node: [num_ranks], the node of each rank; None: all ranks are on one node
        pinned_slots: [slots], 1 for slots that keep their experts in every layer; None: none
        min_tokens: tokens that all windows must have together; 0: 100 * experts / experts_per_token; negative: any
        cooldown: observations from the end of a plan to the next plan; 0: 1; negative: none
        trigger: plans start where the balancedness (mean / max) is below this; 0: .95; negative: always
        release: plans go on until the balancedness has reached this; 0: .98, or trigger if that is more; negative: no limit
        min_gain: what a layer must gain, in max / mean; 0: .005; negative: anything
        min_relative_gain: what a layer must gain, as a share of its max / mean - 1; 0: .05; negative: anything
        noise: by how many standard deviations a gain must exceed that of noise; 0: 3; negative: none
    """

    def __init__(
        self,
        placement: Placement,
        *,
        experts_per_token: int,
        num_windows: int = 0,
        half_life: int = 0,
        num_phases: int = 0,
        max_replicas: int = 0,
        num_threads: int = 0,
        objective: Objective | str = Objective.EVEN_SPLIT,
        rank_to_node: HostArray | None = None,
        pinned_slots: HostArray | None = None,
        min_tokens: int = 0,
        cooldown: int = 0,
        trigger: float = 0.0,
        release: float = 0.0,
        min_gain: float = 0.0,
        min_relative_gain: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        in_force = pointer_of(Placement, placement)
        pinned = _arrays.optional_integers(pinned_slots, "pinned_slots", numpy.uint8, "[slots]")
        if pinned is not None and len(pinned) != placement.num_slots:
            raise refuse(f"pinned_slots has {len(pinned)} numbers, and there are {placement.num_slots} slots")
        config = Struct(
            "eplb_rebalancer_config",
            experts_per_token=experts_per_token,
            num_windows=num_windows,
            half_life=half_life,
            num_phases=num_phases,
            max_replicas=max_replicas,
            num_threads=num_threads,
            objective=constant(Objective, objective, "objective"),
            rank_to_node=_arrays.per_rank(rank_to_node, "rank_to_node", numpy.int32, placement.num_ranks),
            pinned_slots=pinned,
            min_tokens=min_tokens,
            cooldown=cooldown,
            trigger=trigger,
            release=release,
            min_gain=min_gain,
            min_relative_gain=min_relative_gain,
            noise=noise,
        )
        rebalancer = ffi.new("eplb_rebalancer **")
        call(lib.eplb_rebalancer_create, config.pointer, in_force, rebalancer)
        super().__init__(rebalancer[0], lib.eplb_rebalancer_destroy)
        self._lock = threading.Lock()
        self._shape = (placement.num_layers, placement.num_experts)
        self._num_ranks = placement.num_ranks

    def observe(self, counts: HostArray | None, num_tokens: int, phase: int = 0) -> None:
        """Observes a window of counts, added up over all ranks: `eplb_rebalancer_observe()`.

        Args:
            counts: [samples][layers][experts] or [layers][experts], whole numbers of ids, each sample balanced for
                itself; None: the window passes time and does not count, as of warm-up
            num_tokens: tokens of all ranks in the window
            phase: 0 to num_phases - 1
        """
        if counts is None:
            array = numpy.zeros((1, *self._shape), numpy.int64)
            phase = lib.EPLB_PHASE_NOT_COUNTED
        else:
            array = _arrays.integers(counts, "counts", numpy.int64, "[samples][layers][experts]", "[layers][experts]")
            array = array if array.ndim == 3 else array[None]
            if array.shape[1:] != self._shape:
                raise refuse(
                    f"counts has {list(array.shape[1:])} layers and experts, the placement {list(self._shape)}"
                )
        with self._lock:
            call(lib.eplb_rebalancer_observe, self._pointer, address(array), len(array), num_tokens, phase)

    def plan(
        self,
        *,
        max_layer_moves: int = 0,
        max_moves: int = 0,
        max_rank_moves: int = 0,
        max_pair_moves: int = 0,
        max_layers: int = 0,
        buffering: Buffering | str = Buffering.STAGED,
        node_price: float = 0.0,
        remote_price: float = 0.0,
        horizon: float = 0.0,
    ) -> Plan:
        """Plans the moves that gain most, or keeps the placement and says why: `eplb_rebalancer_plan()`.

        The plan is in flight until each of its layers is committed, or it is aborted. A limit of 0 is none.

        Args:
            max_layer_moves: slots of a layer that receive an expert
            max_moves: slots of all layers that receive an expert
            max_rank_moves: slots of a rank that receive an expert, over all layers
            max_pair_moves: transfers from a rank to another one, over all layers
            max_layers: layers that change; 0: layer_updates_per_iter of the placement
            buffering: where experts go that arrive before the table of their layer changes
            node_price: load of the most loaded rank that a move within a node must save, in counts
            remote_price: as node_price, between nodes
            horizon: for how many samples as large as those observed the plan is made; 0: 1
        """
        limits = Struct(
            "eplb_plan_limits",
            max_layer_moves=max_layer_moves,
            max_moves=max_moves,
            max_rank_moves=max_rank_moves,
            max_pair_moves=max_pair_moves,
            max_layers=max_layers,
            buffering=constant(Buffering, buffering, "buffering"),
            node_price=node_price,
            remote_price=remote_price,
            horizon=horizon,
        )
        handle = ffi.new("eplb_plan **")
        with self._lock:
            call(lib.eplb_rebalancer_plan, self._pointer, limits.pointer, handle)
        return Plan(handle[0])

    def commit_layer(self, plan: Plan, layer: int) -> None:
        """Notes that the next commit of a layer is in force: `eplb_rebalancer_commit_layer()`.

        Args:
            plan: the plan in flight
            layer: one of its layer_ids; twice for a layer with two commits
        """
        handle = pointer_of(Plan, plan)
        with self._lock:
            call(lib.eplb_rebalancer_commit_layer, self._pointer, handle, layer)

    def abort(self, plan: Plan | None = None) -> None:
        """Ends a plan early: each layer is as it was or as planned. `eplb_rebalancer_abort()`.

        Args:
            plan: a plan of this rebalancer; None: that in flight
        """
        handle = ffi.NULL if plan is None else pointer_of(Plan, plan)
        with self._lock:
            call(lib.eplb_rebalancer_abort, self._pointer, handle)

    def placement(self) -> Placement:
        """Returns the placement in force: `eplb_rebalancer_placement()`."""
        placement = ffi.new("eplb_placement **")
        with self._lock:
            call(lib.eplb_rebalancer_placement, self._pointer, placement)
        return Placement(placement[0])

    def set_active_ranks(self, active: HostArray) -> None:
        """Sets which ranks are active, on every rank alike: `eplb_rebalancer_set_active_ranks()`.

        Args:
            active: [num_ranks], 0 for a dead rank
        """
        ranks = _arrays.per_rank(active, "active", numpy.uint8, self._num_ranks)
        if ranks is None:
            raise refuse("active is None; pass [num_ranks] numbers, 0 for a dead rank")
        with self._lock:
            call(lib.eplb_rebalancer_set_active_ranks, self._pointer, address(ranks), len(ranks))

    def reset(self, placement: Placement) -> None:
        """Starts again from a placement that all ranks share: `eplb_rebalancer_reset()`.

        Args:
            placement: of the same experts, slots, ranks and layers
        """
        handle = pointer_of(Placement, placement)
        with self._lock:
            call(lib.eplb_rebalancer_reset, self._pointer, handle)

    @property
    def info(self) -> RebalancerInfo:
        """The state, for logs and metrics. Its arrays are copies."""
        info = Struct("eplb_rebalancer_info")
        with self._lock:
            call(lib.eplb_rebalancer_get_info, self._pointer, info.pointer)
            numbers = {field: getattr(info, field) for field in RebalancerInfo._fields}
            size = info.num_layers
            numbers.update(
                layer_ids=numpy.array(ffi.unpack(info.layer_ids, size), numpy.int32),
                generations=numpy.array(ffi.unpack(info.generations, size), numpy.uint64),
                num_kept={reason: info.num_kept[reason] for reason in KeepReason if reason},
            )
        return RebalancerInfo(**numbers)
