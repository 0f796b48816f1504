#!/bin/sh
# nccl-extensions 0.1.0 (NCCL EP for Python): nccl.ep.Tensor takes a strided view and drops its strides, with no error.
#
# Guess: a view such as topk_idx[:, :K] of [tokens][K + 1], the rows of a router with a fused shared expert, is either
#        described with its row stride or refused.
# Seen:  the descriptor has the view's shape and the address of its first id, and no field for a stride. NCCL EP is
#        given [tokens][K] dense ids at that address: from the second token on each row is shifted by one more id, so
#        the shared expert's column and the next token's ids are read as this token's choices.
# Why it matters: all ids are valid expert ids, so tokens go to wrong experts and nothing fails. Copy such a view first,
#        or route [tokens][K + 1] into dense rows.
#
# DLPack on the host gives the class the view; no GPU and no NCCL call is needed to make a descriptor.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$dir/venv"
py="$dir/venv/bin/python"
"$py" -m pip install -q --disable-pip-version-check nccl-extensions==0.1.0 nccl4py==0.6.0 cuda-bindings==13.5.0 \
    cuda-core==1.2.2 numpy==2.4.6

"$py" - <<'PY'
import ctypes, importlib.metadata, sys
import numpy as np
from nccl.ep import Tensor

tokens, k, shared = 4, 3, 64
chosen = np.empty((tokens, k + 1), np.int64)
chosen[:, :k] = [[10 * token + choice for choice in range(k)] for token in range(tokens)]
chosen[:, k] = shared  # the column of the fused shared expert
view = chosen[:, :k]

described = Tensor(view)
dense = (ctypes.c_int64 * (tokens * k)).from_address(described.data)
seen = np.frombuffer(dense, np.int64).reshape(described.sizes)
fields = [name for name in vars(type(described._ep_t)) if "stride" in name]

print("VERSION nccl-extensions", importlib.metadata.version("nccl-extensions"), "numpy", np.__version__)
print("GUESS   the ids", view.tolist(), "or an error")
print("SEEN    sizes", described.sizes, "at the view's address, fields for strides:", fields)
print("SEEN    the ids there", seen.tolist())
good = described.data == view.ctypes.data and described.sizes == view.shape and not fields
good = good and seen.tolist() == [[0, 1, 2], [shared, 10, 11], [12, shared, 20], [21, 22, shared]]
sys.exit(0 if good else "the behaviour is not as stated")
PY
