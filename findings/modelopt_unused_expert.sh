#!/bin/sh
# nvidia-modelopt 0.47.0, ranked choice voting of experts: an expert that no token chose is ranked as one of the best.
#
# Guess: the least used expert is removed first and gets rank 0, its tokens move to their next choice, and so on. Experts
#        without a token go before all others.
# Seen:  a round counts only experts that some token has among its first top_k, and removes the lowest of these. An expert
#        without a token is not among them, so it stays until it is somebody's choice. Of 64 experts with top_k 8, four are
#        the last four of every token. They get the ranks 53, 54, 55 and 63 of 63. Pruned to 32 experts the layer keeps all
#        four, and loses 32 that have tokens. zero_shot_expert_ranks, made of the first round, has the four as the lowest.
# Why it matters: pruning takes expert_ranks by default, and keeps high ranks. The four stay unused after pruning: they are
#        slots without load, and 28 experts have all of it. The ranks are no order of loads.
#
# The hook and the selection run from the wheel. numpy stands in for the few operations of torch that they use.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$dir/venv"
py="$dir/venv/bin/python"
"$py" -m pip install -q --disable-pip-version-check --no-deps numpy==2.4.6
"$py" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.12 -d "$dir" \
    nvidia-modelopt==0.47.0

"$py" - "$dir" <<'PY'
import ast, glob, json, math, sys, types, typing, zipfile
import numpy as np


class Tensor(np.ndarray):
    """The methods of a tensor that the hook calls."""

    def view(self, *shape):
        return self.reshape(shape)

    def to(self, dtype):
        return self.astype(dtype)

    def cpu(self):
        return self

    def unique(self, return_counts):
        return np.unique(self, return_counts=return_counts)


def tensor(values):
    return np.ndarray.view(np.asarray(values), Tensor)


def argsort(values, dim=-1, descending=False):
    return tensor(np.argsort(-values if descending else values, axis=dim, kind="stable"))


torch = types.SimpleNamespace(
    Tensor=Tensor, int16=np.int16, long=np.int64, argsort=argsort, concat=lambda parts, dim: tensor(np.concatenate(parts, dim)),
    full=lambda shape, value: tensor(np.full(shape, value)), zeros=lambda shape, dtype: tensor(np.zeros(shape, dtype)))
names = {"torch": torch, "nn": types.SimpleNamespace(Module=object), "ForwardHook": object, "BlockConfig": object,
         "json": json, "math": math, **vars(typing)}
folder = sys.argv[1]
with zipfile.ZipFile(glob.glob(folder + "/nvidia_modelopt-*.whl")[0]) as wheel:
    for name, wanted in (("prune/importance_hooks/expert_removal_hooks.py", ("RankedChoiceVotingHook",)),
                         ("puzzletron/pruning/pruning_utils.py", ("_select_expert_indices", "_load_expert_scores"))):
        body = ast.parse(wheel.read("modelopt/torch/" + name).decode()).body
        body = [node for node in body if getattr(node, "name", "") in wanted]
        exec(compile(ast.Module(body, []), name, "exec"), names)

TOKENS, EXPERTS, TOPK, KEPT, UNUSED = 4096, 64, 8, 32, [60, 61, 62, 63]
random = np.random.default_rng(1)
logits = random.normal(size=(TOKENS, EXPERTS)) + np.linspace(1, -1, EXPERTS)  # expert 0 is the hottest
logits[:, UNUSED] -= 100  # the last choices of every token
moe = types.SimpleNamespace(num_experts_per_tok=TOPK)
hook = names["RankedChoiceVotingHook"](None, {"block_config": types.SimpleNamespace(ffn=types.SimpleNamespace(moe=moe))})
hook(None, (), tensor(logits))
log = hook.to_dict()

chosen = np.argsort(-logits, axis=1)[:, :TOPK]
counts = np.bincount(chosen.ravel(), minlength=EXPERTS)
with open(folder + "/scores.json", "w") as file:
    json.dump(np.asarray(log["expert_ranks"]).tolist(), file)
select = {"mlp_init_config": {"expert_scores_file": folder + "/scores.json"}, "layer_idx": 0,
          "orig_num_experts": EXPERTS, "new_num_experts": KEPT}
kept = names["_select_expert_indices"](**select)
removed = sorted(set(range(EXPERTS)) - set(kept))
ranks, first = (np.asarray(log[key])[UNUSED].tolist() for key in ("expert_ranks", "zero_shot_expert_ranks"))
after = np.argsort(-logits[:, kept], axis=1)[:, :TOPK]  # the router's choices among the experts kept
idle = [expert for place, expert in enumerate(kept) if place not in after]

print("VERSION nvidia-modelopt 0.47.0 numpy", np.__version__)
print("GUESS   ranks of the four experts with %s of %d choices: 0 to 3, and pruning to %d removes them"
      % (counts[UNUSED].tolist(), counts.sum(), KEPT))
print("SEEN    ranks %s of 0 to %d, by the first round %s" % (sorted(ranks), EXPERTS - 1, sorted(first)))
print("SEEN    removed: %d experts with %d to %d choices; kept and still unused: %s"
      % (len(removed), counts[removed].min(), counts[removed].max(), sorted(idle)))
good = not counts[UNUSED].any() and sorted(first) == [0, 1, 2, 3] and sorted(ranks) == [53, 54, 55, 63]
good = good and counts[removed].min() > 0 and sorted(idle) == UNUSED
good = good and "expert_ranks" in names["_load_expert_scores"].__code__.co_consts
sys.exit(0 if good else "the behaviour is not as stated")
PY
