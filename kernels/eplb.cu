// The kernels of eplb, one image: compile.sh compiles it, and prebuilt/ has it for machines without nvcc. The
// image has the kernels in this order.
// clang-format off
#include "count.cuh"
#include "round_robin.cuh"
#include "token_hash.cuh"
#include "nearest.cuh"
#include "least_loaded.cuh"
// clang-format on
