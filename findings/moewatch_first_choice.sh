#!/bin/sh
# moewatch 0.1.0 (expert load monitor for Transformers): only each token's first choice is counted.
#
# Guess: with two experts a token, T tokens give 2 T counts, as the monitor reports top_k 2 and has the chosen ids.
# Seen:  the router's output has the scores of all experts and the chosen ids, as Mixtral's in transformers 5.23.0. The
#        monitor takes top_k from the ids, but counts the highest score of each token. Half of all choices go to one
#        expert of 8 here, always as the second choice. It is reported as dead, and the load as nearly even.
# Why it matters: the hottest expert gets the alert of an unused one, and a placement made of the counts ignores it.
#
# The monitor's own hook and collector count; numpy stands in for the few operations of torch that they use.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$dir/venv"
py="$dir/venv/bin/python"
"$py" -m pip install -q --disable-pip-version-check --no-deps numpy==2.4.6 moewatch==0.1.0

"$py" -W ignore - <<'PY'
import importlib, importlib.metadata, importlib.util, sys, types
import numpy as np


class Tensor(np.ndarray):
    def detach(self):
        return self

    def cpu(self):
        return self

    def to(self, dtype):
        return self.astype(dtype)

    def float(self):
        return self.astype(np.float32)

    def argmax(self, dim):
        return np.argmax(np.asarray(self), axis=dim)


def tensor(values):
    return np.asarray(values).view(Tensor)


torch = types.ModuleType("torch")
torch.Tensor, torch.nn = Tensor, types.ModuleType("torch.nn")
torch.nn.Module = object
torch.float16, torch.float32, torch.float64, torch.bfloat16 = np.float16, np.float32, np.float64, None
torch.int32, torch.int64 = np.int32, np.int64
torch.zeros = lambda length, dtype: tensor(np.zeros(length, dtype))
torch.bincount = lambda ids, minlength: tensor(np.bincount(ids, minlength=minlength))
sys.modules.update({"torch": torch, "torch.nn": torch.nn})
# The package files import the whole monitor; only the parts that count are loaded.
folder = importlib.util.find_spec("moewatch").submodule_search_locations[0]
for name in ("", ".hooks", ".collector"):
    package = types.ModuleType("moewatch" + name)
    package.__path__ = [folder + name.replace(".", "/")]
    sys.modules["moewatch" + name] = package
config = importlib.import_module("moewatch.config").WatchConfig(sample_every=1)
collector = importlib.import_module("moewatch.collector.stat_collector").StatCollector(["router"], config)
hook = importlib.import_module("moewatch.hooks.router_hook").RouterHook("router", collector, config)

experts, topk, tokens = 8, 2, 700
scores = np.zeros((tokens, experts), np.float32)
scores[np.arange(tokens), np.arange(tokens) % (experts - 1)] = 0.6
scores[:, experts - 1] = 0.4
ids = np.argsort(-scores, axis=-1)[:, :topk]
true = np.bincount(ids.ravel(), minlength=experts)

hook(None, (), (tensor(scores), tensor(np.take_along_axis(scores, ids, -1)), tensor(ids)))
stats = collector.get_layer_stats("router")
counts, dead = stats.expert_counts.tolist(), np.flatnonzero(stats.dead_mask(config.dead_threshold)).tolist()
print("VERSION moewatch", importlib.metadata.version("moewatch"), "numpy", np.__version__)
print("GUESS   counts", true.tolist(), "- hottest / mean %.2f, no dead expert" % (true.max() / true.mean()))
print("SEEN    counts", counts, "- hottest / mean %.2f, dead experts" % stats.load_imbalance_score, dead)
print("SEEN    top_k", stats.top_k, "and", sum(counts), "counts of", tokens, "tokens")
good = stats.top_k == topk and sum(counts) == tokens and dead == [experts - 1] == [int(true.argmax())]
sys.exit(0 if good else "the behaviour is not as stated")
PY
