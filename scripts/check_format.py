"""Reads a dump of examples/collect_c without eplb: check_format.py DUMP START STOP.

Uses the packages of TensorRT-LLM's scripts. Checks names of files and tensors, types, shapes, values, metadata and
meta_info.json.
"""

import datetime
import json
import pathlib
import struct
import sys

import numpy
from safetensors import safe_open

RANKS, EXPERTS, CHOICES, MAX_TOKENS, LAYERS = 4, 64, 6, 32, [1, 2, 5]


def counts(rank, iteration, layer):
    valid = (iteration + rank) % (MAX_TOKENS + 1)
    token, choice = numpy.divmod(numpy.arange(valid * CHOICES, dtype=numpy.uint64), CHOICES)
    mixed = rank * 7919 + iteration * 104729 + layer * 1299709 + token * 15485863 + choice * 32452843
    ids = (mixed * 2654435761 % 2**32).astype(numpy.uint32) >> 26
    return numpy.bincount(ids, minlength=EXPERTS)


def time_of(text):
    return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z")


dump, start, stop = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
names = {entry.name for entry in dump.iterdir()}
assert names == {"meta_info.json"} | {f"rank{rank}.safetensors" for rank in range(RANKS)}, names

meta = json.loads((dump / "meta_info.json").read_text())
assert meta["num_experts"] == EXPERTS and meta["num_experts_per_token"] == CHOICES, meta
assert {key: meta["eplb"][key] for key in ("num_ranks", "iter_start", "iter_stop", "layers", "counts")} == {
    "num_ranks": RANKS, "iter_start": start, "iter_stop": stop, "layers": LAYERS, "counts": "experts"}, meta
assert isinstance(meta["eplb"]["version"], str)
now = datetime.datetime.now(datetime.timezone.utc)
started = now - datetime.timedelta(minutes=10)
assert started <= time_of(meta["eplb"]["written_at"]) <= now, meta

total = 0
for rank in range(RANKS):
    path = dump / f"rank{rank}.safetensors"
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        written_at = metadata.pop("written_at")
        assert started <= time_of(written_at) <= now, written_at
        assert metadata == {
            "rank": str(rank), "num_ranks": str(RANKS), "layers": ",".join(map(str, LAYERS)), "iter_start": str(start),
            "iter_stop": str(stop), "counts": "experts", "run_id": "collect_c"}, metadata
        wanted = {f"{iteration}_{layer}" for iteration in range(start, stop) for layer in LAYERS}
        assert set(file.keys()) == wanted
        for key in wanted:
            tensor = file.get_tensor(key)
            assert tensor.dtype == numpy.int64 and tensor.shape == (EXPERTS,), (key, tensor.dtype, tensor.shape)
            assert (tensor == counts(rank, *map(int, key.split("_")))).all(), (path, key)
            total += tensor.sum()
    # The data begin at a multiple of 8, as the format's own writers align them.
    with path.open("rb") as file:
        assert struct.unpack("<Q", file.read(8))[0] % 8 == 0

print(f"{RANKS} ranks, {(stop - start) * len(LAYERS)} tensors each, {total} ids: as the format requires")
