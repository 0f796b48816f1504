"""vLLM: its planner on eplb's counts, and its tables and planner on eplb's placements.

vLLM reads and writes no files of loads or placements: arrays are the exchange. Its engine is not imported.
"""

import importlib
import inspect
import sys
import tempfile

import eplb as package
import numpy as np
import torch

sys.path.pop(0)  # this folder, whose vllm.py is this file
sys.path.insert(0, "peers")
from program import DUMP, check, eplb, packages, stand_in

packages("vllm", "vllm.distributed", "vllm.distributed.eplb", "vllm.distributed.eplb.policy")
stand_in("vllm.config", "vllm.config.utils", "vllm.distributed.parallel_state", "vllm.distributed.stateless_coordinator",
         "vllm.distributed.utils", "vllm.logger", "vllm.model_executor.models.interfaces", "vllm.platforms",
         "vllm.utils.gpu_sync_debug", "vllm.utils.torch_utils", "vllm.distributed.eplb.async_worker",
         "vllm.distributed.eplb.eplb_communicator", "vllm.distributed.eplb.eplb_utils",
         "vllm.distributed.eplb.rebalance_execute")
Policy = importlib.import_module("vllm.distributed.eplb.policy.default").DefaultEplbPolicy
sys.modules["vllm.distributed.eplb.policy"].EPLB_POLICIES = {"default": Policy}
sys.modules["vllm.distributed.eplb.policy"].AbstractEplbPolicy = object
sys.modules["vllm.distributed.eplb.policy"].DefaultEplbPolicy = Policy
state = importlib.import_module("vllm.distributed.eplb.eplb_state")
Interface = importlib.import_module("vllm.distributed.eplb.policy.abstract").AbstractEplbPolicy

RANKS, SLOTS, EXPERTS = 8, 72, 64


def replicas(placement):
    return np.stack([np.bincount(row, minlength=EXPERTS) for row in placement])


def hottest(placement, weight):
    """The hottest rank's load over the mean, by layer; replicas share evenly."""
    share = np.take_along_axis(weight / replicas(placement), placement, axis=1)
    ranks = share.reshape(len(placement), RANKS, -1).sum(axis=2)
    return ranks.max(axis=1) / ranks.mean(axis=1)


with tempfile.TemporaryDirectory() as folder:
    counts, config, array = f"{folder}/counts.npy", f"{folder}/config.yaml", f"{folder}/phy2log.npy"
    eplb("convert", DUMP, counts, "--to", "npy")
    check("several iterations are three axes", np.load(counts).ndim == 3)
    try:
        Policy.rebalance_experts(torch.from_numpy(np.load(counts)), SLOTS, 1, 1, RANKS)
        taken = True
    except ValueError:
        taken = False
    check("the planner refuses three axes", not taken)
    eplb("convert", DUMP, counts, "--to", "npy", "--sum")
    weight = torch.from_numpy(np.load(counts))
    check("--sum makes two axes", tuple(weight.shape) == (26, EXPERTS))

    for groups, nodes, policy in ((1, 1, "deepseek-global"), (8, 2, "deepseek-hierarchical")):
        theirs = Policy.rebalance_experts(weight, SLOTS, groups, nodes, RANKS)
        np.save(array, theirs.numpy())
        eplb("convert", array, config, "--from", "phy2log-npy", "--layers", "1-26", "--ep_size", RANKS, "--to", "config")
        eplb("convert", config, array, "--ep_size", RANKS, "--to", "phy2log-npy")
        check(f"{groups} groups, {nodes} nodes: eplb takes the planner's result and gives it back",
              (np.load(array) == theirs.numpy()).all())
        flags = ("--num_groups", groups, "--num_nodes", nodes) if groups > 1 else ()
        eplb("generate", "--expert_statistic_path", DUMP, "--ep_size", RANKS, "--num_slots", SLOTS, "--policy", policy,
             *flags, "--output_path", config)
        eplb("convert", config, array, "--ep_size", RANKS, "--to", "phy2log-npy")
        check(f"{groups} groups, {nodes} nodes: as many replicas of each expert as by eplb's {policy}",
              (replicas(np.load(array)) == replicas(theirs.numpy())).all())

    eplb("generate", "--expert_statistic_path", DUMP, "--ep_size", RANKS, "--num_slots", SLOTS, "--num_samples", 1,
         "--output_path", config)
    eplb("convert", config, array, "--ep_size", RANKS, "--to", "phy2log-npy")
    ours = torch.from_numpy(np.load(array))
    theirs = Policy.rebalance_experts(weight, SLOTS, 1, 1, RANKS)
    check("no layer is less balanced by eplb's search than by the planner",
          (hottest(ours.numpy(), weight.numpy()) <= hottest(theirs.numpy(), weight.numpy()) + 1e-6).all())
    slots, valid = state.compute_logical_maps(ours, EXPERTS)
    check("the engine's tables for eplb's placement have each slot under its expert",
          all(sorted(slots[layer, expert][slots[layer, expert] >= 0].tolist())
              == np.flatnonzero(ours[layer].numpy() == expert).tolist()
              for layer in range(26) for expert in range(EXPERTS)) and (valid.numpy() == replicas(ours.numpy())).all())
    moved = Policy.rebalance_experts(weight, SLOTS, 1, 1, RANKS, ours)
    by_rank = [set(map(tuple, np.sort(map_.numpy().reshape(26 * RANKS, -1)))) for map_ in (moved, theirs)]
    stays = (moved.numpy() == ours.numpy()).sum() > (theirs.numpy() == ours.numpy()).sum()
    check("from eplb's placement the planner plans the same ranks, and keeps slots", by_rank[0] == by_rank[1] and stays)

    class Deepseek(package.vllm.EplbPolicy):
        policy = "deepseek"

    check("the package's policy has the interface's arguments",
          list(inspect.signature(package.vllm.EplbPolicy.rebalance_experts).parameters)
          == list(inspect.signature(Interface.rebalance_experts).parameters))
    for groups, nodes in ((1, 1), (8, 2), (8, 3)):
        theirs = Policy.rebalance_experts(weight, SLOTS, groups, nodes, RANKS)
        fresh = Deepseek.rebalance_experts(weight, SLOTS, groups, nodes, RANKS)
        check(f"{groups} groups, {nodes} nodes: the package's policy returns a tensor like the planner's, with its replicas",
              (fresh.dtype, fresh.device, fresh.shape) == (theirs.dtype, theirs.device, theirs.shape)
              and (replicas(fresh.numpy()) == replicas(theirs.numpy())).all())
    fresh = package.vllm.EplbPolicy.rebalance_experts(weight, SLOTS, 1, 1, RANKS)
    check("its search is at least as balanced in each layer",
          (hottest(fresh.numpy(), weight.numpy()) <= hottest(theirs.numpy(), weight.numpy()) + 1e-6).all())
    for old in (ours, theirs, torch.arange(SLOTS).expand(26, -1) % EXPERTS):
        kept = package.vllm.EplbPolicy.rebalance_experts(weight, SLOTS, 1, 1, RANKS, old)
        engine = Policy.preserve_intragpu_slots(fresh.numpy(), RANKS, old.numpy())
        check(f"with an old map it keeps {int((kept == old).sum())} slots, as many as the planner would",
              (kept.numpy() == old.numpy()).sum() == (engine == old.numpy()).sum()
              and (np.sort(kept.numpy().reshape(26, RANKS, -1)) == np.sort(engine.reshape(26, RANKS, -1))).all())
    slots, valid = state.compute_logical_maps(kept, EXPERTS)
    check("the engine's tables take its result", (valid.numpy() == replicas(kept.numpy())).all())
