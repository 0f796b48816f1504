#!/bin/sh
# plumb-moe 0.1.0 (expert activation profiler): its "rolling window" is a cap on each expert's count.
#
# Guess: a window of 1,000 keeps the last 1,000 forward passes, so the ratio of the hottest expert to the mean stays
#        what the router does, however long the run.
# Seen:  the window holds 1,000 entries an expert, and each token that chose the expert is an entry. An expert's count
#        ends at 1,000 tokens. Half of all choices go to expert 0 of 8 here (4 times the mean): the reported ratio is
#        right in the first pass and 1.0, "balanced", after eight. `plumb run` has the same cap at 5,000.
# Why it matters: a longer profile says that the experts are balanced, and a placement made of it ignores the hot one.
#
# The profiler's own hook code counts; a stand-in for torch gives it the one operation that it needs, topk.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$dir/venv"
py="$dir/venv/bin/python"
"$py" -m pip install -q --disable-pip-version-check --no-deps numpy==2.4.6 plumb-moe==0.1.0

"$py" - <<'PY'
import importlib.metadata, sys, types
import numpy as np


class Logits:
    """[tokens, experts], as a router gives them."""

    def __init__(self, values):
        self.values = values

    def size(self, axis):
        return self.values.shape[axis]


class Chosen:
    def __init__(self, ids):
        self.ids = ids

    def view(self, _shape):
        return self.ids.reshape(-1)


torch = types.ModuleType("torch")
torch.Tensor = Logits
torch.topk = lambda logits, k, dim: (None, Chosen(np.argsort(-logits.values, axis=dim)[:, :k]))
torch.nn = types.ModuleType("torch.nn")
sys.modules.update({"torch": torch, "torch.nn": torch.nn})
from plumb.analysis.imbalance import compute_imbalance
from plumb.counter import ActivationCounter
from plumb.hook import _process_item

experts, tokens = 8, 896
logits = np.zeros((tokens, experts))
logits[:, 0] = 2.0  # every token chooses expert 0, and one of the others in turn
logits[np.arange(tokens), 1 + np.arange(tokens) % (experts - 1)] = 1.0

print("VERSION plumb-moe", importlib.metadata.version("plumb-moe"), "numpy", np.__version__)
print("GUESS   hottest / mean is 4.0 after 1 pass and after 8")
counter = ActivationCounter()
seen = {}
for done in range(1, 9):
    _process_item((counter, 0, Logits(logits), True, 2))
    if done in (1, 2, 8):
        seen[done] = compute_imbalance(counter)[0].imbalance_ratio
        counts = [counter.snapshot()[(0, e)] for e in range(experts)]
        print("SEEN    %d passes: hottest / mean %s, counts %s" % (done, seen[done], counts))
good = counter.window_size == 1000 and seen[1] == 4.0 and seen[2] < 3.0 and seen[8] == 1.0
sys.exit(0 if good else "the behaviour is not as stated")
PY
