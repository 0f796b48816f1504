"""LMDeploy: its planner on eplb's counts, and eplb on its result. The engine is not imported."""

import importlib
import json
import os
import sys
import tempfile

import numpy as np

sys.path.pop(0)  # this folder, whose lmdeploy.py is this file
sys.path.insert(0, "peers")
from program import DUMP, check, eplb, packages

RANKS, SLOTS, EXPERTS, LAYERS = 8, 72, 64, 27
os.environ["LMDEPLOY_EPLB_NUM_REDUNDANT_EXPERTS"] = str(SLOTS - EXPERTS)
packages("lmdeploy", "lmdeploy.pytorch", "lmdeploy.pytorch.nn")
eplb_module = importlib.import_module("lmdeploy.pytorch.nn.eplb")


def plan(statistic):
    eplb_module.eplb_experts_statistic_file = statistic
    return eplb_module.EPLBMetadata.init(RANKS, EXPERTS, LAYERS).physical_to_logical_map.numpy()


def slot_loads(placement, counts):
    replicas = np.stack([np.bincount(row, minlength=EXPERTS) for row in placement])
    return np.take_along_axis(np.array(counts) / replicas, placement, axis=1)


with tempfile.TemporaryDirectory() as folder:
    statistic, config, array = f"{folder}/statistic.json", f"{folder}/config.yaml", f"{folder}/phy2log.npy"
    eplb("convert", DUMP, statistic, "--to", "lmdeploy")
    rows = json.load(open(statistic))
    check("the file has a row for each layer, zeros for the dense one", len(rows) == LAYERS and not any(rows[0]))
    check("the planner's module has the redundant experts and groups of this test",
          (eplb_module.eplb_num_redundant_experts, eplb_module.eplb_num_groups) == (8, 4))
    theirs = plan(statistic)
    eplb("generate", "--expert_statistic_path", DUMP, "--ep_size", RANKS, "--num_slots", SLOTS,
         "--policy", "deepseek-hierarchical", "--num_groups", 4, "--num_nodes", 1, "--output_path", config)
    eplb("convert", config, array, "--ep_size", RANKS, "--to", "phy2log-npy")
    # Its sort is not stable, so experts of equal load may be exchanged.
    check("its placement is that of eplb's deepseek-hierarchical with 4 groups: each slot has the same load",
          (slot_loads(theirs[1:], rows[1:]) == slot_loads(np.load(array), rows[1:])).all())
    np.save(array, theirs)
    eplb("convert", array, config, "--from", "phy2log-npy", "--layers", "1-26", "--ep_size", RANKS, "--to", "config")
    eplb("convert", config, array, "--ep_size", RANKS, "--to", "phy2log-npy")
    check("eplb takes its placement and gives it back", (np.load(array) == theirs[1:]).all())
    ramp = plan(None)
    check("without a file it plans for a ramp: expert 0 gets the first replica, and no expert of the upper half gets one",
          (np.bincount(ramp[1], minlength=EXPERTS)[EXPERTS // 2:] == 1).all()
          and np.bincount(ramp[1], minlength=EXPERTS)[0] > 1)
