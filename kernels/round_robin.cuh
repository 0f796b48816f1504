// Routing by EPLB_ROUTE_ROUND_ROBIN: an expert's replicas in turn within each block of ids.
#pragma once

#include <cstdint>

#include "route.cuh"

namespace eplb {

template <class Id> __device__ void round_robin(const eplb_route_arguments &args) {
    route_block<Id>(args, [](const route_tables &, uint32_t turn) {
        return [turn](uint32_t, uint32_t, uint32_t count, uint32_t position) {
            return (position + turn) % count;
        };
    });
}

} // namespace eplb

// A block of threads for each EPLB_ROUTE_BLOCK ids.
EPLB_ROUTE_ENTRY(eplb_route_round_robin_i32, round_robin, int32_t, EPLB_ROUTE_THREADS)
EPLB_ROUTE_ENTRY(eplb_route_round_robin_i64, round_robin, int64_t, EPLB_ROUTE_THREADS)
