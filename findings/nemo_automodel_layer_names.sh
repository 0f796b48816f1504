#!/bin/sh
# nemo-automodel 0.7.0, MoE load balance metrics: moe/layer_1 of a model with more than 10 layers is not layer 1.
#
# Guess: moe/layer_<i>/cv and moe_expert_utilization/layer_<i>_expert_<j> name the model's layer i, or its MoE layer i in
#        the model's order, where the first layers are dense.
# Seen:  i is the position in the list of module names, sorted as text: layers 10 to 19 come first, and layer 3 after 29.
#        Of DeepSeek-V3's 58 MoE layers, 3 to 60, none is under its own number, and none under its place in the model.
#        An unbalanced layer 3 is reported as layer_20, and layer_3 is layer 13.
# Why it matters: the numbers look like those of layers, so the wrong layers are given replicas. The layer meant is the i-th
#        when the names of all MoE layers are sorted as text.
#
# The module runs from the wheel. numpy stands in for the few operations of torch that it uses.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$dir/venv"
py="$dir/venv/bin/python"
"$py" -m pip install -q --disable-pip-version-check --no-deps numpy==2.4.6
"$py" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: -d "$dir" nemo-automodel==0.7.0

"$py" - "$dir" <<'PY'
import glob, importlib, sys, types, zipfile
import numpy as np

folder = sys.argv[1]
with zipfile.ZipFile(glob.glob(folder + "/nemo_automodel-*.whl")[0]) as wheel:
    source = wheel.extract("nemo_automodel/components/moe/load_balance_metrics.py", folder)


class Tensor(np.ndarray):
    """Token counts of a layer, with the methods that the module calls."""

    def detach(self):
        return self

    def float(self):
        return self.astype(np.float32)

    def std(self):
        return np.std(np.asarray(self), ddof=1)

    def log(self):
        return np.log(self)


class Gate:
    """What collect_expert_loads() reads of a router."""

    def __init__(self, load):
        self.n_experts, self._last_aux_loss = len(load), None
        self._last_expert_load = np.array(load, np.float32).view(Tensor)


class Model:
    def __init__(self, modules):
        self.modules = modules

    def named_modules(self):
        return self.modules.items()


torch = types.ModuleType("torch")
torch.nn = types.ModuleType("torch.nn")
torch.nn.Module = object
layers = types.ModuleType("nemo_automodel.components.moe.layers")
layers.Gate = Gate
sys.modules.update({"torch": torch, "torch.nn": torch.nn, layers.__name__: layers})
for name in ("nemo_automodel", "nemo_automodel.components", "nemo_automodel.components.moe"):
    sys.modules[name] = types.ModuleType(name)
sys.path.insert(0, source.rsplit("/", 1)[0])
metrics = importlib.import_module("load_balance_metrics")

first, last, experts, tokens = 3, 60, 256, 4096
numbers = list(range(first, last + 1))


def model(hot):
    """All layers even, but for layer `hot`, whose expert 7 has half of the tokens."""
    gates = {}
    for number in numbers:
        load = np.full(experts, tokens)
        if number == hot:
            load[7] = tokens * (experts - 1)
        gates["model.layers.%d.mlp.gate" % number] = Gate(load)
    return Model(gates)


def reported(hot):
    """The i of the one moe/layer_<i>/cv that is not 0, and the name of the hottest expert."""
    seen = metrics.compute_detailed_metrics(metrics.collect_expert_loads(model(hot)), top_k=1)
    (name,) = [key for key, value in seen.items() if key.startswith("moe/layer_") and key.endswith("/cv") and value > 0]
    expert = max((key for key in seen if key.startswith("moe_expert_utilization/")), key=seen.get)
    return int(name.split("/")[1].removeprefix("layer_")), expert


names = {hot: reported(hot)[0] for hot in numbers}
own = sum(name == number for number, name in names.items())
place = sum(name == number - first for number, name in names.items())
layer_of = {name: number for number, name in names.items()}
print("VERSION nemo-automodel 0.7.0, numpy", np.__version__)
print("GUESS   MoE layers 3 to 60, layer 3 unbalanced: reported as layer_3, or as layer_0, the first of the MoE layers")
print("SEEN    reported as layer_%d, its hottest expert as %s" % reported(first))
print("SEEN    layers 3 to 12 are reported as", *["layer_%d" % names[number] for number in numbers[:10]])
print("SEEN    layer_0 is layer %d, layer_3 is layer %d, layer_57 is layer %d" % (layer_of[0], layer_of[3], layer_of[57]))
print("SEEN    %d of %d layers are under their own number, %d under their place among the MoE layers" % (
    own, len(numbers), place))
good = sorted(layer_of) == list(range(len(numbers))) and reported(first) == (20, "moe_expert_utilization/layer_20_expert_7")
sys.exit(0 if good and (layer_of[0], layer_of[3], own, place) == (10, 13, 0, 0) else "the behaviour is not as stated")
PY
