// Registers the kernels of eplb by name. Another .cu file needs a file like this one.
#include "cuda_emulation.h"

EMULATION_SHARED_MEMORY(uint32_t, eplb_bins);
#include "../../kernels/eplb.cu"

EMULATION_KERNEL(eplb_count_i32_u32);
EMULATION_KERNEL(eplb_count_i64_u32);
EMULATION_KERNEL(eplb_count_i32_u64);
EMULATION_KERNEL(eplb_count_i64_u64);
EMULATION_KERNEL(eplb_count_general);
EMULATION_KERNEL(eplb_route_round_robin_i32);
EMULATION_KERNEL(eplb_route_round_robin_i64);
EMULATION_KERNEL(eplb_route_round_robin_general);
EMULATION_KERNEL(eplb_route_token_hash_i32);
EMULATION_KERNEL(eplb_route_token_hash_i64);
EMULATION_KERNEL(eplb_route_token_hash_general);
EMULATION_KERNEL(eplb_route_nearest_i32);
EMULATION_KERNEL(eplb_route_nearest_i64);
EMULATION_KERNEL(eplb_route_nearest_general);
EMULATION_KERNEL(eplb_route_least_loaded_i32);
EMULATION_KERNEL(eplb_route_least_loaded_i64);
EMULATION_KERNEL(eplb_route_least_loaded_general);
EMULATION_KERNEL(eplb_add_counts);
EMULATION_KERNEL(eplb_copy_tables);
EMULATION_KERNEL(eplb_snapshot);
