#!/bin/sh
# Makes the wheel, installs it in a fresh environment of each PYTHON, with nothing but cffi and numpy, and runs its tests there:
# check_wheel.sh [PYTHON ...], python3 by default. --all: also Python 3.9, the oldest, and the newest that is on the PATH or of
# pyenv, with the newest cffi and NumPy that they take. Checks platform tag, types and bytes, too.
set -eu
cd "$(dirname "$0")/.."

# Prints the path of a Python 3.MINOR that starts.
find_python() { # MINOR
    for candidate in "$(command -v "python3.$1" || true)" "${PYENV_ROOT:-$HOME/.pyenv}/versions/3.$1".*/bin/python3; do
        if [ -x "$candidate" ] && "$candidate" -c 'import ensurepip, ssl, venv' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}
pinned="cffi==2.0.0 numpy==2.4.6;python_version>='3.11'"
if [ "${1:-}" = --all ]; then
    pinned=
    set -- python3
    oldest=$(find_python 9)
    if [ -n "$oldest" ]; then
        set -- "$@" "$oldest"
    else
        echo "not tested with Python 3.9, the oldest: install it, or pyenv install 3.9"
    fi
    for minor in 20 19 18 17 16 15 14 13 12 11 10; do
        newest=$(find_python $minor)
        [ -z "$newest" ] || break
    done
    if [ "$(python3 -c 'import sys; print(sys.version_info.minor)')" -lt "$minor" ] && [ -n "$newest" ]; then
        set -- "$@" "$newest"
    else
        echo "not tested with a Python newer than python3: none found"
    fi
fi
[ $# -gt 0 ] || set -- python3
scripts/need.sh cmake:cmake g++:g++ libgtest-dev:/usr/include/gtest/gtest.h valgrind:valgrind \
    nlohmann-json3-dev:/usr/include/nlohmann/json.hpp openmpi-bin:mpirun libopenmpi-dev:mpicxx
scripts/wheel.sh
wheel=$(echo "$PWD"/build/wheel/eplb-*.whl)
tools=$(scripts/wheel_tools.sh)
work=$PWD/build/wheel/check
rm -rf "$work"
mkdir -p "$work"

"$tools" -m auditwheel show "$wheel" >"$work/audit.txt"
tr '\n' ' ' <"$work/audit.txt" | grep -q 'consistent with the following platform tag: "manylinux_2_17_' || {
    cat "$work/audit.txt" >&2
    exit 1
}
echo "auditwheel: manylinux_2_17"

# From the sdist, with the same tree, comes the same wheel.
tar -C "$work" -xzf build/wheel/eplb-*.tar.gz
(
    cd "$work"/eplb-*/
    EPLB_TREE=$PWD/../../tree EPLB_PLATFORM=$(echo "$wheel" | sed 's/.*-none-\(.*\)\.whl/\1/')
    export EPLB_TREE EPLB_PLATFORM
    cargo metadata --locked --offline --no-deps --format-version 1 >/dev/null
    PYTHONPATH=python "$tools" -c 'import backend, sys; backend.build_wheel(sys.argv[1])' "$work"
)
cmp "$wheel" "$work/$(basename "$wheel")"
echo "the sdist makes the same wheel"

# A driver over host memory, for the tests of CUDA.
cmake -S cpp_tests -B build/wheel/cpp -Wno-dev -DEPLB_VALGRIND=OFF -DEPLB_MPI=OFF >/dev/null
cmake --build build/wheel/cpp --target fake_cuda >/dev/null

for python in "$@"; do
    venv=$work/$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    rm -rf "$venv"
    "$python" -m venv "$venv"
    echo "$pinned" | tr ' ' '\n' >"$work/constraints.txt"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --constraint "$work/constraints.txt" "$wheel"
    packages=$("$venv/bin/pip" list --disable-pip-version-check --format freeze | grep -vE '^(pip|setuptools)=' | tr '\n' ' ')
    echo "${venv##*/}: $packages"
    PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" -m unittest discover -s python/tests
    for streams in immediate deferred; do
        PYTHONDONTWRITEBYTECODE=1 EPLB_TEST_DEVICE=cuda EPLB_FAKE_CUDA=$streams \
            LD_LIBRARY_PATH=$PWD/build/wheel/cpp/fake_cuda/lib "$venv/bin/python" python/tests/test_cuda.py 2>"$work/log" || {
            cat "$work/log" >&2
            exit 1
        }
    done
    echo "tests of CUDA over fake_cuda: $(grep '^Ran' "$work/log")"
    "$tools" -m mypy --strict --cache-dir "$work/mypy" --python-executable "$venv/bin/python" python/tests/typed_sample.py
done
