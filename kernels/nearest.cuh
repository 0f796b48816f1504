// Routing by EPLB_ROUTE_NEAREST: own rank first, then own node, by fixed shares.
#pragma once

#include <cstdint>

#include "route.cuh"

namespace eplb {

template <class Layout> __device__ void nearest(const eplb_route_arguments &args) {
    route_block<Layout>(args, [](const route_tables &tables, uint32_t turn) {
        const uint32_t *shares = tables.shares;
        return [turn, shares](uint32_t, uint32_t start, uint32_t count, uint32_t position) {
            const uint32_t point = (position + turn) * golden_ratio;
            uint32_t replica = 0;
            while (replica + 1 < count && point >= shares[start + replica]) {
                replica++;
            }
            return replica;
        };
    });
}

} // namespace eplb

// A block of threads for each EPLB_ROUTE_BLOCK ids.
EPLB_ROUTE_ENTRIES(nearest, EPLB_ROUTE_THREADS)
