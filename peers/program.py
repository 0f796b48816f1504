"""What the scripts of this folder share: the program eplb, one line for each check, and modules in place of missing ones."""

import os
import subprocess
import sys
import types
from unittest.mock import MagicMock

PROGRAM = sys.argv[1]
DUMP = "data/dumps/dsv2lite-translation"  # layers 1 to 26, 64 experts, 6 per token
PACKAGES = os.environ["PYTHONPATH"]  # the Python files of the systems


def eplb(*args):
    """Runs the program. Returns what it prints, or ends this script."""
    run = subprocess.run([PROGRAM, *map(str, args)], capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"  FAILED  eplb {' '.join(map(str, args))}: {run.stderr}")
    return run.stdout


def refused(*args):
    """Runs the program, which must fail. Returns its message."""
    run = subprocess.run([PROGRAM, *map(str, args)], capture_output=True, text=True)
    if run.returncode == 0:
        sys.exit(f"  FAILED  eplb {' '.join(map(str, args))}: it was not refused")
    return run.stderr


def check(what, good):
    """Prints a line, or ends this script."""
    if not good:
        sys.exit(f"  FAILED  {what}")
    print(f"  ok  {what}")


def packages(*names):
    """Makes packages importable without their __init__.py, which would import a whole engine."""
    for name in names:
        module = types.ModuleType(name)
        module.__path__ = [f"{PACKAGES}/{name.replace('.', '/')}"]
        sys.modules[name] = module


def stand_in(*names):
    """Puts modules in place that have any attribute. The code under test only imports them."""
    for name in names:
        sys.modules[name] = MagicMock(name=name)
