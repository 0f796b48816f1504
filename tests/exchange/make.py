"""Writes the files in this folder: python make.py. The checked-in files are from torch 2.15.0 and numpy 2.4.6.

The model has 4 layers, the first one dense, and 8 experts. A count is 100 step + 10 layer + expert. The third step of the
recorder's buffer is unused.
"""

import numpy
import torch

counts = torch.zeros(3, 4, 8, dtype=torch.int32)
for step in range(2):
    for layer in range(1, 4):
        counts[step, layer] = 100 * step + 10 * layer + torch.arange(8)

# As _StatAccumulator.dump and _DetailAccumulator.dump of sglang/srt/eplb/expert_distribution.py save.
torch.save(dict(rank=0, logical_count=counts, average_utilization_rate_over_window=0.75), "recorder.pt")
record = dict(forward_pass_id=7, rank=0, gatherer_key="primary", global_physical_count=counts[0])
torch.save(dict(records=[record], last_physical_to_logical_map=torch.arange(8).repeat(4, 1)), "per_pass.pt")

torch.save(dict(logical_count=counts[:2, 1:]), "view.pt")
torch.save(dict(logical_count=counts[1]), "one_step.pt")
torch.save(dict(logical_count=counts[0].half()), "half.pt")
torch.save(dict(logical_count=counts.double()), "double.pt")
torch.save(dict(logical_count=counts), "legacy.pt", _use_new_zipfile_serialization=False)

array = counts.numpy()
numpy.save("int32.npy", array)
numpy.save("float32.npy", array.astype("<f4"))
numpy.save("big_endian.npy", array.astype(">u2"))
numpy.save("fortran.npy", numpy.asfortranarray(array.astype("<i8")))
with open("version_2.npy", "wb") as file:
    numpy.lib.format.write_array(file, array, version=(2, 0))
