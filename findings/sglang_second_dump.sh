#!/bin/sh
# SGLang 0.5.23, expert distribution recorder: the second recording of a process starts in the middle of its file.
#
# Guess: starting a recording, or dumping one, resets the recorder. So step 0 of a dump is the first forward pass.
# Seen:  both clear the buffer of --expert-distribution-recorder-buffer-size steps, but keep the position to write at.
#        After 6 passes in a buffer of 10, a second recording of 7 passes is dumped as 5 6 7 _ _ _ 1 2 3 4 (here by
#        pass; _ is a step of zeros). The last passes come first. Nothing in the file says where it begins, and a
#        buffer that is full shows no gap.
# Why it matters: sums are right, but whoever looks at single steps, such as a trend or the last passes, gets them out of
#        order, and slices as counts[:7] lose passes.
#
# The buffer runs from the wheel. It uses torch only for an array of zeros, for which numpy stands in.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$dir/venv"
py="$dir/venv/bin/python"
"$py" -m pip install -q --disable-pip-version-check --no-deps numpy==2.4.6
"$py" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.11 \
    --platform manylinux_2_34_x86_64 -d "$dir" sglang==0.5.23

"$py" - "$dir" <<'PY'
import ast, glob, sys, types, typing, zipfile
import numpy as np

with zipfile.ZipFile(glob.glob(sys.argv[1] + "/sglang-*.whl")[0]) as wheel:
    text = wheel.read("sglang/srt/eplb/expert_distribution.py").decode()

torch = types.SimpleNamespace(zeros=lambda shape, dtype, device: np.zeros(shape, dtype), Tensor=np.ndarray)
names = {"torch": torch, "Tuple": typing.Tuple}
wanted = [node for node in ast.parse(text).body if getattr(node, "name", "") in ("_Buffer", "_CircularBuffer", "_InfiniteBuffer")]
exec(compile(ast.Module(wanted, []), "expert_distribution.py", "exec"), names)
# What start_record() and dump_record() reset of the accumulator is this buffer, and nothing else of it.
resets = [node for node in ast.parse(text).body if getattr(node, "name", "") == "_StatAccumulator"][0]
reset = [ast.unparse(node) for node in resets.body if getattr(node, "name", "") == "reset"][0]

buffer = names["_Buffer"].init_new((1, 1), 10, np.int32, "cpu")


def record(passes):
    """start_record(), the forward passes, dump_record()."""
    buffer.reset()
    for number in range(1, passes + 1):
        buffer.append(np.full((1, 1), number, np.int32))
    dumped = buffer.get_all()[:, 0, 0].copy()
    buffer.reset()
    return " ".join(str(step) if step else "_" for step in dumped)


first, second, full = record(6), record(7), record(10)
print("VERSION sglang 0.5.23, numpy", np.__version__)
print("GUESS   a recording of n passes is dumped as steps 1 to n")
print("SEEN    first recording, of 6 passes:  ", first)
print("SEEN    second recording, of 7 passes: ", second)
print("SEEN    third recording, of 10 passes: ", full)
good = (first == "1 2 3 4 5 6 _ _ _ _" and second == "5 6 7 _ _ _ 1 2 3 4" and full == "8 9 10 1 2 3 4 5 6 7"
        and "_global_physical_count_of_buffered_step.reset()" in reset)
sys.exit(0 if good else "the behaviour is not as stated")
PY
