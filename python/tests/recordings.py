"""The recorded loads, of this repository and of EPLB_EXTRA_DATA."""

import os
import pathlib

import eplb
import numpy

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DATA = ROOT / "data"
TRANSLATION = DATA / "dumps/dsv2lite-translation"  # layers 1 to 26, 64 experts, 6 a token, iterations 100 to 129
EXTREME = DATA / "dumps/dsr1-extreme"


def dumps():
    """The directories of all recordings."""
    folders = [DATA / "dumps"]
    if os.environ.get("EPLB_EXTRA_DATA"):
        folders.append(pathlib.Path(os.environ["EPLB_EXTRA_DATA"]) / "dumps")
    return sorted(dump for folder in folders for dump in folder.iterdir() if (dump / "meta_info.json").exists())


def total(dump):
    """The load of each expert over all iterations: float64 [layers][experts]."""
    return eplb.Stats.load(dump).loads(1)[:, 0, :]


def zipf(num_layers=58, num_experts=256, exponent=1.0, seed=0):
    """Whole numbers by Zipf's law, in another order in each layer: int64 [layers][experts]."""
    loads = numpy.round(1e6 / numpy.arange(1, num_experts + 1) ** exponent).astype(numpy.int64)
    random = numpy.random.default_rng(seed)
    return numpy.stack([random.permutation(loads) for _ in range(num_layers)])
