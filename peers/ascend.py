"""vllm-ascend: its loader on eplb's expert maps, and eplb on its recorder's.

The engine and the NPU are not imported: tensors stay on the CPU.
"""

import importlib
import subprocess
import tempfile
import types

import eplb as package
import numpy as np
import torch
from program import DUMP, PROGRAM, check, eplb, packages, refused, stand_in

packages("vllm_ascend", "vllm_ascend.eplb", "vllm_ascend.eplb.core", "vllm_ascend.eplb.adaptor")
stand_in("vllm", "vllm.logger", "vllm.model_executor", "vllm.model_executor.layers", "vllm.model_executor.layers.fused_moe",
         "vllm.model_executor.layers.fused_moe.expert_map_manager", "vllm_ascend.ascend_config",
         "vllm_ascend.quantization", "vllm_ascend.quantization.quant_type")
torch.Tensor.npu = lambda tensor: tensor
utils = importlib.import_module("vllm_ascend.eplb.core.eplb_utils")
Adaptor = importlib.import_module("vllm_ascend.eplb.adaptor.vllm_adaptor").VllmEplbAdaptor


def wrong_entries(path, placement, ranks, experts):
    """How many (layer, rank, expert) have a slot of another expert in the engine's tables."""
    wrong = 0
    for layer, row in enumerate(placement):
        for rank in range(ranks):
            config = types.SimpleNamespace(expert_map_path=path, dynamic_eplb=False, num_redundant_experts=0)
            moe = types.SimpleNamespace(num_experts=experts, ep_size=ranks, ep_rank=rank)
            _, _, slots, _ = utils.init_eplb_config(config, layer, moe, tp_size=1)
            slots = slots.numpy()
            wrong += int((row[np.minimum(slots, len(row) - 1)] != np.arange(experts)).sum())
    return wrong


def planned(folder, dump, ranks, slots, policy):
    config, array = f"{folder}/config.yaml", f"{folder}/phy2log.npy"
    eplb("generate", "--expert_statistic_path", dump, "--ep_size", ranks, "--num_slots", slots, "--policy", policy,
         "--output_path", config)
    eplb("convert", config, array, "--ep_size", ranks, "--to", "phy2log-npy")
    return config, np.load(array)


with tempfile.TemporaryDirectory() as folder:
    path = f"{folder}/map.json"
    for dump, ranks, slots, experts in ((DUMP, 8, 72, 64), ("data/dumps/dsr1-extreme", 32, 288, 256)):
        config, placement = planned(folder, dump, ranks, slots, "search")
        eplb("convert", config, path, "--ep_size", ranks, "--to", "vllm-ascend")
        rows = [utils.expert_file_to_tensor(path, layer) for layer in range(len(placement))]
        check(f"{slots} slots on {ranks} ranks: the loader reads the placement of search",
              all(count == slots and (row.flatten().numpy() == ours).all() for (row, count), ours in zip(rows, placement)))
        check("each rank's table has a slot of each expert", wrong_entries(path, placement, ranks, experts) == 0)

    placement = package.vllm_ascend.save_expert_map(DUMP, path, 8, 72).slot_experts
    rows = [utils.expert_file_to_tensor(path, layer) for layer in range(len(placement))]
    check("the package makes the map from a dump in one call, and no entry is wrong",
          all((row.flatten().numpy() == ours).all() for (row, _), ours in zip(rows, placement))
          and wrong_entries(path, placement, 8, 64) == 0)
    try:
        package.vllm_ascend.save_expert_map("data/dumps/dsr1-extreme", path, 32, 288, policy="trtllm")
        taken = True
    except package.EplbError as error:
        taken = error.status != package.Status.INVALID_PLACEMENT
    check("the package refuses a placement that would be served wrongly", not taken)

    config, placement = planned(folder, "data/dumps/dsr1-extreme", 32, 288, "trtllm")
    message = refused("convert", config, f"{folder}/none.json", "--ep_size", 32, "--to", "vllm-ascend")
    eplb("convert", config, path, "--ep_size", 32, "--to", "vllm-ascend", "--force")
    wrong = wrong_entries(path, placement, 32, 256)
    check(f"the placement of trtllm is refused with a reason; forced, {wrong} entries are of other experts",
          "policy search" in message and wrong > 0)

    # An expert twice on a device other than the first.
    rows = np.array([[0, 1, 2, 3, 4, 4]])
    np.save(f"{folder}/twice.npy", rows)
    run = subprocess.run([PROGRAM, "convert", f"{folder}/twice.npy", path, "--from", "phy2log-npy", "--ep_size", "2",
                          "--to", "vllm-ascend"], capture_output=True, text=True)
    check("an expert twice on the second device is a warning, and no entry is wrong",
          run.returncode == 0 and "1 slots over all layers" in run.stderr and wrong_entries(path, rows, 2, 5) == 0)

    # The recorder: for each layer and device, the slot of each expert there, or -1.
    config, placement = planned(folder, DUMP, 8, 72, "search")
    maps = torch.full((26, 8, 64), -1)
    for layer, row in enumerate(placement.reshape(26, 8, 9)):
        for device, held in enumerate(row):
            maps[layer, device, torch.from_numpy(held)] = torch.arange(9)
    Adaptor._export_tensor_to_file(types.SimpleNamespace(rank_id=0), maps, path)
    eplb("convert", path, f"{folder}/again.npy", "--layers", "1-26", "--to", "phy2log-npy")
    check("eplb reads the recorder's map", (np.load(f"{folder}/again.npy") == placement).all())
