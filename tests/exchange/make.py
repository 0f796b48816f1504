"""Writes the files in this folder: python make.py. The checked-in files are from torch 2.15.0 and numpy 2.4.6.

The model has 4 layers, the first one dense, and 8 experts. A count is 100 step + 10 layer + expert. The third step of the
recorder's buffer is unused.
"""

from collections import OrderedDict
from pathlib import Path

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

# A buffer of 6 steps in which a second dump begins at the fifth.
ring = torch.cat([counts[1:2], torch.zeros(3, 4, 8, dtype=torch.int32), counts[:1], counts[:1] + counts[1:2]])
torch.save(dict(rank=0, logical_count=ring, average_utilization_rate_over_window=None), "rotated.pt")

extra = dict(shape=torch.Size([2, 3]), device=torch.device("cpu"), dtype=torch.int32, experts={1, 2}, raw=b"ab", large=2**70)
torch.save(OrderedDict(logical_count=counts[:2], meta=extra, note=[None, True, 0.5]), "ordered.pt")
torch.save(dict(logical_count=counts[:2].permute(2, 0, 1).contiguous().permute(1, 2, 0)), "transposed.pt")
torch.save(dict(logical_count=counts[:2].tolist()), "lists.pt")
torch.save(dict(logical_count=counts[0].bfloat16()), "bfloat16.pt")
torch.save(dict(logical_count=counts[:2].to(torch.uint32)), "uint32.pt")
torch.save(dict(logical_count=counts[:2].bool()), "bool.pt")
torch.save(dict(logical_count=torch.nn.Parameter(counts[:2].float().sum(0) / 4)), "averages.pt")

# A map, whose rows are stored once: experts 0 and 1 in two slots.
torch.save(dict(physical_to_logical_map=(torch.arange(10) % 8).expand(4, 10)), "map.pt")

# Two ranks in the mode per_token. Slots 0 to 5 are of rank 0. Slot s of a layer has 10 layer + s tokens of rank 0, and as many
# and 100 more of rank 1. The passes are 7 and 9, in the other order on rank 1. Only fields that are read have real contents.
slots = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 0, 3, 0, -1]] * 4)
Path("per_token").mkdir(exist_ok=True)
for rank in range(2):
    of_pass = torch.zeros(4, 12, dtype=torch.int32)
    of_pass[1:, :11] = 10 * torch.arange(1, 4)[:, None] + torch.arange(11) + 100 * rank
    records = [
        dict(
            forward_pass_id=number, rank=rank, gatherer_key="primary", input_ids=[1, 2], positions=[0, 1],
            extend_seq_lens=[2], forward_mode=1, topk_ids_of_layer=torch.full((4, 2, 8), -1, dtype=torch.int32),
            misc_objects=[], global_physical_count=of_pass * (number - 6),
        )
        for number in ([7, 9] if rank == 0 else [9, 7])
    ]
    torch.save(
        dict(records=records, last_physical_to_logical_map=slots), f"per_token/expert_distribution_recorder_1.5_{rank}.pt"
    )

array = counts.numpy()
numpy.save("int32.npy", array)
numpy.save("float32.npy", array.astype("<f4"))
numpy.save("big_endian.npy", array.astype(">u2"))
numpy.save("fortran.npy", numpy.asfortranarray(array.astype("<i8")))
with open("version_2.npy", "wb") as file:
    numpy.lib.format.write_array(file, array, version=(2, 0))
