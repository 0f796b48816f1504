"""python -m eplb: the program eplb. --cmake-dir prints the folder of the CMake files instead.

cmake -Deplb_DIR=$(python -m eplb --cmake-dir) ...
"""

import os
import sys

from ._library import SDK


def main() -> None:
    """Becomes the program, with the arguments of this process."""
    if sys.argv[1:] == ["--cmake-dir"]:
        print(SDK / "lib" / "cmake" / "eplb")
        return
    program = str(SDK / "bin" / "eplb")
    try:
        os.execv(program, ["eplb", *sys.argv[1:]])
    except OSError as error:
        sys.exit(f"{program} does not start: {error}: reinstall eplb")


main()
