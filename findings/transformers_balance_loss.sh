#!/bin/sh
# transformers 5.23.0, load_balancing_loss_func: layers that each send all tokens to one expert can read as balanced.
#
# Guess: the loss of a model is the mean of its layers' losses. With one expert a token, a layer has 1 if it is even,
#        and the number of experts if one expert has all tokens.
# Seen:  tokens and probabilities are added up over the layers for each expert id, and the formula is applied once to
#        the sums. Expert 0 of one layer and expert 0 of the next are different experts and share a sum. Four layers
#        of four experts, all tokens of layer i on expert i: 1.0, as for four even layers. All on expert 0: 4.0.
# Why it matters: experts of different layers share no work, so each layer is unbalanced and aux_loss does not show it.
#        Measure each layer's router logits on their own. 36 model files of the package define this function.
#
# The function runs from the wheel; numpy stands in for the few operations of torch that it uses.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$dir/venv"
py="$dir/venv/bin/python"
"$py" -m pip install -q --disable-pip-version-check --no-deps numpy==2.4.6
"$py" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: -d "$dir" transformers==5.23.0

"$py" - "$dir" <<'PY'
import ast, glob, sys, types, zipfile
import numpy as np

with zipfile.ZipFile(glob.glob(sys.argv[1] + "/transformers-*.whl")[0]) as wheel:
    source = wheel.read("transformers/models/mixtral/modeling_mixtral.py").decode()


class Tensor(np.ndarray):
    device = types.SimpleNamespace(type="cpu")

    def to(self, target):
        return self if target is self.device else self.astype(target)

    def float(self):
        return self.astype(np.float32)

    def sum(self, dim=None):
        return np.sum(np.asarray(self), axis=dim).view(Tensor)

    def unsqueeze(self, axis):
        return np.expand_dims(self, axis)


def softmax(logits, dim):
    values = np.exp(np.asarray(logits))
    return (values / values.sum(axis=dim, keepdims=True)).view(Tensor)


def topk(values, k, dim):
    chosen = np.argsort(-values, axis=dim, kind="stable")[:, :k]
    return np.take_along_axis(values, chosen, dim), chosen


torch = types.ModuleType("torch")
torch.Tensor, torch.float32, torch.int32, torch.topk = Tensor, np.float32, np.int32, topk
torch.sum = lambda values: np.asarray(values).sum()
torch.nn = types.SimpleNamespace(functional=types.SimpleNamespace(softmax=softmax))
torch.zeros = lambda length, dtype, device: np.zeros(length, dtype).view(Tensor)
torch.histc = lambda ids, bins, min, max: np.histogram(ids, bins, (min, max))[0].view(Tensor)
# The rest of the file imports the whole of transformers, so its function is taken alone.
module = {"torch": torch}
body = [node for node in ast.parse(source).body if getattr(node, "name", "") == "load_balancing_loss_func"]
exec(compile(ast.Module(body, []), "modeling_mixtral.py", "exec"), module)

tokens, experts = 64, 4


def layer(chosen):
    """Router logits of a layer that sends each token to its expert in `chosen`, with probability near 1."""
    return (20.0 * np.eye(experts, dtype=np.float32)[np.broadcast_to(chosen, tokens)]).view(Tensor)


def loss(layers):
    return float(module["load_balancing_loss_func"](tuple(layers), experts, 1))


even = np.arange(tokens) % experts
cases = (
    ("each layer even", [layer(even)] * experts),
    ("layer i on expert i alone", [layer(i) for i in range(experts)]),
    ("each layer on expert 0 alone", [layer(0)] * experts),
)
print("VERSION transformers 5.23.0, numpy", np.__version__)
seen = []
for name, layers in cases:
    guess = sum(loss([one]) for one in layers) / len(layers)
    seen.append((guess, loss(layers)))
    print("GUESS   %s: %.2f, the mean of the layers' own losses" % (name, guess))
    print("SEEN    %s: %.2f" % (name, seen[-1][1]))
good = np.allclose(seen, [(1, 1), (experts, 1), (experts, experts)], atol=1e-4)
sys.exit(0 if good else "the behaviour is not as stated")
PY
