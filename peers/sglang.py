"""SGLang: its recorder's files into eplb, and eplb's maps and counts into its loader.

The recorder, the loader of --init-expert-location and the planners are SGLang's own. In place of the engine are its settings, the
model's class, and the sum over ranks: the ranks are recorders of this process.
"""

import contextlib
import importlib
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import eplb as package
import numpy as np
import torch

sys.path.pop(0)  # this folder, whose sglang.py is this file
sys.path.insert(0, "peers")
from program import DUMP, check, eplb, packages, refused, stand_in

RANKS, SLOTS, EXPERTS, ROWS, TOPK = 2, 72, 64, 27, 6  # row 0 is the dense layer

packages("sglang", "sglang.srt", "sglang.srt.eplb", "sglang.srt.eplb.eplb_simulator")
stand_in("einops", "tqdm", "sglang.srt.environ", "sglang.srt.model_executor.forward_batch_info",
         "sglang.srt.observability.metrics_collector", "sglang.srt.runtime_context", "sglang.srt.utils",
         "sglang.srt.elastic_ep.elastic_ep", "sglang.srt.model_loader", "sglang.srt.layers.moe")


class Withable:
    """A value within a region, as in sglang.srt.utils."""

    value = None

    @contextlib.contextmanager
    def with_value(self, value):
        self.value = value
        yield
        self.value = None


moe = SimpleNamespace(
    ep_num_redundant_experts=SLOTS - EXPERTS, ep_dispatch_algorithm=None, ep_join_mode=None, eplb_algorithm="deepseek",
    moe_a2a_backend="none", elastic_ep_backend=None, expert_distribution_recorder_buffer_size=10,
    eplb_min_rebalancing_utilization_threshold=1.0,
)
context = sys.modules["sglang.srt.runtime_context"]
context.get_exec = lambda: SimpleNamespace(moe=moe, overlap=SimpleNamespace(enable_two_batch_overlap=False))
context.get_device = lambda: SimpleNamespace(device="cpu")
context.get_platform = lambda: SimpleNamespace(is_hip=False)
context.get_schedule = lambda: SimpleNamespace(chunked_prefill_size=8)
context.get_parallel = lambda: SimpleNamespace(nnodes=1, ep_size=RANKS, elastic_ep_initial_size=None)
context.reports_expert_balancedness = lambda: False
sys.modules["sglang.srt.utils"].Withable = Withable
sys.modules["sglang.srt.utils"].get_device = lambda: "cpu"
sys.modules["tqdm"].tqdm = lambda items: items
torch.get_device_module = MagicMock(name="torch.cuda")

location = importlib.import_module("sglang.srt.eplb.expert_location")
distribution = importlib.import_module("sglang.srt.eplb.expert_distribution")
read_mode_per_pass = importlib.import_module("sglang.srt.eplb.eplb_simulator.reader").read_mode_per_pass
model = SimpleNamespace(get_model_config_for_expert_location=lambda _: location.ModelConfigForExpertLocation(ROWS, EXPERTS))
sys.modules["sglang.srt.model_loader"].get_model_architecture = lambda _: (model, None)

of_others = []  # the counts of the ranks above 0, which dump first


def all_reduce(tensor, op):
    if len(of_others) == RANKS - 1:
        tensor += sum(of_others)
        of_others.clear()
    else:
        of_others.append(tensor.clone())


torch.distributed.all_reduce = all_reduce


def load(path):
    """The metadata that SGLang makes of --init-expert-location."""
    moe.init_expert_location = str(path)
    return location.compute_initial_expert_location_metadata(MagicMock(), moe_ep_rank=0)


def recorders(mode, metadata):
    moe.expert_distribution_recorder_mode = mode
    return [distribution.ExpertDistributionRecorder.init_new(metadata, rank) for rank in range(RANKS)]


def run(ranks, metadata, passes, random):
    """Runs forward passes on all ranks. Returns the counts by expert, [passes][layers][experts]."""
    counts = np.zeros((len(passes), ROWS, EXPERTS), np.int64)
    for recorder in ranks:
        recorder.start_record()
    for at, number in enumerate(passes):
        for recorder in ranks:
            tokens = int(random.integers(1, 8))
            batch = SimpleNamespace(input_ids=torch.arange(tokens), positions=torch.arange(tokens),
                                    extend_seq_lens_cpu=[tokens], forward_mode=SimpleNamespace(value=1))
            with recorder.with_forward_pass(number, batch):
                for layer in range(1, ROWS):
                    slots = np.stack([random.choice(SLOTS, TOPK, replace=False) for _ in range(tokens)])
                    with recorder.with_current_layer(layer):
                        recorder.on_select_experts(torch.from_numpy(slots))
                    experts = metadata.physical_to_logical_map[layer].numpy()[slots]
                    counts[at, layer] += np.bincount(experts.ravel(), minlength=EXPERTS)
    for recorder in ranks:
        recorder.stop_record()
    return counts


def dump(ranks, folder):
    """Lets all ranks dump. Returns the new files."""
    folder.mkdir()
    sys.modules["sglang.srt.environ"].envs.SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR.get = lambda: str(folder)
    for recorder in reversed(ranks):
        recorder.dump_record()
    return sorted(folder.iterdir())


def counts_of(path, folder):
    """The counts that eplb reads, [iterations][layers 1 to 26][experts], and what it prints."""
    array = folder / "counts.npy"
    printed = eplb("convert", path, array, "--to", "npy", "--num_experts", EXPERTS)
    counts = np.load(array)
    return counts.reshape(-1, *counts.shape[-2:]), printed


with tempfile.TemporaryDirectory() as name:
    folder, random = Path(name), np.random.default_rng(0)
    config, as_json, as_pt = folder / "config.yaml", folder / "map.json", folder / "map.pt"
    eplb("generate", "--expert_statistic_path", DUMP, "--ep_size", RANKS, "--num_slots", SLOTS, "--output_path", config)
    eplb("convert", config, as_json, "--ep_size", RANKS, "--to", "sglang-map")
    metadata = load(as_json)
    eplb("convert", config, folder / "phy2log.npy", "--ep_size", RANKS, "--to", "phy2log-npy")
    phy2log = np.load(folder / "phy2log.npy")
    check("the loader takes eplb's map, with a row for the dense layer",
          metadata.physical_to_logical_map.shape == (ROWS, SLOTS)
          and (metadata.physical_to_logical_map[1:].numpy() == phy2log).all())
    replicas = np.stack([np.bincount(row, minlength=EXPERTS) for row in phy2log])
    check("its tables count the replicas of eplb's map",
          (metadata.logical_to_all_physical_map_num_valid[1:].numpy() == replicas).all())
    torch.save({"physical_to_logical_map": metadata.physical_to_logical_map}, as_pt)
    again = folder / "again.yaml"
    eplb("convert", as_pt, again, "--ep_size", RANKS, "--layers", "1-26", "--to", "config")
    planned_for = b"# eplb:"  # what a plan was made for, which a map does not say
    check("eplb reads the loader's map from a .pt as the same file",
          again.read_bytes() == config.read_bytes()[:config.read_bytes().index(planned_for)])

    ranks = recorders("stat", metadata)
    expected = run(ranks, metadata, range(1, 7), random)
    files = dump(ranks, folder / "stat")
    counts, printed = counts_of(files[0], folder)
    check("stat: one file for all ranks, of the same counts", len(files) == 1 and (counts == expected[:, 1:]).all())
    expected = run(ranks, metadata, range(7, 14), random)
    placement = package.sglang.save_expert_location(files[0], folder / "location.json", RANKS, SLOTS, num_model_layers=ROWS)
    located = load(folder / "location.json")
    check("the package makes the file of --init-expert-location from a recording in one call",
          (located.physical_to_logical_map[1:].numpy() == placement.slot_experts).all()
          and (located.logical_to_all_physical_map_num_valid[1:].sum(1) == SLOTS).all())
    counts, printed = counts_of(dump(ranks, folder / "second")[0], folder)
    check("stat: the second dump of a process is put in order",
          "put in order: the recording begins at step 6" in printed and (counts == expected[:, 1:]).all())

    for mode in ("per_pass", "per_token"):
        ranks = recorders(mode, metadata)
        expected = run(ranks, metadata, range(5, 9), random)
        files = dump(ranks, folder / mode)
        counts, _ = counts_of(folder / mode, folder)
        check(f"{mode}: one file a rank, summed to the same counts",
              len(files) == RANKS and (counts == expected[:, 1:]).all())
        with contextlib.redirect_stdout(None):
            pack = read_mode_per_pass(folder / mode)
        theirs = distribution._convert_global_physical_count_to_logical_count(
            pack["global_physical_count_of_forward_pass"], ROWS, EXPERTS, pack["last_physical_to_logical_map"])
        check(f"{mode}: as by SGLang's own reader of such files", (counts == theirs[:, 1:].numpy()).all())
        one, _ = counts_of(files[1], folder)
        check(f"{mode}: a file alone has the counts of its rank", (one <= counts).all() and (one < counts).any())

    weight = torch.from_numpy(np.load(folder / "counts.npy").reshape(-1, ROWS - 1, EXPERTS).sum(0))
    algorithm = importlib.import_module("sglang.srt.eplb.eplb_algorithms.deepseek")
    for groups, nodes in ((1, 1), (8, 2)):
        theirs = algorithm.rebalance_experts(weight, SLOTS, groups, nodes, 8, groups > 1)
        ours = package.rebalance_experts(weight, SLOTS, groups, nodes, 8)
        check(f"{groups} groups, {nodes} nodes: the package's rebalance_experts has the planner's replicas and types",
              (ours[2] == theirs[2]).all() and [t.dtype for t in ours] == [t.dtype for t in theirs]
              and ours[0].shape == theirs[0].shape and ours[2].shape == theirs[2].shape)

    rounded = package.rebalance_experts(weight.bfloat16(), SLOTS, 1, 1, 8)
    theirs = algorithm.rebalance_experts(weight.bfloat16(), SLOTS, 1, 1, 8, False)
    check("it takes a tensor of bfloat16 as the planner does", (rounded[2] == theirs[2]).all())

    logical = folder / "logical_count.json"
    eplb("convert", DUMP, logical, "--to", "sglang-count")
    planned = load(logical)
    counts = np.array(json.loads(logical.read_text())["logical_count"])
    eplb("generate", "--expert_statistic_path", DUMP, "--ep_size", RANKS, "--num_slots", SLOTS, "--policy", "deepseek-global",
         "--output_path", config)
    eplb("convert", config, folder / "phy2log.npy", "--ep_size", RANKS, "--to", "phy2log-npy")
    replicas = np.stack([np.bincount(row, minlength=EXPERTS) for row in np.load(folder / "phy2log.npy")])
    check("the planner takes eplb's counts, and replicates as eplb's deepseek-global",
          (planned.logical_to_all_physical_map_num_valid[1:].numpy() == replicas).all())

    # The mean over iterations, as SGLang's users average recordings.
    averages, loads = folder / "averages.pt", folder / "loads.json"
    torch.save({"logical_count": torch.from_numpy(counts).double().mean(0) + torch.from_numpy(counts > 0).any(0) * 0.1}, averages)
    eplb("convert", averages, loads, "--to", "sglang-count")
    written = np.array(json.loads(loads.read_text())["logical_count"])[0]
    check("averages keep their fractions", (written == torch.load(averages)["logical_count"].numpy()).all())
    check("the planner plans the same from eplb's file of averages",
          (load(loads).physical_to_logical_map == load(averages).physical_to_logical_map).all())
    check("a dump of averages is refused by name",
          "is a fraction" in refused("convert", averages, folder / "dump", "--to", "dump", "--experts_per_token", TOPK))
