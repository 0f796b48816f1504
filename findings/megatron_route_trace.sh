#!/bin/sh
# megatron-core 0.19.2: the router trace leaves out each pass in which a token was dropped, or mixes tokens up.
#
# Guess: with an expert capacity, --moe-routing-trace-path still writes one record a pass and layer. A record lists the
#        experts that each token was sent to, and marks a dropped choice.
# Seen:  the tracer gets the map from tokens to experts after dropping. It writes a record only if the map has
#        tokens * topk entries, and cuts their list into rows of topk. One dropped choice, and the whole pass is
#        missing without a message. With padding to a capacity of factor 1.0 the number of entries is right again.
#        But some tokens have more than topk entries and some fewer. Rows shift, and tokens get their neighbours' ids.
# Why it matters: without padding the trace has only the passes in which no expert overflowed, so loads look even. With
#        it, the ids of a token are wrong. Trace without a capacity factor.
#
# The tracer and the dropping code run from the wheel. They use torch only for small arrays; numpy stands in for it.
# Which tokens fill the padding is up to torch.topk, the first ones here. With torch 2.15.0 other rows shift.
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
import ast, glob, importlib, json, math, sys, types, typing, zipfile
import numpy as np

folder = sys.argv[1]
inside = "megatron/core/transformer/moe/"
with zipfile.ZipFile(glob.glob(folder + "/megatron_core-*.whl")[0]) as wheel:
    wheel.extract(inside + "router_trace.py", folder)
    utils = wheel.read(inside + "moe_utils.py").decode()


class Tensor(np.ndarray):
    """The operations of torch that the two files use here."""

    def view(self, *shape):
        return self.reshape(shape)

    def nonzero(self, as_tuple):
        return np.nonzero(self)

    def numel(self):
        return self.size

    def detach(self):
        return self

    def to(self, _device, dtype, non_blocking):
        return self.astype(dtype)

    def bool(self):
        return self.astype(np.bool_)

    def scatter(self, axis, index, value):
        out = self.copy()
        np.put_along_axis(out, index, value, axis)
        return out


def tensor(values):
    return np.ndarray.view(np.asarray(values), Tensor)


def topk(values, k, dim, sorted):
    chosen = np.argsort(-values, axis=dim, kind="stable")[:k]
    return np.take_along_axis(values, chosen, dim), chosen


torch = types.ModuleType("torch")
torch.Tensor, torch.bool, torch.int32 = Tensor, np.bool_, np.int32
torch.is_tensor = lambda value: isinstance(value, Tensor)
torch.cuda = types.SimpleNamespace(is_current_stream_capturing=lambda: False)
torch.topk, torch.zeros_like, torch.ones_like, torch.logical_and = topk, np.zeros_like, np.ones_like, np.logical_and
sys.modules["torch"] = torch
sys.path.insert(0, folder + "/" + inside)
trace = importlib.import_module("router_trace")
# The rest of moe_utils.py imports the whole of Megatron, so its dropping code is taken alone.
dropping = {"torch": torch, "math": math, "Optional": typing.Optional, "Tuple": typing.Tuple}
wanted = ("get_capacity", "apply_router_token_dropping")
body = [node for node in ast.parse(utils).body if getattr(node, "name", "") in wanted]
exec(compile(ast.Module(body, []), "moe_utils.py", "exec"), dropping)

EXPERTS, TOPK = 4, 2
BALANCED = [[0, 1], [2, 3], [0, 2], [1, 3], [0, 3], [1, 2], [0, 1], [2, 3]]
SKEWED = [[0, 1], [0, 2], [0, 3], [0, 1], [0, 2], [0, 3], [1, 2], [2, 3]]


def traced(name, factor, pad):
    """Runs the two passes; returns where each token was sent and what the trace has."""
    tracer = trace.RouterTracer("%s/%s" % (folder, name), 10, 0, training_mode=True)
    hook = tracer.make_hook("decoder.layers.3.mlp.router")
    sent = []
    for ids in (BALANCED, SKEWED):
        # The first choice has probability 0.6 and falls a little from token to token, the second has 0.3.
        probs = np.zeros((len(ids), EXPERTS))
        np.put_along_axis(probs, np.array(ids), [[0.6 - t / 100, 0.3 - t / 100] for t in range(len(ids))], 1)
        probs, chosen = tensor(probs), tensor(probs > 0)
        if factor:
            probs, chosen = dropping["apply_router_token_dropping"](probs, chosen, TOPK, factor, "probs", pad)
        sent.append([np.flatnonzero(row).tolist() for row in chosen])
        hook(types.SimpleNamespace(topk=TOPK), (), (probs, chosen))
        tracer.advance_step()
    tracer.flush()
    with open(tracer.output_path) as lines:
        records = {record["step"]: record["top_indices"] for record in map(json.loads, lines)}
    return sent, records


print("VERSION megatron-core 0.19.2, numpy", np.__version__)
print("GUESS   records of both passes, each token with the experts that it was sent to")
plain_sent, plain = traced("plain", None, False)
drop_sent, drop = traced("drop", 1.0, False)
pad_sent, pad = traced("pad", 1.0, True)
print("SEEN    no capacity: records of passes", list(plain), "- as sent:", plain == dict(enumerate(plain_sent)))
print("SEEN    capacity 1.0: records of passes", list(drop), "- %d of %d choices of pass 1 were dropped" % (
    len(SKEWED) * TOPK - sum(map(len, drop_sent[1])), len(SKEWED) * TOPK))
print("SEEN    capacity 1.0, padded: records of passes", list(pad))
print("SEEN    pass 1, sent: ", pad_sent[1])
print("SEEN    pass 1, trace:", pad[1])
wrong = sum(not set(listed) <= set(row) for listed, row in zip(pad[1], pad_sent[1]))
print("SEEN    %d of %d tokens are listed with an expert that they were not sent to" % (wrong, len(SKEWED)))
good = plain == {0: BALANCED, 1: SKEWED} and drop == {0: BALANCED} and pad[0] == BALANCED and wrong > 0
sys.exit(0 if good else "the behaviour is not as stated")
PY
