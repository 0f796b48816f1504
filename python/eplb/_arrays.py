"""Arrays of the caller: what the library takes of NumPy, PyTorch and others, without importing any of them but NumPy."""

from __future__ import annotations

from typing import Any, Union, cast

import numpy
import numpy.typing as npt

from ._library import refuse

Array = npt.NDArray[Any]
HostArray = Union[npt.ArrayLike, Any]
"""An array in host memory: NumPy's, a tensor on the CPU, anything with DLPack, or nested lists."""

# DLPack's numbers of device types that the host reads: kDLCPU, kDLCUDAHost, kDLROCMHost.
HOST_DEVICES = (1, 3, 11)


def device_type(value: Any) -> int | None:
    """Returns DLPack's device type; None if the object has none."""
    try:
        return int(value.__dlpack_device__()[0])
    except Exception:  # a tensor of a device that DLPack does not know
        return None


def cuda_interface(value: Any, name: str) -> Any:
    """Returns __cuda_array_interface__; None if the object has none."""
    try:
        return getattr(value, "__cuda_array_interface__", None)
    except Exception as error:  # as of a tensor that requires a gradient
        raise refuse(f"{name} cannot be exported: {error}") from None


def is_on_gpu(value: Any, name: str) -> bool:
    """Returns whether an object is an array in memory of a GPU or another accelerator."""
    if isinstance(value, numpy.ndarray):
        return False
    if cuda_interface(value, name) is not None:
        return True
    return hasattr(value, "__dlpack__") and device_type(value) not in HOST_DEVICES


def host(value: HostArray, name: str) -> Array:
    """Returns an array in host memory as NumPy's, without a copy where there is one."""
    if type(value) is numpy.ndarray:
        return value
    if getattr(value, "is_cpu", None) is True:  # a tensor of PyTorch, for which the ways below take longer
        try:
            return cast(Array, cast(Any, value).numpy())
        except Exception as error:
            raise refuse(f"{name} is no array: {error}") from None
    if is_on_gpu(value, name):
        raise refuse(
            f"{name} is on a GPU or another device: copy it to the host first, by .cpu() of PyTorch or .get() of CuPy"
        )
    if isinstance(value, numpy.ma.MaskedArray):
        raise refuse(f"{name} is a masked array: say what its masked values are, by .filled(0)")
    try:
        if not isinstance(value, numpy.ndarray) and hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return numpy.from_dlpack(cast(Any, value))
        return numpy.asarray(value)
    except Exception as error:
        raise refuse(f"{name} is no array: {error}") from None


def shaped(array: Array, name: str, *shapes: str) -> Array:
    """Refuses an array with another number of dimensions than those of `shapes`, such as "[layers][experts]"."""
    if array.ndim not in [shape.count("[") for shape in shapes]:
        raise refuse(f"{name} has shape {list(array.shape)}; pass {' or '.join(shapes)}")
    return array


def loads(value: HostArray, name: str, *shapes: str) -> Array:
    """Returns loads as contiguous float64. Numbers that a double does not hold exactly are refused."""
    array = shaped(host(value, name), name, *shapes)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "iuf" or size > 8:
        raise refuse(f"{name} has dtype {array.dtype}; pass numbers, such as numpy.float64 or numpy.int64")
    if kind in "iu" and size == 8 and array.size and (array.max() > 2**53 or (kind == "i" and array.min() < -(2**53))):
        raise refuse(f"{name} has a number above 2^53, where a double is no longer exact: divide all of them")
    return numpy.ascontiguousarray(array, numpy.float64)


def integers(value: HostArray, name: str, dtype: Any, *shapes: str) -> Array:
    """Returns whole numbers as a contiguous array of a type. Fractions and numbers out of its range are refused."""
    array = shaped(host(value, name), name, *shapes)
    if array.dtype == dtype:
        return numpy.ascontiguousarray(array)
    if array.size == 0:
        return numpy.zeros(array.shape, dtype)
    if array.dtype.kind not in "iub":
        raise refuse(f"{name} has dtype {array.dtype}; pass whole numbers, such as numpy.{numpy.dtype(dtype)}")
    limits = numpy.iinfo(dtype)
    if array.min() < limits.min or array.max() > limits.max:
        raise refuse(f"{name} has a number that {numpy.dtype(dtype)} does not hold")
    return numpy.ascontiguousarray(array, dtype)


def optional_integers(value: HostArray | None, name: str, dtype: Any, *shapes: str) -> Array | None:
    """As `integers()`, of an argument that may be None."""
    return None if value is None else integers(value, name, dtype, *shapes)


def per_rank(value: HostArray | None, name: str, dtype: Any, num_ranks: int) -> Array | None:
    """Returns an array with a number for each rank; None for None."""
    array = optional_integers(value, name, dtype, "[num_ranks]")
    if array is not None and len(array) != num_ranks:
        raise refuse(f"{name} has {len(array)} numbers, and there are {num_ranks} ranks")
    return array


def layer_numbers(value: HostArray | None, num_layers: int) -> Array:
    """Returns the numbers of layers in the order of rows; None: 0 to num_layers - 1."""
    if value is None:
        return numpy.arange(num_layers, dtype=numpy.int32)
    numbers = integers(value, "layer_ids", numpy.int32, "[layers]")
    if len(numbers) != num_layers:
        raise refuse(f"layer_ids has {len(numbers)} numbers, and there are {num_layers} layers")
    return numbers
