#!/bin/sh
# LMDeploy 0.18.0, EPLB on 3 nodes of 8 ranks: balancing makes the hottest rank hotter.
#
# Guess: where the nodes do not divide the expert groups, experts and replicas are packed onto all ranks as one node, as in
#        DeepSeek's EPLB, whose code this is.
# Seen:  nothing is packed. Experts stay in order of their ids, and all replicas of the hottest experts are in the last slots,
#        on the last ranks. With 256 experts and the default 4 groups and 32 replicas, 24 ranks have their hottest rank at 3.5
#        times the mean. Without balancing, and the same 288 slots, it is 2.4 times; packed by the same function 1.0 times.
# Why it matters: 3, 5, 6 or 7 nodes never divide a number of groups that divides 256. EPLB costs there, without an error.
#
# The function runs from the wheel. It uses torch only for small arrays, for which numpy stands in.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$dir/venv"
py="$dir/venv/bin/python"
"$py" -m pip install -q --disable-pip-version-check --no-deps numpy==2.4.6
"$py" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.11 \
    --platform manylinux_2_28_x86_64 -d "$dir" lmdeploy==0.18.0

"$py" - "$dir" <<'PY'
import glob, importlib, sys, types, zipfile
import numpy as np

folder = sys.argv[1]
with zipfile.ZipFile(glob.glob(folder + "/lmdeploy-*.whl")[0]) as wheel:
    for name in ("lmdeploy/pytorch/nn/eplb.py", "lmdeploy/pytorch/envs.py"):
        wheel.extract(name, folder)


class Array(np.ndarray):
    """The methods of a tensor that the function calls."""

    device = None

    def float(self):
        return self.astype(np.float32)

    def size(self, axis):
        return self.shape[axis]

    def max(self, dim=None):
        return np.asarray(self).max() if dim is None else types.SimpleNamespace(indices=np.asarray(self).argmax(dim))

    def sort(self, axis, descending):
        return types.SimpleNamespace(indices=np.argsort(-self, axis, kind="stable"))

    def gather(self, axis, index):
        return np.take_along_axis(self, index, axis)

    def scatter_(self, axis, index, values):
        np.put_along_axis(self, index, values, axis)

    def view(self, *shape):
        return self.reshape(shape)

    def expand(self, *shape):
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        return np.broadcast_to(self, tuple(self.shape[-1] if size == -1 else size for size in shape), subok=True)

    def repeat(self, *counts):
        return np.tile(self, counts)

    def unsqueeze(self, axis):
        return np.expand_dims(self, axis)

    def flatten(self, axis):
        return self.reshape(*self.shape[:axis], -1)

    def unflatten(self, axis, sizes):
        return self.reshape(*self.shape[:axis], *sizes)


def array(values):
    return np.ndarray.view(np.array(values), Array)


torch = types.ModuleType("torch")
torch.Tensor, torch.int64, torch.Size = Array, np.int64, tuple
torch.arange = lambda *bounds, dtype, device: array(np.arange(*bounds, dtype=dtype))
torch.zeros = lambda *shape, dtype, device: array(np.zeros(shape, dtype))
torch.ones = lambda *shape, dtype, device: array(np.ones(shape, dtype))
torch.full = lambda shape, value, dtype, device: array(np.full(shape, value, dtype))
torch.full_like = lambda like, fill_value, dtype=None: array(np.full(like.shape, fill_value, dtype or like.dtype))
torch.zeros_like = lambda like, dtype: array(np.zeros(like.shape, dtype))
torch.empty_like = lambda like: array(np.empty(like.shape, like.dtype))
for name in ("torch.nn", "torch.nn.functional", "lmdeploy", "lmdeploy.pytorch", "lmdeploy.pytorch.nn"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder + "/" + name.replace(".", "/")]
torch.nn = sys.modules["torch.nn"]
torch.nn.functional = sys.modules["torch.nn.functional"]
sys.modules["torch"] = torch
eplb = importlib.import_module("lmdeploy.pytorch.nn.eplb")

EXPERTS, RANKS, RANKS_PER_NODE = 256, 24, 8
spare, groups = eplb.eplb_num_redundant_experts, eplb.eplb_num_groups  # the defaults
slots = EXPERTS + spare
load = np.array([20000 // (1 + expert * 101 % 256) + 1 for expert in range(EXPERTS)], dtype=np.float32)


def hottest(placement):
    """Load of the hottest rank over the mean; replicas share evenly."""
    replicas = np.bincount(placement, minlength=EXPERTS)
    ranks = (load / replicas)[placement].reshape(RANKS, -1).sum(axis=1)
    return float(ranks.max() / ranks.mean())


def plan(num_groups, num_nodes):
    return np.asarray(eplb.rebalance_experts(array([load]), slots, num_groups, num_nodes, RANKS)[0][0])


seen = plan(groups, RANKS // RANKS_PER_NODE)
packed = plan(1, 1)
unbalanced = np.arange(slots) % EXPERTS
print("VERSION lmdeploy 0.18.0, numpy", np.__version__)
print("GUESS   %d groups on 3 nodes: as if packed on one node, hottest rank %.2f times the mean" % (groups, hottest(packed)))
print("SEEN    hottest rank %.2f times the mean, without balancing %.2f" % (hottest(seen), hottest(unbalanced)))
in_order = (seen[:EXPERTS] == np.arange(EXPERTS)).all()
print("SEEN    the first %d slots hold the experts in order of their ids: %s" % (EXPERTS, in_order))
good = (groups, spare) == (4, 32) and in_order and hottest(packed) < 1.1 and hottest(seen) > hottest(unbalanced) > 2
sys.exit(0 if good else "the behaviour is not as stated")
PY
