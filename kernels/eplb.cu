// The kernels of eplb, one image: compile.sh says how it is built, prebuilt/ holds it for machines without
// nvcc.
#include "count.cuh"
#include "level.cuh"
#include "route.cuh"
