#!/bin/sh
# megatron-core 0.19.2: padding experts to their capacity switches balancing by expert bias off, without a message.
#
# Guess: --moe-router-enable-expert-bias counts what the router chose. After a step the bias of an overloaded expert is lower,
#        that of an idle expert higher, also with --moe-expert-capacity-factor and --moe-pad-expert-input-to-capacity.
# Seen:  it counts the map from tokens to experts after dropping and padding. With padding each expert has exactly its
#        capacity, the one with half of all choices and the one with none. All counts are the mean, and no bias ever
#        changes. With dropping alone the directions are right, but counts end at the capacity: twice the mean here, not 4.
# Why it matters: the configuration takes these options together, and the load is not balanced, step after step. With padding
#        balance by a loss, whose counts are taken from the scores, before dropping.
#
# Megatron's functions run from the wheel. They use torch only for small arrays; numpy stands in for it.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$dir/venv"
py="$dir/venv/bin/python"
"$py" -m pip install -q --disable-pip-version-check --no-deps numpy==2.4.6
"$py" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.12 \
    --platform manylinux_2_28_x86_64 -d "$dir" megatron-core==0.19.2

"$py" - "$dir" <<'PY'
import ast, contextlib, glob, math, sys, types, typing, zipfile
import numpy as np


class Tensor(np.ndarray):
    """The operations of torch that the functions use here."""

    def bool(self):
        return self.astype(np.bool_)

    def scatter(self, axis, index, value):
        out = self.copy()
        np.put_along_axis(out, index, value, axis)
        return out

    def sum(self, dim=None, keepdim=False):
        return np.sum(np.asarray(self), axis=dim, keepdims=keepdim).view(Tensor)


def topk(values, k, dim, sorted):
    chosen = np.argsort(-values, axis=dim, kind="stable")[:k]
    return np.take_along_axis(values, chosen, dim), chosen


torch = types.SimpleNamespace(
    Tensor=Tensor, topk=topk, zeros_like=np.zeros_like, ones_like=np.ones_like, logical_and=np.logical_and, sign=np.sign,
    no_grad=contextlib.nullcontext, is_grad_enabled=lambda: True,
    distributed=types.SimpleNamespace(ProcessGroup=object, all_reduce=lambda counts, group: None),  # one rank
)
names = {"torch": torch, "math": math, "Optional": typing.Optional, "Tuple": typing.Tuple}
functions = {}
with zipfile.ZipFile(glob.glob(sys.argv[1] + "/megatron_core-*.whl")[0]) as wheel:
    for file in ("moe_utils.py", "router.py"):
        tree = ast.parse(wheel.read("megatron/core/transformer/moe/" + file).decode())
        functions.update((node.name, node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
for name in ("get_capacity", "apply_router_token_dropping", "get_updated_expert_bias", "_apply_expert_bias"):
    functions[name].decorator_list = []
    exec(compile(ast.Module([functions[name]], []), name, "exec"), names)
# The router's own order of dropping and counting.
routing = ast.unparse(functions["routing"])
counted_last = 0 < routing.index("apply_router_token_dropping(") < routing.index("_apply_expert_bias(")

EXPERTS, TOKENS, TOPK, RATE, STEPS = 8, 128, 2, 1e-3, 100
# Every token chooses expert 0, and one of experts 1 to 6 in turn. Expert 7 is idle.
scores = np.zeros((TOKENS, EXPERTS)).view(Tensor)
scores[:, 0] = 0.6
scores[np.arange(TOKENS), 1 + np.arange(TOKENS) % 6] = 0.4


def trained(factor, pad):
    """The counts of a step, and the bias after all steps; the choices do not change."""
    bias = np.zeros(EXPERTS)
    for _ in range(STEPS):
        chosen = scores > 0
        if factor:
            _, chosen = names["apply_router_token_dropping"](scores, chosen, TOPK, factor, "probs", pad)
        router = types.SimpleNamespace(enable_expert_bias=True, local_tokens_per_expert=np.zeros(EXPERTS).view(Tensor))
        names["_apply_expert_bias"](router, chosen)
        bias = names["get_updated_expert_bias"](router.local_tokens_per_expert, bias, RATE, "ranks")
    return router.local_tokens_per_expert.astype(int).tolist(), np.round(bias, 6).tolist()


print("VERSION megatron-core 0.19.2, numpy", np.__version__)
plain, guess = trained(None, False)
dropped, drop = trained(2.0, False)
padded, pad = trained(2.0, True)
print("GUESS   counts", plain, "- bias after %d steps" % STEPS, guess)
print("SEEN    no capacity:             counts", plain, "- bias", guess)
print("SEEN    capacity factor 2:       counts", dropped, "- bias", drop)
print("SEEN    capacity factor 2, pads: counts", padded, "- bias", pad)
print("SEEN    the router drops and pads before it counts:", counted_last)
good = counted_last and plain[0] == TOKENS and plain[7] == 0
good = good and guess[0] == drop[0] == -RATE * STEPS and guess[7] == drop[7] == RATE * STEPS and dropped[0] == 64
good = good and padded == [64] * EXPERTS and pad == [0.0] * EXPERTS
sys.exit(0 if good else "the behaviour is not as stated")
PY
