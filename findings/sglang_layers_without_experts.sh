#!/bin/sh
# SGLang 0.5.23, threshold for rebalancing: layers without experts count as perfectly balanced, and by default it is ignored.
#
# Guess: --eplb-min-rebalancing-utilization-threshold is compared with the mean, over the MoE layers, of the ranks' mean
#        load over their highest. Above the threshold nothing is moved.
# Seen:  the mean is over all layers of the model, and no tokens on any rank read 1.0. 23 of the 52 layers of Nemotron 3 Nano
#        have experts. With all tokens of each of them on one rank of 8, the worst case, the utilization reads 0.61, not
#        0.125. It is measured only with --expert-balancedness-report-mode. Without that the threshold has no effect.
# Why it matters: at 0.6 that model is never rebalanced on 8 ranks, and in the default mode any model is. Values of models with
#        different shares of MoE layers do not compare.
#
# The functions run from the wheel, on numpy arrays, which einops takes as they are.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$dir/venv"
py="$dir/venv/bin/python"
"$py" -m pip install -q --disable-pip-version-check --no-deps numpy==2.4.6 einops==0.8.1
"$py" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.11 \
    --platform manylinux_2_34_x86_64 -d "$dir" sglang==0.5.23

"$py" - "$dir" <<'PY'
import ast, glob, logging, math, sys, types, zipfile
import einops
import numpy as np

with zipfile.ZipFile(glob.glob(sys.argv[1] + "/sglang-*.whl")[0]) as wheel:
    sources = {name: wheel.read("sglang/srt/" + name).decode() for name in (
        "eplb/expert_distribution.py", "eplb/eplb_manager.py", "models/nemotron_h.py", "arg_groups/fields/exec_.py")}


def load(name, *wanted):
    """Defines functions of a file, and methods of its classes ("Class.method") as functions."""
    body = []
    for node in ast.parse(sources[name]).body:
        inside = node.body if isinstance(node, ast.ClassDef) else []
        body += [node] if getattr(node, "name", "") in wanted else []
        body += [method for method in inside if "%s.%s" % (node.name, getattr(method, "name", "")) in wanted]
    exec(compile(ast.Module(body, []), name, "exec"), names)


class Counts(np.ndarray):
    def float(self):
        return self.astype(np.float32)


THRESHOLD = 0.6
exec_args = types.SimpleNamespace(moe=types.SimpleNamespace(eplb_min_rebalancing_utilization_threshold=THRESHOLD))
names = {
    "einops": einops, "torch": types.SimpleNamespace(Tensor=Counts), "get_exec": lambda: exec_args, "math": math,
    "logger": logging.getLogger(), "ModelConfigForExpertLocation": types.SimpleNamespace, "classmethod": lambda method: method,
}
load("eplb/expert_distribution.py", "compute_gpu_physical_count", "compute_utilization_rate",
     "_StatAccumulator._get_global_average_utilization_rate")
load("eplb/eplb_manager.py", "EPLBManager._check_rebalance_needed")
load("models/nemotron_h.py", "NemotronHForCausalLM.get_model_config_for_expert_location")

RANKS, SLOTS, TOKENS = 8, 128, 512
PATTERN = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"  # of Nemotron 3 Nano: an E is a layer with experts
config = types.SimpleNamespace(num_hidden_layers=len(PATTERN), max_n_routed_experts=SLOTS, n_group=1)
rows = names["get_model_config_for_expert_location"](None, config).num_layers


def utilization(counts):
    """Of one pass, as the recorder computes it before it takes the mean of its passes."""
    ranks = names["compute_gpu_physical_count"](counts.view(Counts), num_gpu=RANKS)
    return float(np.mean(names["compute_utilization_rate"](ranks)))


moe = [layer for layer, kind in enumerate(PATTERN) if kind == "E"]
worst = np.zeros((rows, SLOTS), np.int32)
worst[moe, : SLOTS // RANKS] = TOKENS  # the slots of rank 0
guess, seen = utilization(worst[moe]), utilization(worst)
unmeasured = names["_get_global_average_utilization_rate"](types.SimpleNamespace(_enable=False))
(mode,) = [node.value.value for node in ast.walk(ast.parse(sources["arg_groups/fields/exec_.py"]))
           if getattr(getattr(node, "target", None), "id", "") == "expert_balancedness_report_mode"]
need = names["_check_rebalance_needed"]
print("VERSION sglang 0.5.23, einops", einops.__version__, "numpy", np.__version__)
print("GUESS   all tokens of all %d MoE layers on one rank of %d read %.3f" % (len(moe), RANKS, guess))
print("SEEN    %d layers are counted, and they read %.3f" % (rows, seen))
print("SEEN    threshold %.1f, rebalancing needed: %s at %.3f, %s at %.3f" % (
    THRESHOLD, need(None, guess), guess, need(None, seen), seen))
print("SEEN    report mode %s, the default: utilization %s, rebalancing needed: %s" % (mode, unmeasured, need(None, unmeasured)))
good = rows == 52 and len(moe) == 23 and abs(guess - 0.125) < 1e-3 and abs(seen - 0.613) < 1e-3
good = good and need(None, guess) and not need(None, seen) and (mode, unmeasured, need(None, None)) == ("off", None, True)
sys.exit(0 if good else "the behaviour is not as stated")
PY
