"""The report of a dump, as a dict, and in a notebook as a picture."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

from ._constants import EplbError, Status
from ._library import SDK, Path, refuse
from ._placement import Placement
from ._stats import Stats

PROGRAM = str(SDK / "bin" / "eplb")

# The exit codes of the program.
_STATUSES = {1: Status.INTERNAL, 2: Status.INVALID_ARGUMENT, 3: Status.READ_FAILED, 4: Status.WRITE_FAILED}


class Report(dict[str, Any]):
    """A report: the dict of `eplb report --json --per_expert`, whose keys docs/report.md lists.

    Attributes:
        svg: the picture, SVG: the load of the hottest rank above the mean, by layer, before and after. A notebook
            shows it
    """

    def __init__(self, document: dict[str, Any], svg: str) -> None:
        super().__init__(document)
        self.svg = svg

    def _repr_html_(self) -> str:
        return self.svg


def report(
    counts: Path | Stats | Sequence[Path],
    placement: None | Path | Placement = None,
    *,
    against: None | Path | Stats = None,
    num_ranks: int = 0,
    num_layers: int = 0,
    arguments: Sequence[str] = (),
) -> Report:
    """Reports the balance of counts, as recorded and with a placement. Runs the program: `eplb report`.

    Args:
        counts: directory of a dump, or of several dumps of one model, or counts
        placement: a configuration file, or a placement, to project the load onto; None: no projection
        against: counts on which the placement is compared with `counts`; None: no comparison
        num_ranks: ranks of the placement, or without one ranks to place the experts on in order; 0: as in the file
        num_layers: layers of the model including dense ones, for SGLang's balancedness; 0: up to the last one
        arguments: further flags of `eplb report`, such as ["--iter_start", "100"]
    """
    with tempfile.TemporaryDirectory(prefix="eplb-") as name:
        folder = pathlib.Path(name)
        command = [PROGRAM, "report", "--json", "--per_expert", "--svg", str(folder / "report.svg")]
        dumps = list(counts) if isinstance(counts, (list, tuple)) else [counts]
        for dump in dumps:
            command += ["--expert_statistic_path", _saved(dump, folder / "dump")]
        if placement is not None:
            if isinstance(placement, Placement):
                num_ranks = num_ranks or placement.num_ranks
            command += ["--config", _saved(placement, folder / "placement.eplb.yaml")]
        if against is not None:
            command += ["--against", _saved(against, folder / "against")]
        command += ["--ep_size", str(num_ranks)] if num_ranks else []
        command += ["--num_layers", str(num_layers)] if num_layers else []
        try:
            run = subprocess.run(
                [*command, *map(str, arguments)], capture_output=True, encoding="utf-8", errors="replace"
            )
        except OSError as error:
            raise EplbError(Status.SYSTEM, f"{PROGRAM} does not start: {error}: reinstall eplb") from None
        if run.returncode:
            message = run.stderr.strip().replace("error: ", "", 1) or f"eplb report ended with {run.returncode}"
            raise EplbError(_STATUSES.get(run.returncode, Status.INTERNAL), message)
        # Objects have no path, but the names of their files here.
        document = json.loads(run.stdout.replace(f"{name}{os.sep}", ""))
        return Report(document, (folder / "report.svg").read_text(encoding="utf-8"))


def _saved(source: Any, path: pathlib.Path) -> str:
    """The path of what is a file already, or was saved as one."""
    if isinstance(source, Placement):
        source.save(path)
    elif isinstance(source, Stats):
        source.save_file(path, "dump")
    elif isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    else:
        raise refuse(f"{source!r} is no path, Stats or Placement")
    return str(path)
