#!/bin/sh
# DeepSpeed 0.19.8, top-2 gate: after eval() the second expert of each token is still drawn at random, so a hot one looks cool.
#
# Guess: noise is for training. After eval() a token goes to its two experts with the highest logits, and one input gives the
#        same exp_counts in each pass. The gate with k=1 is so: it drops its noise after eval().
# Seen:  with the default top2_2nd_expert_sampling the second expert is drawn by the softmax of the remaining logits, in eval
#        too. Of 64 experts, one is the clear second choice of all 4,032 tokens, 2 above the others' logits. It gets about
#        430 of them, one in nine, and the rest is spread evenly. Another pass over the same input gives other counts.
# Why it matters: loads recorded in eval are those of a flatter router. An engine that takes the two highest logits of the same
#        checkpoint has one expert with half of all choices, and a placement made of the record has no replica for it. Record
#        with top2_2nd_expert_sampling=False. Pull request 8620 of DeepSpeed, open at this release, changes it.
#
# The gate's forward() and top2gating() run from the source package. numpy stands in for the torch operations that they use,
# and its random numbers for torch's.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$dir/venv"
py="$dir/venv/bin/python"
"$py" -m pip install -q --disable-pip-version-check --no-deps numpy==2.4.6
"$py" -m pip download -q --disable-pip-version-check --no-deps --no-binary :all: -d "$dir" deepspeed==0.19.8

"$py" - "$dir" <<'PY'
import ast, glob, sys, tarfile, types, typing
import numpy as np


class Tensor(np.ndarray):
    """The methods of a tensor that the gate calls."""

    device = None

    def float(self):
        return self.astype(np.float32)

    def bool(self):
        return self.astype(np.bool_)

    def to(self, target):
        return self if target is None else self.astype(target)

    def detach(self):
        return self

    def any(self, dim):
        return np.any(np.asarray(self), axis=dim)

    def masked_fill(self, mask, value):
        return np.where(mask, np.float32(value), self).view(Tensor)


def tensor(values):
    return np.asarray(values).view(Tensor)


def softmax(logits, dim):
    scores = np.exp(logits - logits.max(dim, keepdims=True))
    return scores / scores.sum(dim, keepdims=True)


functional = types.SimpleNamespace(
    softmax=softmax, one_hot=lambda ids, num_classes: np.eye(num_classes, dtype=np.int64)[ids].view(Tensor),
    linear=lambda rows, weight, bias: rows @ weight.T)
torch = types.SimpleNamespace(
    Tensor=Tensor, tensor=tensor, int64=np.int64, int32=np.int32, lt=np.less, ceil=np.ceil, maximum=np.maximum,
    stack=lambda rows: tensor(np.stack(rows)), finfo=np.finfo, where=np.where, full_like=np.full_like,
    argmax=lambda values, dim: tensor(np.argmax(values, axis=dim)), cumsum=lambda values, dim: np.cumsum(values, axis=dim),
    sum=lambda values, dim, keepdim=False: np.sum(values, axis=dim, keepdims=keepdim),
    mean=lambda values, dim=None: np.mean(values, axis=dim), clamp=lambda values, min: np.maximum(values, min),
    distributed=types.SimpleNamespace(ProcessGroup=object), nn=types.SimpleNamespace(functional=functional, Linear=object))
random = np.random.default_rng(1)
names = {"torch": torch, "F": functional, "Tensor": Tensor, "Module": object, "TOPK_GATE_TIMER": "", **vars(typing),
         "einsum": lambda rule, a, b: tensor(np.einsum(rule, a, b)),
         "gumbel_rsample": lambda shape, device: random.gumbel(size=shape).astype(np.float32)}

with tarfile.open(glob.glob(sys.argv[1] + "/deepspeed-*.tar.gz")[0]) as package:
    text = package.extractfile("deepspeed-0.19.8/deepspeed/moe/sharded_moe.py").read().decode()
wanted = [node for node in ast.parse(text).body if getattr(node, "name", "") in ("_capacity", "top2gating", "TopKGate")]
exec(compile(ast.Module(wanted, []), "sharded_moe.py", "exec"), names)
TopKGate = names["TopKGate"]
# The defaults of the gate.
init = [node for node in wanted[-1].body if getattr(node, "name", "") == "__init__"][0].args
defaults = {arg.arg: value.value for arg, value in zip(init.args[-len(init.defaults):], init.defaults)}

EXPERTS, TOKENS = 64, 63 * 64
logits = np.zeros((TOKENS, EXPERTS), np.float32)
logits[np.arange(TOKENS), np.arange(TOKENS) % 63] = 4  # the first choices: 64 tokens to each of the experts 0 to 62
logits[:, 63] = 2  # the second choice of every token


def counts(**options):
    """exp_counts of a pass after eval(). The weight is the identity, so the input is the logits."""
    gate = object.__new__(TopKGate)
    vars(gate).update(defaults, **options, training=False, wall_clock_breakdown=False)
    gate.wg = types.SimpleNamespace(weight=tensor(np.eye(EXPERTS, dtype=np.float32)))
    return np.asarray(TopKGate.forward(gate, tensor(logits.copy()), sparse_routes=True)[-1])


off = [counts(k=2, top2_2nd_expert_sampling=False) for _ in range(2)]
on = [counts(k=2) for _ in range(2)]
print("VERSION deepspeed 0.19.8 numpy", np.__version__, "sampling by default:", defaults["top2_2nd_expert_sampling"])
print("GUESS   tokens of expert 63 in two eval passes: %d and %d, others 64 each" % (TOKENS, TOKENS))
print("SEEN    without sampling: %d and %d, others %d to %d" % (off[0][63], off[1][63], off[0][:63].min(), off[0][:63].max()))
print("SEEN    by default:       %d and %d, others %d to %d" % (on[0][63], on[1][63], on[0][:63].min(), on[0][:63].max()))
good = defaults["top2_2nd_expert_sampling"] is True and not np.array_equal(*on)
for plain, drawn in zip(off, on):
    good = good and plain[63] == TOKENS and set(plain[:63].tolist()) == {64}
    good = good and drawn.sum() == 2 * TOKENS and 0.09 < drawn[63] / TOKENS < 0.13
sys.exit(0 if good else "the behaviour is not as stated")
PY
