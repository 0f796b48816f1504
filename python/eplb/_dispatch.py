"""Expert ids to slot ids."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy

from . import _arrays, _ids
from ._arrays import HostArray
from ._constants import DEVICE_HOST, Rule, constant
from ._library import Handle, Struct, address, call, ffi, lib, pointer_of, refuse, view
from ._placement import Placement
from ._plan import Plan


class Tables(NamedTuple):
    """A layer's tables: `eplb_dispatch_tables`, docs/routing.md. A commit changes their contents.

    On the host they are arrays of NumPy, on a CUDA device objects with __cuda_array_interface__. Both are read-only
    memory of the `Dispatch`.

    Attributes:
        replica_count: int32 [experts], slots of each expert
        replica_start: int32 [experts], index of an expert's first slot in slot_ids
        slot_ids: int32 [slots], the slots of expert 0, ascending, then those of expert 1, and so on
        expert_slots: int32 [experts][max_replicas], padded with -1; None without a dense map
    """

    replica_count: Any
    replica_start: Any
    slot_ids: Any
    expert_slots: Any


class DispatchInfo(NamedTuple):
    """What a dispatch serves: `eplb_dispatch_info`.

    Attributes:
        placement_hash: `Placement.hash` at creation, equal on all ranks
        workspace_bytes: device memory held, in bytes
        rule: the routing rule, never DEFAULT
        rank: this rank
        num_ranks: ranks of the group
        num_experts: experts of a layer
        num_slots: slots of all ranks together
        slots_per_rank: num_slots / num_ranks
        experts_per_token: experts per token
        max_replicas: width of the dense map; 0: none
        num_layers: layers that are routed
        num_layers_with_rank_counts: layers with the counts of all ranks
        invalid_slot: the slot that padding and ids out of range get
        num_shared_experts: fused shared experts
        host_bytes: page-locked host memory held, in bytes
    """

    placement_hash: int
    workspace_bytes: int
    rule: Rule
    rank: int
    num_ranks: int
    num_experts: int
    num_slots: int
    slots_per_rank: int
    experts_per_token: int
    max_replicas: int
    num_layers: int
    num_layers_with_rank_counts: int
    invalid_slot: int
    num_shared_experts: int
    host_bytes: int


class _DeviceArray:
    """Device memory of a dispatch, for PyTorch, CuPy and Numba."""

    def __init__(self, owner: Handle, pointer: Any, shape: tuple[int, ...]) -> None:
        self.owner = owner
        self._owned = owner._pointer
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": "<i4",
            "data": (int(ffi.cast("uintptr_t", pointer)), True),
            "strides": None,
            "stream": None,
        }


class Dispatch(Handle):
    """Routes expert ids to slot ids: `eplb_dispatch`, docs/routing.md.

    On the host any number of threads may route at once. A CUDA device is used through the driver alone.

    Args:
        placement: the placement to serve; may be destroyed afterwards
        rank: this rank of the expert-parallel group
        experts_per_token: ids per token (the router's top-k), those of shared experts included
        layer_ids: [layers], layers that this rank routes; None: all of the placement
        device: DEVICE_HOST, DEVICE_CURRENT, or the ordinal of a CUDA device
        rule: the routing rule, such as "least_loaded"
        offset_by_rank: for ROUND_ROBIN, start at another replica on each rank
        max_replicas: width of the dense map of `tables()`; 0: no dense map
        rank_to_node: [num_ranks], the node of each rank, for NEAREST; None: all ranks share a node
        invalid_slot: the slot of padding and ids out of range, negative or from num_slots on; 0: num_slots
        shared_slot_ids: [shared experts], where this rank finds the fused shared experts; None: there are none
        live: the tables may change, by the calls below `tables()`
    """

    def __init__(
        self,
        placement: Placement,
        rank: int,
        *,
        experts_per_token: int,
        layer_ids: HostArray | None = None,
        device: int = DEVICE_HOST,
        rule: Rule | str = Rule.DEFAULT,
        offset_by_rank: bool = False,
        max_replicas: int = 0,
        rank_to_node: HostArray | None = None,
        invalid_slot: int = 0,
        shared_slot_ids: HostArray | None = None,
        live: bool = False,
    ) -> None:
        served = pointer_of(Placement, placement)
        layers = _arrays.optional_integers(layer_ids, "layer_ids", numpy.int32, "[layers]")
        shared = _arrays.optional_integers(shared_slot_ids, "shared_slot_ids", numpy.int32, "[shared experts]")
        config = Struct(
            "eplb_dispatch_config",
            rank=rank,
            num_ranks=placement.num_ranks,
            experts_per_token=experts_per_token,
            layer_ids=layers,
            num_layers=0 if layers is None else len(layers),
            device=device,
            rule=constant(Rule, rule, "rule"),
            offset_by_rank=bool(offset_by_rank),
            max_replicas=max_replicas,
            rank_to_node=_arrays.per_rank(rank_to_node, "rank_to_node", numpy.int32, placement.num_ranks),
            invalid_slot=invalid_slot,
            num_shared_experts=0 if shared is None else len(shared),
            shared_slot_ids=shared,
            live=bool(live),
        )
        dispatch = ffi.new("eplb_dispatch **")
        call(lib.eplb_dispatch_create, served, config.pointer, dispatch)
        super().__init__(dispatch[0], lib.eplb_dispatch_destroy)
        self._device = device
        self._experts_per_token = experts_per_token
        self._rank_counts: dict[int, Any] = {}

    def route(
        self,
        layer: int,
        expert_ids: Any,
        slot_ids: Any = None,
        *,
        num_valid: Any = None,
        stream: Any = None,
    ) -> Any:
        """Routes the tokens of a layer to slots, and returns slot_ids: `eplb_dispatch_route()`.

        Arrays are used in place, without a copy: of NumPy or tensors on the CPU for a dispatch on the host, objects
        with __cuda_array_interface__ or DLPack for one on a CUDA device. Rows may be further apart than they are long.
        On a device the call returns at once. The arrays must live until its work is done, as for any kernel.

        Args:
            layer: the layer's number
            expert_ids: [tokens][experts_per_token], int32 or int64, the router's choice; -1 is padding
            slot_ids: [tokens][experts_per_token], int32 or int64, receives the slots; may be expert_ids. On the host
                None makes a new array of NumPy, of expert_ids' dtype
            num_valid: valid tokens; on a CUDA device an int32 array there. None: all
            stream: on a CUDA device, the stream to order the work on: a cudaStream_t as a number, or a stream of
                PyTorch, CuPy or Numba. None: the legacy default stream
        """
        handle = self._pointer
        source, dtype, row_stride = _ids.ids(expert_ids, "expert_ids", self._experts_per_token, self._device)
        if slot_ids is None:
            if self._device != DEVICE_HOST:
                raise refuse("slot_ids is None; pass an array on the device that receives the slots")
            slot_ids = numpy.empty(source.shape, source.typestr)
        target, slot_dtype, slot_stride = _ids.ids(slot_ids, "slot_ids", self._experts_per_token, self._device)
        if not target.writable:
            raise refuse("slot_ids is read-only; pass an array that may be written")
        if target.shape[0] != source.shape[0]:
            raise refuse(f"slot_ids has {target.shape[0]} rows, and expert_ids has {source.shape[0]} tokens")
        same = (source.pointer, dtype, row_stride) == (target.pointer, slot_dtype, slot_stride)
        if not same and _ids.overlap(source, target):
            raise refuse("slot_ids overlaps expert_ids: pass the same array for both, or one of its own")
        valid, kept = self._num_valid(num_valid)
        call(
            lib.eplb_dispatch_route,
            handle,
            layer,
            ffi.new("eplb_expert_ids *", [ffi.cast("void *", source.pointer), dtype, row_stride]),
            source.shape[0],
            valid,
            ffi.new("eplb_slot_ids *", [ffi.cast("void *", target.pointer), slot_dtype, slot_stride]),
            _ids.stream_pointer(stream),
        )
        del kept
        return slot_ids

    def _num_valid(self, num_valid: Any) -> tuple[Any, Any]:
        """The address of a number of valid tokens, and what keeps it alive."""
        if num_valid is None:
            return ffi.NULL, None
        if isinstance(num_valid, (int, numpy.integer)):
            if self._device != DEVICE_HOST:
                raise refuse("num_valid is a number; a dispatch on a CUDA device reads it there: pass an int32 array")
            if not 0 <= num_valid < 2**31:
                raise refuse(f"num_valid is {num_valid}; pass a number of tokens")
            number = ffi.new("int32_t *", int(num_valid))
            return number, number
        data = _ids.placed(_ids.buffer(num_valid, "num_valid"), "num_valid", self._device)
        if data.typestr != "<i4" or data.num_bytes != 4 or data.pointer % 4:
            raise refuse(f"num_valid has dtype {data.typestr} and shape {list(data.shape)}; pass one int32")
        return ffi.cast("int32_t *", data.pointer), data

    def register_rank_counts(self, layer: int, rank_counts: Any) -> None:
        """Registers the buffer that holds all ranks' counts when a layer is routed, for LEAST_LOADED.

        This object keeps the buffer alive. Not concurrent with other calls: `eplb_dispatch_register_rank_counts()`.

        Args:
            layer: the layer's number
            rank_counts: [num_ranks][experts], int32 or int64, ids of each rank's tokens that name each expert, on the
                device of the dispatch; None: none
        """
        if rank_counts is None:
            call(lib.eplb_dispatch_register_rank_counts, self._pointer, layer, ffi.NULL, 0)
            self._rank_counts.pop(layer, None)
            return
        data = _ids.placed(_ids.buffer(rank_counts, "rank_counts"), "rank_counts", self._device)
        dtype = _ids.dtype_of(data, "rank_counts")
        shape = (self.info.num_ranks, self.info.num_experts)
        if data.shape != shape or data.strides != _ids.packed(shape):
            raise refuse(f"rank_counts has shape {list(data.shape)}; pass a contiguous array {list(shape)}")
        call(lib.eplb_dispatch_register_rank_counts, self._pointer, layer, ffi.cast("void *", data.pointer), dtype)
        self._rank_counts[layer] = data

    def tables(self, layer: int) -> Tables:
        """Returns a layer's tables, memory of this object: `eplb_dispatch_get_tables()`.

        Args:
            layer: the layer's number
        """
        tables = Struct("eplb_dispatch_tables")
        call(lib.eplb_dispatch_get_tables, self._pointer, layer, tables.pointer)
        array: Any = view if self._device == DEVICE_HOST else _DeviceArray
        experts = (int(tables.num_experts),)
        dense = None
        if tables.expert_slots != ffi.NULL:
            dense = array(self, tables.expert_slots, (*experts, int(tables.max_replicas)))
        return Tables(
            array(self, tables.replica_count, experts),
            array(self, tables.replica_start, experts),
            array(self, tables.slot_ids, (int(tables.num_slots),)),
            dense,
        )

    def stage_layer(self, plan: Plan, layer: int, *, stream: Any = None) -> None:
        """Computes the tables of a layer after a plan's next commit: `eplb_dispatch_stage_layer()`.

        Args:
            plan: the plan; not needed any more on return
            layer: one of its layer_ids
            stream: as for `route()`
        """
        handle = pointer_of(Plan, plan)
        call(lib.eplb_dispatch_stage_layer, self._pointer, handle, layer, _ids.stream_pointer(stream))

    def update_layer(self, plan: Plan, layer: int, *, stream: Any = None) -> None:
        """Stages and commits a layer in one call: `eplb_dispatch_update_layer()`.

        Args:
            plan: the plan; not needed any more on return
            layer: one of its layer_ids
            stream: as for `route()`
        """
        handle = pointer_of(Plan, plan)
        call(lib.eplb_dispatch_update_layer, self._pointer, handle, layer, _ids.stream_pointer(stream))

    def commit_layer(self, layer: int, *, stream: Any = None) -> None:
        """Puts the staged tables of a layer in force, at the same addresses: `eplb_dispatch_commit_layer()`.

        Args:
            layer: the layer's number
            stream: as for `route()`
        """
        call(lib.eplb_dispatch_commit_layer, self._pointer, layer, _ids.stream_pointer(stream))

    def generation(self, layer: int) -> int:
        """Returns the generation of a layer: 1 after creation, and one more with each commit or update.

        Args:
            layer: the layer's number
        """
        generation = ffi.new("uint64_t *")
        call(lib.eplb_dispatch_get_generation, self._pointer, layer, generation)
        return int(generation[0])

    def set_active_ranks(self, active: HostArray, *, stream: Any = None) -> None:
        """Routes around dead ranks at once, in all layers: `eplb_dispatch_set_active_ranks()`.

        Args:
            active: [num_ranks], 0 for a dead rank
            stream: as for `route()`
        """
        ranks = _arrays.integers(active, "active", numpy.uint8, "[num_ranks]")
        call(lib.eplb_dispatch_set_active_ranks, self._pointer, address(ranks), len(ranks), _ids.stream_pointer(stream))

    @property
    def info(self) -> DispatchInfo:
        """What this dispatch serves. It reads nothing from the device."""
        info = Struct("eplb_dispatch_info")
        call(lib.eplb_dispatch_get_info, self._pointer, info.pointer)
        numbers = {field: getattr(info, field) for field in DispatchInfo._fields}
        numbers.update(rule=Rule(info.rule))
        return DispatchInfo(**numbers)
