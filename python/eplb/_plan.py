"""Which experts move between which slots."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy

from . import _arrays
from ._arrays import Array, HostArray
from ._constants import Buffering, Decision, KeepReason, TransferKind, constant
from ._library import Handle, Struct, call, ffi, lib, pointer_of, view
from ._placement import Placement


class PlanInfo(NamedTuple):
    """A plan as a whole: `eplb_plan_info`.

    Attributes:
        decision: whether layers change
        reason: why not
        message: a sentence for logs
        agreement: two words of 64 bits, to compare over all ranks: docs/live.md
        num_layers: layers that change
        num_moves: slots that receive an expert
        staging_slots: the most staging slots that a rank needs for one layer
        num_rounds: the most rounds of a layer
        balance_before: balancedness (mean / max) of the observed loads in the placement in force; 0 for `plan()`
        balance_after: balancedness in the planned placement
        balance_bound: balancedness that no placement exceeds
    """

    decision: Decision
    reason: KeepReason
    message: str
    agreement: tuple[int, int]
    num_layers: int
    num_moves: int
    staging_slots: int
    num_rounds: int
    balance_before: float
    balance_after: float
    balance_bound: float


class PlannedLayer(NamedTuple):
    """What a plan changes in a layer: `eplb_planned_layer`.

    Attributes:
        generation: the generation that the plan was made against; 0 for `plan()`
        num_moves: slots that receive an expert
        num_rounds: rounds of transfers
        staging_slots: staging slots that the busiest rank needs
        num_commits: how often the layer is staged and committed: 2 if it drains first
        buffering: how slots are buffered
        balance_before: balancedness (mean / max), as in `PlanInfo`, of this layer
        balance_after: balancedness, as in `PlanInfo`, of this layer
        balance_bound: balancedness, as in `PlanInfo`, of this layer
    """

    generation: int
    num_moves: int
    num_rounds: int
    staging_slots: int
    num_commits: int
    buffering: Buffering
    balance_before: float
    balance_after: float
    balance_bound: float


class Transfer(NamedTuple):
    """One expert goes from a slot to a slot: `eplb_transfer`. Slots are counted over all ranks.

    Attributes:
        layer: the layer's number
        round: the round, from 0
        expert: the expert
        src_rank: the rank that sends; -1 for HOST
        src_slot: the slot to read, or -1
        dst_rank: the rank that receives
        dst_slot: the slot that receives; num_slots + r is the spare slot of rank r
        kind: how it gets there
    """

    layer: int
    round: int
    expert: int
    src_rank: int
    src_slot: int
    dst_rank: int
    dst_slot: int
    kind: TransferKind


class Plan(Handle):
    """The moves from one placement to another, layer by layer. Immutable: `eplb_plan`.

    Made by `plan()` and `Rebalancer.plan()`. Any number of threads may use it at once.
    """

    def __init__(self, pointer: Any) -> None:
        super().__init__(pointer, lib.eplb_plan_destroy)
        self._info = Struct("eplb_plan_info")
        call(lib.eplb_plan_get_info, pointer, self._info.pointer)

    @property
    def info(self) -> PlanInfo:
        """The decision, its words and its sizes."""
        info = self._info
        pointer_of(Plan, self)
        numbers = {field: getattr(info, field) for field in PlanInfo._fields}
        numbers.update(
            decision=Decision(info.decision),
            reason=KeepReason(info.reason),
            message=ffi.string(info.message).decode(),
            agreement=(info.agreement[0], info.agreement[1]),
        )
        return PlanInfo(**numbers)

    @property
    def layer_ids(self) -> Array:
        """The layers that change, those that gain most a move first: int32 [layers], read-only memory of this object."""
        return view(self, self._info.layer_ids, (int(self._info.num_layers),))

    def layer_info(self, layer: int) -> PlannedLayer:
        """Returns what changes in a layer: `eplb_plan_layer_info()`.

        Args:
            layer: one of layer_ids
        """
        info = Struct("eplb_planned_layer")
        call(lib.eplb_plan_layer_info, self._pointer, layer, info.pointer)
        numbers = {field: getattr(info, field) for field in PlannedLayer._fields}
        numbers.update(buffering=Buffering(info.buffering))
        return PlannedLayer(**numbers)

    def layer_experts(self, layer: int, commit: int = -1) -> Array:
        """Returns the expert of each slot after a commit: int32 [slots], read-only memory of this object.

        Args:
            layer: one of layer_ids
            commit: 0 to num_commits - 1 of the layer; -1: the last one, which has the planned slots
        """
        experts, num_slots = ffi.new("const int32_t **"), ffi.new("size_t *")
        if commit == -1:
            commit = self.layer_info(layer).num_commits - 1
        call(lib.eplb_plan_layer_experts, self._pointer, layer, commit, experts, num_slots)
        return view(self, experts[0], (int(num_slots[0]),))

    def transfers(self, layer: int, rank: int = -1) -> list[Transfer]:
        """Returns the transfers of a layer in the order of every rank, by round: `eplb_plan_transfers()`.

        Args:
            layer: one of layer_ids
            rank: those in which a rank takes part; -1: all
        """
        count = ffi.new("size_t *")
        call(lib.eplb_plan_transfers, self._pointer, layer, rank, ffi.NULL, 0, count)
        transfers = ffi.new("eplb_transfer[]", max(1, count[0]))
        call(lib.eplb_plan_transfers, self._pointer, layer, rank, transfers, count[0], count)
        return [
            Transfer(t.layer, t.round, t.expert, t.src_rank, t.src_slot, t.dst_rank, t.dst_slot, TransferKind(t.kind))
            for t in (transfers[index] for index in range(count[0]))
        ]

    def num_readers(self, layer: int, slot: int) -> int:
        """Returns how many transfers of a layer read a slot: `eplb_plan_num_readers()`.

        Args:
            layer: one of layer_ids
            slot: a slot or spare slot, counted over all ranks
        """
        readers = ffi.new("uint32_t *")
        call(lib.eplb_plan_num_readers, self._pointer, layer, slot, readers)
        return int(readers[0])

    def __repr__(self) -> str:
        return "<eplb.Plan, destroyed>" if self._owned is None else f"<eplb.Plan: {self.info.message}>"


def plan(
    placement: Placement,
    wanted: Placement,
    *,
    rank_to_node: HostArray | None = None,
    active: HostArray | None = None,
    buffering: Buffering | str = Buffering.STAGED,
) -> Plan:
    """Plans the moves between two placements. Experts that stay on a rank keep their slots. `eplb_plan_create()`.

    Args:
        placement: the placement in force
        wanted: the wanted one, of the same experts, slots, ranks and layers
        rank_to_node: [num_ranks], the node of each rank; None: all ranks are on one node
        active: [num_ranks], 0 for a rank that cannot send and holds nothing in the wanted placement; None: all are
        buffering: where experts go that arrive before the table of their layer changes
    """
    from_, to = pointer_of(Placement, placement), pointer_of(Placement, wanted)
    options = Struct(
        "eplb_plan_options",
        rank_to_node=_arrays.per_rank(rank_to_node, "rank_to_node", numpy.int32, placement.num_ranks),
        active=_arrays.per_rank(active, "active", numpy.uint8, placement.num_ranks),
        num_ranks=placement.num_ranks if rank_to_node is not None or active is not None else 0,
        buffering=constant(Buffering, buffering, "buffering"),
    )
    handle = ffi.new("eplb_plan **")
    call(lib.eplb_plan_create, from_, to, options.pointer, handle)
    return Plan(handle[0])
