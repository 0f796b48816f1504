"""Counts of a dump, of arrays, or of another system's file."""

from __future__ import annotations

from typing import Any

import numpy

from . import _arrays
from ._arrays import Array, HostArray
from ._constants import FileFormat, IdKind, constant
from ._library import Handle, Path, Struct, address, call, encoded, ffi, lib, refuse, view


def file_options(
    file_format: FileFormat | str,
    num_model_layers: int,
    layer_ids: HostArray | None,
    **fields: Any,
) -> Struct:
    """An eplb_file_options."""
    layers = _arrays.optional_integers(layer_ids, "layer_ids", numpy.int32, "[layers]")
    return Struct(
        "eplb_file_options",
        format=constant(FileFormat, file_format, "file_format"),
        num_model_layers=num_model_layers,
        layer_ids=layers,
        num_layers=0 if layers is None else len(layers),
        **fields,
    )


class Stats(Handle):
    """The counts of a dump, of arrays, or of a file of another system, summed over ranks. Immutable: `eplb_stats`.

    Made by `Stats.load()`, `Stats.load_file()` and `Stats.create()`. Any number of threads may use it at once.
    """

    def __init__(self, pointer: Any) -> None:
        super().__init__(pointer, lib.eplb_stats_destroy)
        self._info = Struct("eplb_stats_info")
        call(lib.eplb_stats_get_info, pointer, self._info.pointer)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        iter_start: int = 0,
        iter_stop: int = 0,
        allow_missing_ranks: bool = False,
        expected_ranks: int = 0,
        num_threads: int = 0,
    ) -> Stats:
        """Loads the dump in a directory, meta_info.json and one rank<R>.safetensors a rank: `eplb_stats_load()`.

        Args:
            path: the directory
            iter_start: first iteration to read; 0: the dump's first
            iter_stop: one past the last iteration to read; 0: to the dump's end
            allow_missing_ranks: accept a dump that lacks the files of some ranks
            expected_ranks: files of all ranks and pipeline stages, to detect missing ones; 0: as in the dump
            num_threads: threads that read; 0: one a core, at most 8
        """
        options = Struct(
            "eplb_stats_options",
            iter_start=iter_start,
            iter_stop=iter_stop,
            allow_missing_ranks=bool(allow_missing_ranks),
            num_threads=num_threads,
            expected_ranks=expected_ranks,
        )
        stats = ffi.new("eplb_stats **")
        call(lib.eplb_stats_load, encoded(path), options.pointer, stats)
        return cls(stats[0])

    @classmethod
    def load_file(
        cls,
        path: Path,
        file_format: FileFormat | str = FileFormat.DETECT,
        *,
        layer_ids: HostArray | None = None,
        num_experts: int = 0,
        experts_per_token: int = 0,
    ) -> Stats:
        """Loads counts from a file of another system, or from a dump: `eplb_stats_load_file()`, docs/exchange.md.

        Args:
            path: the file, or the directory of a dump or of a recording with a file a rank
            file_format: the format of counts; a bare array needs it
            layer_ids: [layers], layers to read, which name the rows of a file with as many; None: all
            num_experts: experts of a layer; 0: as in the file
            experts_per_token: experts per token; 0: as in the file
        """
        options = file_options(file_format, 0, layer_ids, num_experts=num_experts, experts_per_token=experts_per_token)
        stats = ffi.new("eplb_stats **")
        call(lib.eplb_stats_load_file, encoded(path), options.pointer, stats)
        return cls(stats[0])

    @classmethod
    def create(
        cls,
        counts: HostArray,
        *,
        layer_ids: HostArray | None = None,
        experts_per_token: int = 0,
        num_ranks: int = 1,
        id_kind: IdKind | str = IdKind.EXPERT,
        iter_start: int = 0,
    ) -> Stats:
        """Creates statistics from arrays, as of an engine with counters of its own: `eplb_stats_create()`.

        Args:
            counts: [iterations][layers][experts] or [layers][experts], whole numbers of ids, summed over ranks. Copied
            layer_ids: [layers], the layers' numbers; None: 0 to layers - 1
            experts_per_token: experts per token; 0: unknown
            num_ranks: ranks whose counts were summed
            id_kind: what the counts are of
            iter_start: the first iteration
        """
        array = _arrays.host(counts, "counts")
        if array.dtype.kind == "f":
            raise refuse(f"counts has dtype {array.dtype}; counts are whole numbers: pass .astype(numpy.int64)")
        array = _arrays.integers(array, "counts", numpy.int64, "[iterations][layers][experts]", "[layers][experts]")
        num_layers, num_experts = array.shape[-2:]
        config = Struct(
            "eplb_stats_config",
            num_experts=num_experts,
            experts_per_token=experts_per_token,
            num_ranks=num_ranks,
            id_kind=constant(IdKind, id_kind, "id_kind"),
            layer_ids=_arrays.layer_numbers(layer_ids, num_layers),
            num_layers=num_layers,
            iter_start=iter_start,
            num_iterations=array.shape[0] if array.ndim == 3 else 1,
            dtype=lib.EPLB_DTYPE_INT64,
        )
        stats = ffi.new("eplb_stats **")
        call(lib.eplb_stats_create, config.pointer, address(array), stats)
        return cls(stats[0])

    def save_file(
        self,
        path: Path,
        file_format: FileFormat | str,
        *,
        num_model_layers: int = 0,
        layer_ids: HostArray | None = None,
        experts_per_token: int = 0,
        sum_iterations: bool = False,
    ) -> None:
        """Saves counts to a file of another system, or as a dump of one rank: `eplb_stats_save_file()`.

        Args:
            path: the file; for a dump a directory without one
            file_format: a format of counts other than SGLANG_PT
            num_model_layers: layers of the model including dense ones; 0: up to the last layer with experts
            layer_ids: [layers], layers to write; None: all
            experts_per_token: experts per token, where the counts do not say it and a dump has to
            sum_iterations: write the counts summed over all iterations
        """
        options = file_options(
            file_format,
            num_model_layers,
            layer_ids,
            experts_per_token=experts_per_token,
            sum_iterations=bool(sum_iterations),
        )
        call(lib.eplb_stats_save_file, self._pointer, encoded(path), options.pointer)

    def layer_loads(self, layer: int, num_samples: int = 1) -> Array:
        """Returns the loads of one layer, float64 [samples][experts], in ids: `eplb_stats_layer_loads()`.

        Args:
            layer: the layer's number
            num_samples: 1: the sum of all iterations; num_rows: each row; between: consecutive rows, summed
        """
        loads = numpy.empty((_positive(num_samples, "num_samples"), self.num_experts))
        call(lib.eplb_stats_layer_loads, self._pointer, layer, num_samples, self.num_experts, address(loads))
        return loads

    def loads(self, num_samples: int = 1) -> Array:
        """Returns the loads of all layers, float64 [layers][samples][experts], in ids.

        Args:
            num_samples: as for `layer_loads()`
        """
        loads = numpy.empty((self.num_layers, _positive(num_samples, "num_samples"), self.num_experts))
        for layer, samples in zip(self.layer_ids.tolist(), loads):
            samples[...] = self.layer_loads(layer, num_samples)
        return loads

    @property
    def num_experts(self) -> int:
        """Experts of a layer; of slot ids, slots of all ranks together."""
        return int(self._info.num_experts)

    @property
    def experts_per_token(self) -> int:
        """Experts per token; 0 if the source does not say it."""
        return int(self._info.experts_per_token)

    @property
    def num_ranks(self) -> int:
        """Ranks of expert parallelism, including missing ones; 0 if pipeline stages have different numbers."""
        return int(self._info.num_ranks)

    @property
    def id_kind(self) -> IdKind:
        """What the ids name; EXPERT also for a dump that does not say it."""
        return IdKind(self._info.id_kind)

    @property
    def iter_start(self) -> int:
        """The first iteration."""
        return int(self._info.iter_start)

    @property
    def iter_stop(self) -> int:
        """One past the last iteration."""
        return int(self._info.iter_stop)

    @property
    def iter_bucket(self) -> int:
        """Counted iterations that each row of counts adds up; the last row may have fewer."""
        return int(self._info.iter_bucket)

    @property
    def iter_stride(self) -> int:
        """Distance of two counted iterations, in iterations."""
        return int(self._info.iter_stride)

    @property
    def num_rows(self) -> int:
        """Rows of counts, mostly one an iteration."""
        return int(self._info.num_rows)

    @property
    def num_layers(self) -> int:
        """Layers with counts."""
        return int(self._info.num_layers)

    @property
    def layer_ids(self) -> Array:
        """The layers' numbers, ascending: int32 [layers], read-only memory of this object."""
        return view(self, self._info.layer_ids, (self.num_layers,))

    @property
    def missing_ranks(self) -> Array:
        """Numbers R of missing files, ascending: int32 [missing ranks], read-only memory of this object."""
        return view(self, self._info.missing_ranks, (int(self._info.num_missing_ranks),))

    def __repr__(self) -> str:
        if self._owned is None:
            return "<eplb.Stats, destroyed>"
        return (
            f"<eplb.Stats: {self.num_layers} layers x {self.num_experts} {self.id_kind.name.lower()}s, iterations "
            f"{self.iter_start} to {self.iter_stop - 1}>"
        )


def _positive(number: int, name: str) -> int:
    if not isinstance(number, (int, numpy.integer)) or not 0 < number < 2**31:
        raise refuse(f"{name} is {number!r}; pass a whole number, 1 or more")
    return int(number)
