#!/bin/sh
# mlx-lm 0.32.2, DeepSeek-V3 routing: with negative expert biases, tokens go to the groups that the limit rules out.
#
# Guess: a token's experts come from its topk_group best groups, whatever the biases. One number added to the bias of
#        every expert changes nothing: the biases only rank the experts.
# Seen:  experts of the other groups get the score 0, not minus infinity. Where the biased scores of the best groups
#        are below 0, the 0 wins. With 1 taken from each bias, no choice is in a best group. The zeros tie, so the
#        choices meet on few experts: the hottest one has 18 times the mean load, not 1.8 times. Biases around 0 seldom
#        show it.
# Why it matters: balancing without a loss moves biases by steps, and they can drift below 0 together. The limit is
#        there to bound the nodes that a token visits. The loads of such a model are not those of other engines:
#        DeepSeek-V3 in transformers 5.23.0 uses minus infinity (read, not run).
#
# The model's own function runs on the CPU (MLX needs glibc 2.35). mlx_lm's package file is skipped, as it imports
# tokenizers.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$dir/venv"
py="$dir/venv/bin/python"
"$py" -m pip install -q --disable-pip-version-check --no-deps mlx-cpu==0.32.4 mlx==0.32.4 mlx-lm==0.32.2 numpy==2.4.6

"$py" - <<'PY'
import importlib, importlib.metadata, importlib.util, sys, types
import mlx.core as mx
import numpy as np

mx.set_default_device(mx.cpu)
folder = importlib.util.find_spec("mlx_lm").submodule_search_locations[0]
for name, path in (("mlx_lm", folder), ("mlx_lm.models", folder + "/models")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
select = importlib.import_module("mlx_lm.models.deepseek_v3").group_expert_select

tokens, experts, groups, kept, topk = 512, 256, 8, 4, 8
logits = np.random.default_rng(1).normal(size=(tokens, experts)).astype(np.float32)
scores = (1 / (1 + np.exp(-logits))).reshape(tokens, groups, -1)
best = np.argsort(-np.sort(scores, -1)[..., -2:].sum(-1), -1)[:, :kept]  # by the sum of a group's two best

print("VERSION mlx-lm", importlib.metadata.version("mlx-lm"), "mlx", importlib.metadata.version("mlx"))
print("GUESS   biases all 0, all 1, all -1: the same experts, none outside a token's %d best groups" % kept)
seen = {}
for bias in (0.0, 1.0, -1.0):
    chosen = np.array(select(mx.array(logits), mx.full((experts,), bias), topk, groups, kept, 1.0, True)[0])
    outside = sum(expert // (experts // groups) not in row for ids, row in zip(chosen, best) for expert in ids)
    load = np.bincount(chosen.ravel(), minlength=experts)
    seen[bias] = (np.sort(chosen, -1), outside, load.max() / load.mean())
    print("SEEN    biases all %g: %d of %d choices outside, hottest expert / mean %.1f" % (
        bias, outside, chosen.size, load.max() / load.mean()))
good = np.array_equal(seen[0.0][0], seen[1.0][0]) and seen[0.0][1] == seen[1.0][1] == 0
good = good and seen[-1.0][1] == tokens * topk and seen[-1.0][2] > 4 * seen[0.0][2]
sys.exit(0 if good else "the behaviour is not as stated")
PY
