"""The generated module: cffi's tables of the headers."""

from typing import Any

ffi: Any
DEFAULTS: dict[str, dict[str, int]]
