"""The expert of every slot of every layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy

from . import _arrays
from ._arrays import Array, HostArray
from ._constants import FileFormat, IssueKind, MissingLayers, constant
from ._library import Handle, Path, Struct, address, call, encoded, ffi, lib, view
from ._stats import file_options


class Issue(NamedTuple):
    """One issue of a placement, which is served at a cost: `eplb_placement_issue`.

    Attributes:
        kind: what is wrong
        layer: the layer's number
        rank: the rank that owns the slot
        slot: the slot, counted over all ranks
        expert: the expert in the slot
        other_slot: the first slot of the rank with that expert
    """

    kind: IssueKind
    layer: int
    rank: int
    slot: int
    expert: int
    other_slot: int


def placement_config(
    num_experts: int,
    num_ranks: int,
    num_slots: int,
    layer_updates_per_iter: int,
    rank_num_slots: HostArray | None,
    allow_empty_slots: bool = False,
) -> Struct:
    """An eplb_placement_config."""
    return Struct(
        "eplb_placement_config",
        num_experts=num_experts,
        num_ranks=num_ranks,
        num_slots=num_slots,
        layer_updates_per_iter=layer_updates_per_iter,
        rank_num_slots=_arrays.per_rank(rank_num_slots, "rank_num_slots", numpy.int32, num_ranks),
        allow_empty_slots=bool(allow_empty_slots),
    )


class Placement(Handle):
    """The expert of every slot of every layer. Immutable and always servable: `eplb_placement`.

    Made by `solve()`, `Placement.load()`, `Placement.load_file()`, `Placement.create()` and
    `Rebalancer.placement()`. Any number of threads may use it at once.
    """

    def __init__(self, pointer: Any) -> None:
        super().__init__(pointer, lib.eplb_placement_destroy)
        self._info = Struct("eplb_placement_info")
        call(lib.eplb_placement_get_info, pointer, self._info.pointer)

    @classmethod
    def create(
        cls,
        slot_experts: HostArray,
        num_ranks: int,
        *,
        num_experts: int = 0,
        layer_ids: HostArray | None = None,
        layer_updates_per_iter: int = 0,
        rank_num_slots: HostArray | None = None,
        allow_empty_slots: bool = False,
    ) -> Placement:
        """Creates a placement from arrays: `eplb_placement_create()`.

        Args:
            slot_experts: [layers][slots], the expert of each slot, such as phy2log; -1 in empty slots. Copied
            num_ranks: ranks of the expert-parallel group
            num_experts: experts of a layer; 0: the highest of slot_experts and one
            layer_ids: [layers], the layers' numbers; None: 0 to layers - 1
            layer_updates_per_iter: layers that an online balancer updates per iteration; only written to the file
            rank_num_slots: [num_ranks], slots of each rank; None: slots / num_ranks
            allow_empty_slots: any slot may be empty
        """
        array = _arrays.integers(slot_experts, "slot_experts", numpy.int32, "[layers][slots]")
        config = placement_config(
            num_experts or int(array.max(initial=-1)) + 1,
            num_ranks,
            array.shape[1],
            layer_updates_per_iter,
            rank_num_slots,
            allow_empty_slots,
        )
        layers = _arrays.layer_numbers(layer_ids, len(array))
        placement = ffi.new("eplb_placement **")
        call(lib.eplb_placement_create, config.pointer, address(layers), len(layers), address(array), placement)
        return cls(placement[0])

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        num_ranks: int = 0,
        num_experts: int = 0,
        num_slots: int = 0,
        layer_ids: HostArray | None = None,
        missing_layers: MissingLayers | str = MissingLayers.REFUSE,
    ) -> Placement:
        """Loads TensorRT-LLM's configuration file or eplb's own: `eplb_placement_load()`.

        Args:
            path: the file
            num_ranks: ranks; 0: as in the file
            num_experts: experts of a layer; 0: as in the file
            num_slots: slots of all ranks together; 0: as in the file
            layer_ids: [layers], layers that the engine needs; None: those of the file
            missing_layers: what to do about layers of layer_ids that the file lacks
        """
        layers = _arrays.optional_integers(layer_ids, "layer_ids", numpy.int32, "[layers]")
        options = Struct(
            "eplb_placement_load_options",
            num_experts=num_experts,
            num_ranks=num_ranks,
            layer_ids=layers,
            num_layers=0 if layers is None else len(layers),
            num_slots=num_slots,
            missing_layers=constant(MissingLayers, missing_layers, "missing_layers"),
        )
        placement = ffi.new("eplb_placement **")
        call(lib.eplb_placement_load, encoded(path), options.pointer, placement)
        return cls(placement[0])

    @classmethod
    def load_file(
        cls,
        path: Path,
        file_format: FileFormat | str = FileFormat.DETECT,
        *,
        num_ranks: int = 0,
        num_experts: int = 0,
        num_slots: int = 0,
        layer_ids: HostArray | None = None,
    ) -> Placement:
        """Loads a placement from a file of another system, or a configuration file: `eplb_placement_load_file()`.

        Args:
            path: the file
            file_format: the format of placements; a bare array needs it
            num_ranks: ranks; 0: as in the file, which only expert maps and some configuration files say
            num_experts: experts of a layer; 0: as in the file
            num_slots: slots of all ranks together; 0: as in the file
            layer_ids: [layers], layers to read, which name the rows of a file with as many; None: all
        """
        options = file_options(
            file_format, 0, layer_ids, num_experts=num_experts, num_ranks=num_ranks, num_slots=num_slots
        )
        placement = ffi.new("eplb_placement **")
        call(lib.eplb_placement_load_file, encoded(path), options.pointer, placement)
        return cls(placement[0])

    def save(self, path: Path) -> None:
        """Saves TensorRT-LLM's configuration file, or eplb's own: `eplb_placement_save()`.

        Args:
            path: the file, replaced atomically; *.eplb.yaml for eplb's own, which also holds empty slots
        """
        call(lib.eplb_placement_save, self._pointer, encoded(path))

    def save_file(
        self,
        path: Path,
        file_format: FileFormat | str,
        *,
        num_model_layers: int = 0,
        layer_ids: HostArray | None = None,
        allow_lossy: bool = False,
    ) -> None:
        """Saves a placement to a file of another system: `eplb_placement_save_file()`, docs/exchange.md.

        Args:
            path: the file, replaced atomically
            file_format: a format of placements
            num_model_layers: layers of the model including dense ones, for SGLang; 0: up to the last with experts
            layer_ids: [layers], layers to write; None: all
            allow_lossy: write an expert map that vllm-ascend serves wrongly
        """
        options = file_options(file_format, num_model_layers, layer_ids, allow_lossy=bool(allow_lossy))
        call(lib.eplb_placement_save_file, self._pointer, encoded(path), options.pointer)

    def layer_experts(self, layer: int) -> Array:
        """Returns the expert of each slot of a layer: int32 [slots], read-only memory of this object.

        Args:
            layer: the layer's number
        """
        experts, num_slots = ffi.new("const int32_t **"), ffi.new("size_t *")
        call(lib.eplb_placement_layer_experts, self._pointer, layer, experts, num_slots)
        return view(self, experts[0], (int(num_slots[0]),))

    def rank_experts(self, layer: int, rank: int) -> Array:
        """Returns the expert of each slot of a rank: int32 [slots of the rank], read-only memory of this object.

        Args:
            layer: the layer's number
            rank: 0 to num_ranks - 1
        """
        experts, num_slots = ffi.new("const int32_t **"), ffi.new("size_t *")
        call(lib.eplb_placement_rank_experts, self._pointer, layer, rank, experts, num_slots)
        return view(self, experts[0], (int(num_slots[0]),))

    def distinct_experts(self, layer: int, rank: int) -> Array:
        """Returns the experts of a rank without repetition, ascending: int32 [experts of the rank].

        Args:
            layer: the layer's number
            rank: 0 to num_ranks - 1
        """
        experts, num_experts = numpy.empty(self.slots_per_rank, numpy.int32), ffi.new("size_t *")
        call(
            lib.eplb_placement_distinct_experts, self._pointer, layer, rank, address(experts), len(experts), num_experts
        )
        return experts[: num_experts[0]]

    @property
    def slot_experts(self) -> Array:
        """The expert of each slot: int32 [layers][slots], rows in the order of layer_ids; -1 in empty slots."""
        handle, rows = self._pointer, numpy.empty((self.num_layers, self.num_slots), numpy.int32)
        experts = ffi.new("const int32_t **")
        for row, layer in zip(rows, self.layer_ids.tolist()):
            call(lib.eplb_placement_layer_experts, handle, layer, experts, ffi.NULL)
            ffi.memmove(row, experts[0], row.nbytes)
        return rows

    def validate(self) -> list[Issue]:
        """Returns the issues of this placement, by layer and slot: `eplb_placement_validate()`."""
        count = ffi.new("size_t *")
        call(lib.eplb_placement_validate, self._pointer, ffi.NULL, 0, count)
        issues = ffi.new("eplb_placement_issue[]", max(1, count[0]))
        call(lib.eplb_placement_validate, self._pointer, issues, count[0], count)
        return [
            Issue(IssueKind(i.kind), i.layer, i.rank, i.slot, i.expert, i.other_slot)
            for i in (issues[index] for index in range(count[0]))
        ]

    @property
    def hash(self) -> int:
        """A hash of 64 bits that is equal on every machine: `eplb_placement_hash()`."""
        value = ffi.new("uint64_t *")
        call(lib.eplb_placement_hash, self._pointer, value)
        return int(value[0])

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""
        return int(self._info.num_experts)

    @property
    def num_ranks(self) -> int:
        """Ranks of the expert-parallel group."""
        return int(self._info.num_ranks)

    @property
    def num_slots(self) -> int:
        """Slots of all ranks together."""
        return int(self._info.num_slots)

    @property
    def slots_per_rank(self) -> int:
        """Slots of a rank: num_slots / num_ranks."""
        return int(self._info.slots_per_rank)

    @property
    def num_layers(self) -> int:
        """Layers."""
        return int(self._info.num_layers)

    @property
    def layer_ids(self) -> Array:
        """The layers' numbers, ascending: int32 [layers], read-only memory of this object."""
        return view(self, self._info.layer_ids, (self.num_layers,))

    @property
    def max_replicas(self) -> int:
        """Most slots of any expert in any layer."""
        return int(self._info.max_replicas)

    @property
    def layer_updates_per_iter(self) -> int:
        """Layers that an engine with an online balancer updates per iteration; only written to the file."""
        return int(self._info.layer_updates_per_iter)

    @property
    def num_duplicates(self) -> int:
        """Slots that repeat an expert of their own rank, over all layers."""
        return int(self._info.num_duplicates)

    @property
    def num_empty_slots(self) -> int:
        """Empty slots over all layers."""
        return int(self._info.num_empty_slots)

    def __repr__(self) -> str:
        if self._owned is None:
            return "<eplb.Placement, destroyed>"
        return (
            f"<eplb.Placement: {self.num_layers} layers, {self.num_experts} experts in {self.num_slots} slots on "
            f"{self.num_ranks} ranks>"
        )
