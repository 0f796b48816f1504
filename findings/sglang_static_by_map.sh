#!/bin/sh
# SGLang 0.5.23, static dispatch: the same placement serves evenly when it is computed, unevenly when it is loaded.
#
# Guess: --init-expert-location with a physical_to_logical_map gives the dispatch tables that the same placement has
#        when SGLang computes it from a logical_count. Either way the ranks share an expert's replicas evenly.
# Seen:  a computed placement gives every rank the same table, and equal numbers of ranks are assigned to each replica.
#        With a map, a rank first drops all replicas but its nearest one, and then draws the table of all ranks with
#        the same seed. It makes fewer draws than the others, so its table differs from theirs, and it uses only its
#        own row. Of 8 ranks, 4 use each of two replicas in the first case, and up to 7 use one of them in the second.
# Why it matters: a placement from another solver, or one that was saved and loaded, is served less evenly than planned.
#
# The functions run from the wheel. They use torch only to hold small integer arrays, for which numpy stands in, and
# the server's settings: 8 ranks on one node, an all-to-all backend. A computed placement is one whose replicas were not
# reduced for a rank, as init_by_eplb makes it.
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
import glob, importlib, random, sys, types, zipfile
from collections import Counter
import numpy as np

folder = sys.argv[1]
with zipfile.ZipFile(glob.glob(folder + "/sglang-*.whl")[0]) as wheel:
    wheel.extract("sglang/srt/eplb/expert_location.py", folder)
sys.path.insert(0, folder + "/sglang/srt/eplb")

RANKS, EXPERTS, SLOTS = 8, 256, 288


class Array(np.ndarray):
    device = "cpu"

    def cpu(self):
        return self

    def to(self, _device):
        return self


torch = types.ModuleType("torch")
torch.Tensor = Array
torch.tensor = lambda values, dtype=None, device=None: np.array(values, dtype=dtype).view(Array)
torch.all = np.all
context = types.ModuleType("sglang.srt.runtime_context")
moe = types.SimpleNamespace(moe_a2a_backend="deepep", ep_join_mode=None)
context.get_exec = lambda: types.SimpleNamespace(moe=moe)
context.get_parallel = lambda: types.SimpleNamespace(ep_size=RANKS, nnodes=1)
context.get_device = context.get_resources = None
elastic = types.ModuleType("sglang.srt.elastic_ep.elastic_ep")
elastic.elastic_expanded_world_enabled = lambda: False
for name in ("torch.distributed", "torch.nn", "torch.nn.functional", "sglang", "sglang.srt", "sglang.srt.elastic_ep"):
    sys.modules[name] = types.ModuleType(name)
torch.distributed, torch.nn = sys.modules["torch.distributed"], sys.modules["torch.nn"]
torch.nn.functional = sys.modules["torch.nn.functional"]
sys.modules.update({"torch": torch, context.__name__: context, elastic.__name__: elastic})
location = importlib.import_module("expert_location")

# Experts 0..31 have two replicas each, on two ranks; which ranks, a seeded shuffle says.
chance = random.Random(7)
while True:
    order = [expert % EXPERTS for expert in range(SLOTS)]
    chance.shuffle(order)
    ranks = [order[r * SLOTS // RANKS : (r + 1) * SLOTS // RANKS] for r in range(RANKS)]
    if all(len(set(rank)) == len(rank) for rank in ranks):
        break
placement = np.array(order).reshape(1, SLOTS).view(Array)


def ranks_of_replicas(narrowed_for):
    """For each replicated expert, how many ranks use its busier replica, each rank by its own row."""
    served = Counter()
    for rank in range(RANKS):
        candidates = location._compute_logical_to_all_physical_map(placement, EXPERTS, RANKS, narrowed_for(rank))
        table = location.compute_logical_to_rank_dispatch_physical_map(candidates, RANKS, SLOTS, rank)[0]
        served.update((expert, int(table[expert])) for expert in range(SLOTS - EXPERTS))
    return [max(n for (e, _), n in served.items() if e == expert) for expert in range(SLOTS - EXPERTS)]


computed = ranks_of_replicas(lambda rank: None)
loaded = ranks_of_replicas(lambda rank: rank)
print("VERSION sglang 0.5.23, numpy", np.__version__)
print("GUESS   each of an expert's two replicas is used by 4 of the 8 ranks, however the placement came in")
print("SEEN    computed: the busier replica of each of 32 experts is used by", *sorted(set(computed)), "ranks")
print("SEEN    loaded as a map: by %.1f ranks on average, at most %d" % (np.mean(loaded), max(loaded)))
good = set(computed) == {4} and np.mean(loaded) > 4.5 and max(loaded) == 7
sys.exit(0 if good else "the behaviour is not as stated")
PY
