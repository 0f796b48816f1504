"""Expert parallelism load balancing (EPLB) for mixture-of-experts models: the C library libeplb for Python.

A thin layer: names, arguments and rules are those of eplb.h, eplb_tools.h and eplb_live.h. docs/glossary.md defines the
terms. Shapes are in brackets, row by row. A load is a number of ids, or any measure in proportion to it. Every failure
is an `EplbError`. Long calls release the GIL. Memory that an object returns is read-only, and keeps the object alive.
"""

from . import sglang, vllm, vllm_ascend
from ._constants import (
    DEVICE_CURRENT,
    DEVICE_HOST,
    Buffering,
    Decision,
    EplbError,
    FileFormat,
    IdKind,
    IssueKind,
    KeepReason,
    MissingLayers,
    Objective,
    Phase,
    Policy,
    Rule,
    Status,
    TransferKind,
)
from ._dispatch import Dispatch, DispatchInfo, Tables
from ._drop_in import rebalance_experts
from ._evaluate import Evaluation, evaluate
from ._generate import GenerateReport, generate
from ._library import __version__, cuda_available
from ._placement import Issue, Placement
from ._plan import Plan, PlanInfo, PlannedLayer, Transfer, plan
from ._rebalancer import Rebalancer, RebalancerInfo
from ._report import Report, report
from ._solve import solve, suggest_num_slots
from ._stats import Stats

__all__ = [
    "DEVICE_CURRENT",
    "DEVICE_HOST",
    "Buffering",
    "Decision",
    "Dispatch",
    "DispatchInfo",
    "EplbError",
    "Evaluation",
    "FileFormat",
    "GenerateReport",
    "IdKind",
    "Issue",
    "IssueKind",
    "KeepReason",
    "MissingLayers",
    "Objective",
    "Phase",
    "Placement",
    "Plan",
    "PlanInfo",
    "PlannedLayer",
    "Policy",
    "Rebalancer",
    "RebalancerInfo",
    "Report",
    "Rule",
    "Stats",
    "Status",
    "Tables",
    "Transfer",
    "TransferKind",
    "__version__",
    "cuda_available",
    "evaluate",
    "generate",
    "plan",
    "rebalance_experts",
    "report",
    "sglang",
    "solve",
    "suggest_num_slots",
    "vllm",
    "vllm_ascend",
]
