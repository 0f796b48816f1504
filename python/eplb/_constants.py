"""The constants of the headers."""

from __future__ import annotations

import enum
from typing import TypeVar

DEVICE_HOST = -1
"""Device: host memory. No CUDA driver is needed."""

DEVICE_CURRENT = -2
"""Device: the CUDA context that is current on the thread that creates the handle."""


class Status(enum.IntEnum):
    """How a call ended: `EPLB_STATUS_...`. A number never changes its meaning."""

    OK = 0
    INVALID_ARGUMENT = 1
    CANCELLED = 2
    OUT_OF_MEMORY = 3
    SYSTEM = 4
    INTERNAL = 5
    NOT_READY = 6
    READ_FAILED = 10
    WRITE_FAILED = 11
    INVALID_DUMP = 20
    INCOMPLETE_DUMP = 21
    INVALID_SHAPE = 30
    INVALID_LOADS = 31
    INVALID_PLACEMENT = 40
    NO_DRIVER = 50
    CUDA = 51
    CAPTURING = 52
    STALE = 60
    NO_REPLICA = 61


class EplbError(Exception):
    """The one exception of this package: what is wrong, where, and what to do.

    Attributes:
        status: why the call failed, without a unit. Arguments that Python refuses have `Status.INVALID_ARGUMENT`.
    """

    status: Status

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type[EplbError], tuple[Status, str]]:
        return type(self), (self.status, str(self))


class Policy(enum.IntEnum):
    """A policy: how replicas and slots are assigned. `EPLB_POLICY_...`."""

    DEFAULT = 0
    TRTLLM = 1
    DEEPSEEK_GLOBAL = 2
    DEEPSEEK_HIERARCHICAL = 3
    SEARCH = 4


class Objective(enum.IntEnum):
    """What the search minimises: the most loaded rank under an even split or the best one. `EPLB_OBJECTIVE_...`."""

    EVEN_SPLIT = 0
    BEST_SPLIT = 1


class Rule(enum.IntEnum):
    """A routing rule: which of an expert's slots serves an id. `EPLB_RULE_...`; docs/routing.md defines each."""

    DEFAULT = 0
    ROUND_ROBIN = 1
    TOKEN_HASH = 2
    NEAREST = 3
    LEAST_LOADED = 4


class IdKind(enum.IntEnum):
    """What ids and counts are of: experts as the router chose them, or slots. `EPLB_ID_KIND_...`."""

    EXPERT = 0
    SLOT = 1


class Phase(enum.IntEnum):
    """A phase of `generate()`: reading in bytes, solving in layers, writing in files. `EPLB_PHASE_...`."""

    READ = 0
    SOLVE = 1
    WRITE = 2


class FileFormat(enum.IntEnum):
    """A file of another system: counts below 100, placements from 100 on. `EPLB_FILE_FORMAT_...`; docs/exchange.md."""

    DETECT = 0
    DUMP = 1
    SGLANG_COUNT = 2
    SGLANG_PT = 3
    LMDEPLOY = 4
    NPY = 5
    CONFIG = 100
    SGLANG_MAP = 101
    EXPERT_MAP = 102
    PHY2LOG_NPY = 103
    PHY2LOG_JSON = 104


class MissingLayers(enum.IntEnum):
    """What `Placement.load()` does about a layer that the file lacks. `EPLB_MISSING_LAYERS_...`."""

    REFUSE = 0
    COPY_LAST = 1
    SEQUENTIAL = 2


class IssueKind(enum.IntEnum):
    """What is wrong with a slot: it repeats an expert of its own rank. `EPLB_ISSUE_KIND_...`."""

    DUPLICATE_ON_RANK = 1


class Buffering(enum.IntEnum):
    """Where experts go that arrive before the table of their layer changes. `EPLB_BUFFERING_...`; docs/live.md."""

    STAGED = 0
    IN_PLACE = 1
    DRAIN = 2


class Decision(enum.IntEnum):
    """What a plan is for: nothing moves, or layers change. `EPLB_DECISION_...`."""

    KEEP = 0
    MOVE = 1


class KeepReason(enum.IntEnum):
    """Why a plan moves nothing. `EPLB_KEEP_REASON_...`; docs/live.md."""

    NONE = 0
    SAME = 1
    IN_FLIGHT = 2
    NO_COUNTS = 3
    FEW_TOKENS = 4
    COOLDOWN = 5
    BALANCED = 6
    NOISE = 7
    SMALL_GAIN = 8
    NO_MOVE = 9


class TransferKind(enum.IntEnum):
    """How a transfer reaches its slot. `EPLB_TRANSFER_KIND_...`; docs/live.md."""

    LOCAL = 0
    NODE = 1
    REMOTE = 2
    HOST = 3


Constant = TypeVar("Constant", bound=enum.IntEnum)


def constant(kind: type[Constant], value: Constant | str, name: str) -> Constant:
    """Returns a constant by itself or by its name, such as "search" or "deepseek-global"."""
    if isinstance(value, kind):
        return value
    if isinstance(value, str):
        found = kind.__members__.get(value.upper().replace("-", "_"))
        if found is not None:
            return found
    names = ", ".join(f'"{member.lower()}"' for member in kind.__members__)
    raise EplbError(Status.INVALID_ARGUMENT, f"{name} is {value!r}; pass one of {names}, or a {kind.__name__}")
