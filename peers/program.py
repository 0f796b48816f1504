"""What the scripts of this folder share: they run the program eplb and print one line for each check."""

import subprocess
import sys

PROGRAM = sys.argv[1]
DUMP = "data/dumps/dsv2lite-translation"  # 26 layers, 64 experts, 4 ranks


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
