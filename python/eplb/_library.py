"""The loaded library, its structs, and its handles."""

from __future__ import annotations

import os
import pathlib
from typing import Any, TypeVar, Union

import numpy

from ._constants import EplbError, Status
from ._header import DEFAULTS
from ._header import ffi as ffi

SDK = pathlib.Path(__file__).resolve().parent / "sdk"
Path = Union[str, "os.PathLike[str]"]


def _load() -> Any:
    name = next((path.name for path in sorted((SDK / "lib").glob("libeplb.so.*"))), "libeplb.so")
    library = ffi.dlopen(str(SDK / "lib" / name))
    if library.eplb_abi_version() != library.EPLB_ABI_VERSION:
        raise ImportError(
            f"{SDK / 'lib' / name} has version {library.eplb_abi_version()} of the binary interface, and this package "
            f"was built for {library.EPLB_ABI_VERSION}: reinstall eplb"
        )
    return library


lib = _load()
_C_ARRAYS = {"<i4": "int32_t[]", "<i8": "int64_t[]", "<f8": "double[]", "|u1": "uint8_t[]", "<u4": "uint32_t[]"}
__version__: str = ffi.string(lib.eplb_version_string()).decode()


def cuda_available() -> bool:
    """Returns whether a `Dispatch` can be created on a CUDA device: a driver, 525 or newer, with a device."""
    return bool(lib.eplb_cuda_available())


def refuse(message: str) -> EplbError:
    """Returns the exception for an argument that never reaches the library."""
    return EplbError(Status.INVALID_ARGUMENT, message)


def check(status: int) -> None:
    """Raises the message of this thread's failed call."""
    if status != Status.OK:
        message = ffi.string(lib.eplb_last_error_message()).decode(errors="replace")
        raise EplbError(Status(status) if status in Status._value2member_map_ else Status.INTERNAL, message)


def call(function: Any, *arguments: Any) -> None:
    """Calls the library, without the GIL, and raises if it fails."""
    try:
        status = function(*arguments)
    except (TypeError, OverflowError) as error:
        raise refuse(f"an argument has a wrong type, or is out of range: {error}") from None
    check(status)


class Struct:
    """A struct of the headers that begins with struct_size, and all that it points to.

    A field takes a number, a path, an array of the field's type, or None for the default.
    """

    def __init__(self, name: str, **fields: Any) -> None:
        # Keeps alive what the struct points to.
        self._taken = {field: _taken(value) for field, value in fields.items() if value is not None}
        size = ffi.sizeof(name)
        try:
            self.pointer = ffi.new(f"{name} *", {"struct_size": size, **DEFAULTS.get(name, {}), **self._taken})
        except (TypeError, OverflowError):
            for field, value in self._taken.items():
                try:
                    ffi.new(f"{name} *", {field: value})
                except (TypeError, OverflowError) as error:
                    raise refuse(f"{field} is {fields[field]!r}: {error}") from None
            raise

    def __getattr__(self, field: str) -> Any:
        return getattr(self.pointer, field)


def _taken(value: Any) -> Any:
    """What a field of a struct is set to."""
    if isinstance(value, numpy.ndarray):
        return address(value)
    if isinstance(value, (str, os.PathLike)):
        return ffi.new("char[]", encoded(value))
    return value


def encoded(path: Path) -> bytes:
    """Returns a path as the C string that the library takes."""
    try:
        text = os.fsencode(path)
    except TypeError:
        raise refuse(f"{path!r} is no path: pass a str or a pathlib.Path") from None
    if b"\0" in text:
        raise refuse(f"the path {path!r} has a NUL character")
    return text


def address(array: numpy.ndarray[Any, Any]) -> Any:
    """Returns the address of a contiguous array's first element. It keeps the array alive."""
    return ffi.from_buffer(_C_ARRAYS[array.dtype.str], array)


Self = TypeVar("Self", bound="Handle")


class Handle:
    """An object of the library. `destroy()`, leaving a `with` block, or the last reference releases it."""

    def __init__(self, pointer: Any, destroy: Any) -> None:
        # Views of the handle's arrays share this object, so they stay valid after destroy().
        self._owned: Any | None = ffi.gc(pointer, destroy)

    @property
    def _pointer(self) -> Any:
        if self._owned is None:
            raise refuse(f"this {type(self).__name__} was destroyed: create or load it again")
        return self._owned

    def destroy(self) -> None:
        """Releases this object; later calls on it raise. Arrays that it returned stay valid until they are dropped."""
        self._owned = None

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()


def pointer_of(kind: type[Handle], value: Any) -> Any:
    """Returns the pointer of an argument that must be a live object of a class."""
    if not isinstance(value, kind):
        raise refuse(f"{value!r} is no {kind.__name__}")
    return value._pointer


class _Memory:
    """Memory of a handle, as numpy sees it: `array.base.owner` is the object that owns the array."""

    def __init__(self, owner: Handle, pointer: Any, shape: tuple[int, ...], dtype: str) -> None:
        self.owner = owner
        self._owned = owner._pointer
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": dtype,
            "data": (int(ffi.cast("uintptr_t", pointer)), True),
        }


def view(owner: Handle, pointer: Any, shape: tuple[int, ...], dtype: str = "<i4") -> numpy.ndarray[Any, Any]:
    """Returns a read-only array of memory that a handle owns."""
    if 0 in shape or pointer == ffi.NULL:
        return numpy.zeros(shape, dtype)
    return numpy.asarray(_Memory(owner, pointer, shape, dtype))
