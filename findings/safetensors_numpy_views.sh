#!/bin/sh
# safetensors 0.8.0 with NumPy: a view of a larger array is written with the wrong values, without an error.
#
# Guess: counts[:, layer] of an array [iterations][layers][experts] is written as it reads, as up to 0.7.0, or is
#        refused, as safetensors.torch refuses a tensor that is not contiguous.
# Seen:  0.8.0 copies the memory from the view's first value on. The shape is right and the numbers are other layers'.
#        Its documentation asks for contiguous arrays, and nothing checks. 0.7.0 writes the right values.
# Why it matters: statistic dumps are slices and transposes of count arrays. The file loads, and experts are placed by
#        counts that nobody made. Pass each array through numpy.ascontiguousarray.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$dir/venv"
py="$dir/venv/bin/python"
"$py" -m pip install -q --disable-pip-version-check --no-deps numpy==2.4.6
for version in 0.7.0 0.8.0; do
    "$py" -m pip install -q --disable-pip-version-check --no-deps --target "$dir/$version" safetensors==$version
done

cat >"$dir/dump.py" <<'PY'
import sys
import numpy as np
import safetensors
from safetensors.numpy import load, save

sound = sys.argv[1] == "sound"
print("VERSION safetensors", safetensors.__version__, "numpy", np.__version__)
counts = np.arange(24, dtype=np.int64).reshape(2, 3, 4)  # [iterations][layers][experts]
matches = []
for name, view in (("layer 1 of each iteration", counts[:, 1]), ("experts by layers", counts[0].T)):
    file = save({"counts": view})
    seen = load(file)["counts"]
    contiguous = load(save({"counts": np.ascontiguousarray(view)}))["counts"]
    print("GUESS  ", name + ":", view.tolist())
    print("SEEN   ", name + ":", seen.tolist())
    if seen.shape != view.shape or not np.array_equal(contiguous, view):
        sys.exit("the behaviour is not as stated")
    matches.append(np.array_equal(seen, view))
sys.exit(0 if matches == [sound, sound] else "the behaviour is not as stated")
PY
PYTHONPATH="$dir/0.7.0" "$py" "$dir/dump.py" sound
PYTHONPATH="$dir/0.8.0" "$py" "$dir/dump.py" wrong
