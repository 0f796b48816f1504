// All kernels of eplb, as one image in this order. compile.sh compiles it, and prebuilt/ has it for machines
// without nvcc.
// clang-format off
#include "count.cuh"
#include "round_robin.cuh"
#include "token_hash.cuh"
#include "nearest.cuh"
#include "least_loaded.cuh"
#include "add_counts.cuh"
#include "copy_tables.cuh"
#include "snapshot.cuh"
// clang-format on
