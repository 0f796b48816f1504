// Routing by EPLB_ROUTE_ROUND_ROBIN: an expert's replicas in turn within each block of ids.
#pragma once

#include <cstdint>

#include "route.cuh"

namespace eplb {

template <class Layout> __device__ void round_robin(const eplb_route_arguments &args) {
    route_block<Layout>(args, [](const route_tables &, uint32_t turn) {
        return [turn](uint32_t, uint32_t, uint32_t count, uint32_t position) {
            return (position + turn) % count;
        };
    });
}

} // namespace eplb

// A block of threads for each EPLB_ROUTE_BLOCK ids.
EPLB_ROUTE_ENTRIES(round_robin, EPLB_ROUTE_THREADS)
