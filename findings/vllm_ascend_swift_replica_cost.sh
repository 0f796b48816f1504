#!/bin/sh
# vllm-ascend 0.23.0, EPLB policy 2 (SwiftBalanceEplb, the default): a second replica costs more than half.
#
# Guess: an expert with n replicas puts load / n on each rank that holds one.
# Seen:  the policy plans with 2 * load / (n + 1): two replicas of load 120 are weighed as 80 and 80. The planned
#        loads add up to more than the tokens, so spare slots go to experts that do not need them. A new placement
#        with these loads is compared with the present one at true loads, so a good one can be refused.
# Why it matters: a placement of this policy is no baseline for what the spare slots can give.
#
# The policy needs torch and torch_npu only for a device count and type names; two empty modules stand in for them.
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
import glob, heapq, importlib, sys, types, zipfile
import numpy as np

folder = sys.argv[1]
inside = "vllm_ascend/eplb/core/policy/"
with zipfile.ZipFile(glob.glob(folder + "/vllm_ascend-*.whl")[0]) as wheel:
    for name in ("policy_abstract.py", "policy_swift_balancer.py"):
        wheel.extract(inside + name, folder)

torch = types.ModuleType("torch")
torch.Tensor = object
torch.npu = types.SimpleNamespace(device_count=lambda: 8)
package = types.ModuleType("policies")
package.__path__ = [folder + "/" + inside]
sys.modules.update(torch=torch, torch_npu=types.ModuleType("torch_npu"), policies=package)
Swift = importlib.import_module("policies.policy_swift_balancer").SwiftBalanceEplb


class Table(np.ndarray):
    def numpy(self):
        return np.asarray(self)


class TrueShares(Swift):
    """The same policy, but n replicas carry load / n each."""

    def compute_redundant_assignments(self, initial_weights, num_redundant_experts, num_ranks):
        load = dict(initial_weights)
        copies = dict.fromkeys(load, 1)
        heap = [(-amount, -expert) for expert, amount in load.items()]
        heapq.heapify(heap)
        for _ in range(num_redundant_experts):
            expert = -heapq.heappop(heap)[1]
            copies[expert] += 1
            if copies[expert] < num_ranks:
                heapq.heappush(heap, (-load[expert] / copies[expert], -expert))
        each = np.array([load[e] / copies[e] for e in sorted(load)], dtype=np.float32)
        extra = [(e, float(each[e])) for e in load for _ in range(copies[e] - 1)]
        return sorted(extra, key=lambda pair: -pair[1]), each


def first_placement(ranks, slots):
    """Consecutive experts; the last slot of a rank repeats the first expert of the next one."""
    own = slots - 1
    return [[r * own + i for i in range(own)] + [(r + 1) * own % (ranks * own)] for r in range(ranks)]


def loads_of_slots(placement, load):
    copies = np.bincount(np.ravel(placement), minlength=len(load))
    return [[load[e] / copies[e] for e in rank] for rank in placement]


def hottest(placement, load):
    """Tokens of the most loaded rank over the mean, replicas sharing evenly."""
    ranks = np.sum(loads_of_slots(placement, load), axis=1)
    return round(float(ranks.max() / ranks.mean()), 3)


def plan(policy, placement, load):
    table = np.array([placement], dtype=np.int64).view(Table)
    slots = np.array([loads_of_slots(placement, load)]).view(Table)
    return policy().rebalance_experts(table, slots)[2][0]


print("VERSION vllm-ascend 0.23.0, numpy", np.__version__)
print("GUESS   load 120 with 2, 3, 4 replicas: 60, 40, 30 on each")
policy = Swift()
policy.num_original_experts = 4
weighed = []
for spare in (1, 2, 3):
    _, each = policy.compute_redundant_assignments([(0, 120.0), (1, 1.0), (2, 1.0), (3, 1.0)], spare, 8)
    weighed.append(float(each[0]))
print("SEEN    load 120 with 2, 3, 4 replicas:", weighed, "on each")

small = [3, 40, 41, 6, 78, 61, 106, 74]
start = first_placement(4, 3)
kept = plan(Swift, start, small)
small_seen = (hottest(start, small), hottest(kept, small), hottest(plan(TrueShares, start, small), small))
line = "SEEN    %s slots, hottest rank / mean: before %s, planned %s, with 1 / n for n replicas %s"
print(line % (("8 experts, 4 ranks of 3",) + small_seen))
refused = kept == start
print("SEEN    the placement is", "kept" if refused else "changed")

large = [20000 // (1 + e * 101 % 256) + 1 for e in range(256)]
start = first_placement(32, 9)
large_seen = tuple(hottest(p, large) for p in (start, plan(Swift, start, large), plan(TrueShares, start, large)))
print(line % (("256 experts, 32 ranks of 9",) + large_seen))

good = (
    weighed == [80.0, 60.0, 48.0]
    and refused
    and small_seen[0] == small_seen[1] > 1.4 * small_seen[2]
    and large_seen[1] > 1.04 * large_seen[2]
)
sys.exit(0 if good else "the behaviour is not as stated")
PY
