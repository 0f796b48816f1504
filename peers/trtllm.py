"""TensorRT-LLM's configuration class and its reader of dumps.

The package on PyPI is an empty one that points to another index, so none of its code runs here. The class below is the
documented MoeLoadBalancerConfig: its three fields, no others, with pydantic's own coercion. The reader of dumps is the rule
that `generate_eplb_config.py` documents: all counts of all rank files are added up.
"""

import glob
import json
import os
import tempfile

import numpy as np
import yaml
from program import DUMP, check, eplb, refused
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.numpy import load_file


class MoeLoadBalancerConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")
    num_slots: int | None = None
    initial_global_assignments: dict[int, list[int]] | None = None
    layer_updates_per_iter: int = 0


def load(path):
    with open(path, encoding="utf-8") as file:
        return MoeLoadBalancerConfig(**yaml.safe_load(file))


def rows(config):
    return np.array([config.initial_global_assignments[layer] for layer in sorted(config.initial_global_assignments)])


def placement_hash(path):
    return next(line.split()[-1] for line in eplb("inspect", path, "--ep_size", 8).splitlines() if "hash" in line)


with tempfile.TemporaryDirectory() as folder:
    path = f"{folder}/config.yaml"
    for policy in ("trtllm", "deepseek-global", "search"):
        eplb("generate", "--expert_statistic_path", DUMP, "--ep_size", 8, "--num_slots", 72, "--policy", policy,
             "--output_path", path)
        config = load(path)
        eplb("convert", path, f"{path}.npy", "--to", "phy2log-npy", "--ep_size", 8)
        check(f"the class loads the file of {policy}: slots, layers and experts as eplb has them",
              config.num_slots == 72 and (rows(config) == np.load(f"{path}.npy")).all())
        last = open(path).read().splitlines()[-1]
        planned = f"# eplb: ep_size 8, hash {placement_hash(path)}"
        check(f"its last line is {last!r}", last == ("num_slots: 72" if policy == "trtllm" else planned))

    text = open("data/expected/dsv2lite-translation.ep8.slots64.yaml").read()
    original, content = load("data/expected/dsv2lite-translation.ep8.slots64.yaml"), yaml.safe_load(text)
    layers = content["initial_global_assignments"]
    shared = {**content, "initial_global_assignments": {layer: layers[1] for layer in layers}}
    forms = {
        "layer numbers in quotes": yaml.dump({**content, "initial_global_assignments": {str(k): v for k, v in layers.items()}}),
        "JSON": json.dumps(content),
        "a byte order mark": "\ufeff" + text,
        "64.0 and \"0\"": yaml.dump({**content, "num_slots": 64.0, "layer_updates_per_iter": "0"}),
        "layers as floats, experts as strings": yaml.dump(
            {**content, "initial_global_assignments": {float(k): [str(e) for e in v] for k, v in layers.items()}}),
        "aliases": yaml.dump(shared),
    }
    for name, form in forms.items():
        with open(path, "w", encoding="utf-8") as file:
            file.write(form)
        wanted = load(path)
        eplb("convert", path, f"{path}.npy", "--from", "config", "--to", "phy2log-npy", "--ep_size", 8)
        check(f"{name}: the class and eplb read the same placement",
              ("&id" in form) == (name == "aliases") and (rows(wanted) == np.load(f"{path}.npy")).all()
              and (name == "aliases" or wanted == original))
    for name, form in {
        "an unknown key": text + "num_slot: 64\n",
        "a fraction": text.replace("num_slots: 64", "num_slots: 64.5"),
        "no number": text.replace("num_slots: 64", "num_slots: many"),
    }.items():
        with open(path, "w", encoding="utf-8") as file:
            file.write(form)
        try:
            load(path)
            taken = True
        except ValidationError:
            taken = False
        refused("inspect", path, "--ep_size", 8)
        check(f"{name}: both refuse the file", not taken)

    dump = f"{folder}/dump"
    eplb("convert", DUMP, dump, "--to", "dump")
    for directory in (DUMP, dump):
        sums = {}
        for file in glob.glob(f"{directory}/rank*.safetensors"):
            for name, counts in load_file(file).items():
                layer = int(name.split("_")[1])
                sums[layer] = sums.get(layer, 0) + counts
        eplb("convert", directory, f"{path}.counts.npy", "--to", "npy")
        counts = np.load(f"{path}.counts.npy").sum(axis=0)
        check(f"{'a dump' if directory == DUMP else 'the dump that eplb wrote'}: the reader adds up the counts of eplb",
              (np.array([sums[layer] for layer in sorted(sums)]) == counts).all())
        meta = json.load(open(os.path.join(directory, "meta_info.json")))
        check("its meta file has the number of experts and of experts per token",
              (meta["num_experts"], meta["num_experts_per_token"]) == (64, 6))
