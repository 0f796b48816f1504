"""Buffers of ids and counts, on the host or on a CUDA device, that the library reads and writes in place."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy

from . import _arrays
from ._library import ffi, refuse

_pointer_of_capsule = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of_capsule.restype = ctypes.c_void_p
_pointer_of_capsule.argtypes = [ctypes.py_object, ctypes.c_char_p]

CUDA_DEVICES = (2, 13)  # kDLCUDA, kDLCUDAManaged


class _DLTensor(ctypes.Structure):
    """The beginning of DLManagedTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Buffer(NamedTuple):
    """An array of the caller. `kept` keeps it alive; strides are in items; `device_id` is None where it is unknown."""

    kept: Any
    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    typestr: str
    writable: bool
    is_on_gpu: bool
    device_id: int | None

    @property
    def itemsize(self) -> int:
        return int(self.typestr[2:])

    @property
    def num_bytes(self) -> int:
        """Bytes from the first item to the end of the last one."""
        if 0 in self.shape:
            return 0
        return (1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides))) * self.itemsize


def packed(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a contiguous array, in items."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * max(1, size))
    return tuple(strides[: len(shape)])


def buffer(value: Any, name: str) -> Buffer:
    """Returns an array of NumPy, __cuda_array_interface__ or DLPack as it lies in memory."""
    if not isinstance(value, numpy.ndarray):
        interface = _arrays.cuda_interface(value, name)
        if interface is not None:
            return _of_interface(value, interface, name)
        if _arrays.is_on_gpu(value, name):
            return _of_capsule(value, name)
        if isinstance(value, (list, tuple)):
            raise refuse(f"{name} is a {type(value).__name__}; pass an array, such as numpy.array(..., numpy.int32)")
    array = _arrays.host(value, name)
    size = array.dtype.itemsize
    if any(stride % size for stride in array.strides):
        raise refuse(f"{name} has items {list(array.strides)} bytes apart: pass numpy.ascontiguousarray({name})")
    interface = array.__array_interface__
    strides = tuple(stride // size for stride in array.strides)
    pointer, is_read_only = interface["data"]
    return Buffer(array, pointer, array.shape, strides, array.dtype.str, not is_read_only, False, None)


def _of_interface(value: Any, interface: Any, name: str) -> Buffer:
    try:
        shape, typestr = tuple(interface["shape"]), str(interface["typestr"])
        pointer, is_read_only = interface["data"]
        strides, mask = interface.get("strides"), interface.get("mask")
        size = int(typestr[2:])
    except Exception as error:
        raise refuse(f"{name} has no valid __cuda_array_interface__: {error!r}") from None
    if mask is not None:
        raise refuse(f"{name} has a mask; pass an array without one")
    if strides is not None and any(stride % size for stride in strides):
        raise refuse(f"{name} has items {list(strides)} bytes apart: make it contiguous")
    items = packed(shape) if strides is None else tuple(stride // size for stride in strides)
    device = getattr(getattr(value, "device", None), "index", getattr(getattr(value, "device", None), "id", None))
    known = device if isinstance(device, int) else None
    return Buffer(value, int(pointer or 0), shape, items, typestr, not is_read_only, True, known)


def _of_capsule(value: Any, name: str) -> Buffer:
    if _arrays.device_type(value) not in CUDA_DEVICES:
        raise refuse(f"{name} is on a device that is neither the host nor CUDA: copy it to the host first")
    try:
        # -1: the caller orders the streams.
        capsule = value.__dlpack__(stream=-1)
        tensor = _DLTensor.from_address(_pointer_of_capsule(capsule, b"dltensor") or 0)
    except Exception as error:
        raise refuse(f"{name} cannot be exported by DLPack: {error}") from None
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else packed(shape)
    typestr = f"<{'iuf'[tensor.code] if tensor.code < 3 else 'V'}{tensor.bits * tensor.lanes // 8}"
    pointer = (tensor.data or 0) + tensor.byte_offset
    # The capsule owns the tensor until it is dropped.
    return Buffer((value, capsule), pointer, shape, strides, typestr, True, True, int(tensor.device_id))


def placed(data: Buffer, name: str, device: int) -> Buffer:
    """Refuses a buffer in other memory than that of a dispatch."""
    if data.is_on_gpu and device == -1:
        raise refuse(f"{name} is on a GPU, and the dispatch on the host: create the dispatch with device=0 or another")
    if not data.is_on_gpu and device != -1:
        raise refuse(f"{name} is on the host, and the dispatch on a CUDA device: copy {name} to the device first")
    if data.is_on_gpu and device >= 0 and data.device_id not in (None, device):
        raise refuse(f"{name} is on device {data.device_id}, and the dispatch on device {device}: copy it there")
    return data


def dtype_of(data: Buffer, name: str) -> int:
    """EPLB_DTYPE_... of a buffer."""
    if data.typestr not in ("<i4", "<i8"):
        raise refuse(f"{name} has dtype {data.typestr}; pass int32 or int64 in the machine's byte order")
    if data.pointer % data.itemsize:
        raise refuse(f"{name} is not aligned to its type: pass a copy of it")
    return 0 if data.typestr == "<i4" else 1


def ids(value: Any, name: str, experts_per_token: int, device: int) -> tuple[Buffer, int, int]:
    """Returns a buffer of ids [tokens][experts_per_token], EPLB_DTYPE_... and the row stride in ids."""
    data = placed(buffer(value, name), name, device)
    dtype = dtype_of(data, name)
    if len(data.shape) != 2 or data.shape[1] != experts_per_token:
        raise refuse(f"{name} has shape {list(data.shape)}; pass [tokens][{experts_per_token}]")
    stride = data.strides[0] if data.shape[0] > 1 else experts_per_token
    if (data.strides[1] != 1 and experts_per_token > 1 and data.shape[0]) or stride < experts_per_token:
        raise refuse(
            f"{name} has strides {list(data.strides)} in items; its rows must be contiguous: pass "
            f"numpy.ascontiguousarray({name}), or .contiguous() of a tensor"
        )
    return data, dtype, stride


def overlap(first: Buffer, second: Buffer) -> bool:
    """Returns whether two buffers share memory."""
    return first.pointer < second.pointer + second.num_bytes and second.pointer < first.pointer + first.num_bytes


def stream_pointer(stream: Any) -> Any:
    """Returns a CUstream_st pointer: of None, a number, or a stream of PyTorch, CuPy, Numba or cuda.core."""
    if stream is None:
        return ffi.NULL
    number = stream
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        number = (protocol() if callable(protocol) else protocol)[1]
    elif not isinstance(stream, (int, numpy.integer)):
        for attribute in ("cuda_stream", "ptr", "handle"):
            if hasattr(stream, attribute):
                number = getattr(stream, attribute)
                break
    try:
        return ffi.cast("struct CUstream_st *", int(getattr(number, "value", number) or 0))
    except (TypeError, ValueError, OverflowError):
        raise refuse(
            f"{stream!r} is no stream; pass None, a cudaStream_t as a number, or a stream of PyTorch"
        ) from None
