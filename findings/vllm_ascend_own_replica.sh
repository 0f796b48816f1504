#!/bin/sh
# vllm-ascend 0.23.0, table from expert to slot: a rank that holds a replica may send its tokens to another rank.
#
# Guess: a rank uses its own replica where it has one, and picks among the others only where it has none.
# Seen:  without tensor parallelism rank r uses replica r mod n of the n in rank order. With the placement that the
#        engine starts with (256 experts, 32 spare slots, 32 ranks) 15 of the 32 replicated experts are swapped: each
#        of the two ranks that hold the expert sends its tokens for it to the other.
# Why it matters: replicas do not save traffic here, and a plan that counts local tokens as local is wrong.
#
# The module uses torch only to make and index small integer arrays; numpy stands in for it.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$dir/venv"
py="$dir/venv/bin/python"
"$py" -m pip install -q --disable-pip-version-check --no-deps numpy==2.4.6
"$py" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.11 \
    --platform manylinux_2_34_x86_64 -d "$dir" vllm-ascend==0.23.0

"$py" - "$dir" <<'PY'
import glob, importlib, logging, sys, types, zipfile
import numpy as np

folder = sys.argv[1]
with zipfile.ZipFile(glob.glob(folder + "/vllm_ascend-*.whl")[0]) as wheel:
    wheel.extract("vllm_ascend/eplb/core/eplb_utils.py", folder)
sys.path.insert(0, folder + "/vllm_ascend/eplb/core")


class Array(np.ndarray):
    def npu(self):
        return self


def array(values, dtype=np.int64):
    return np.array(values, dtype=dtype).view(Array)


def scatter(into, _dim, index, values):
    out = into.copy()
    out[index] = values
    return out


torch = types.ModuleType("torch")
torch.int32, torch.int64, torch.tensor, torch.scatter = np.int32, np.int64, array, scatter
torch.full = lambda shape, value, dtype: np.full(shape, value, dtype).view(Array)
torch.zeros = lambda length, dtype: np.zeros(length, dtype).view(Array)
torch.arange = lambda stop, dtype: np.arange(stop, dtype=dtype).view(Array)
torch.sum, torch.stack = np.sum, np.stack
sys.modules["torch"] = torch
for name, attribute, value in (
    ("vllm.logger", "logger", logging.getLogger("stand-in")),
    ("vllm.model_executor.layers.fused_moe.expert_map_manager", "determine_expert_map", None),
):
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    setattr(sys.modules[name], attribute, value)
utils = importlib.import_module("eplb_utils")

experts, spare, ranks = 256, 32, 32
config = types.SimpleNamespace(expert_map_path=None, dynamic_eplb=True, num_redundant_experts=spare)
tables = []
for rank in range(ranks):
    moe = types.SimpleNamespace(num_experts=experts, ep_size=ranks, ep_rank=rank)
    placed, _, table, _ = utils.init_eplb_config(config, 0, moe, tp_size=1)
    tables.append(table)
slots = (experts + spare) // ranks
holders = {e: [r for r in range(ranks) if placed[r][e] >= 0] for e in range(experts)}
replicated = [e for e in holders if len(holders[e]) > 1]
pairs = [(r, e) for e in replicated for r in holders[e]]
away = [(r, e) for r, e in pairs if tables[r][e] // slots != r]
swapped = [e for e in replicated if all((r, e) in away for r in holders[e])]

print("VERSION vllm-ascend 0.23.0, numpy", np.__version__)
print("GUESS   of the (rank, replicated expert) pairs where the rank holds the expert, 0 send the tokens away")
print("SEEN    %d of %d pairs send them away; %d of %d experts have holders that all do" % (
    len(away), len(pairs), len(swapped), len(replicated)))
if swapped:
    e = swapped[0]
    print("SEEN    expert %d is on ranks %s; they send its tokens to ranks %s" % (
        e, holders[e], [int(tables[r][e]) // slots for r in holders[e]]))
good = (len(pairs), len(away), len(replicated), len(swapped)) == (64, 30, 32, 15)
sys.exit(0 if good else "the behaviour is not as stated")
PY
