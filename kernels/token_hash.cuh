// Routing by EPLB_ROUTE_TOKEN_HASH: a replica by a hash of the token's index.
#pragma once

#include <cstdint>

#include "route.cuh"

namespace eplb {

template <class SlotOf> __device__ int4 slots_of(int4 ids, SlotOf slot_of) {
    const int4 slots = {slot_of(ids.x, 0), slot_of(ids.y, 1), slot_of(ids.z, 2), slot_of(ids.w, 3)};
    return slots;
}
template <class SlotOf> __device__ longlong2 slots_of(longlong2 ids, SlotOf slot_of) {
    const longlong2 slots = {slot_of(ids.x, 0), slot_of(ids.y, 1)};
    return slots;
}
template <class Count> __device__ void count_each(int4 ids, int4 slots, Count count) {
    count(ids.x, slots.x, 0);
    count(ids.y, slots.y, 1);
    count(ids.z, slots.z, 2);
    count(ids.w, slots.w, 3);
}
template <class Count> __device__ void count_each(longlong2 ids, longlong2 slots, Count count) {
    count(ids.x, slots.x, 0);
    count(ids.y, slots.y, 1);
}

/// A thread takes as many ids as fit 16 bytes, one by one where they are not one behind the other.
template <class Layout> __device__ void token_hash(const eplb_route_arguments &args) {
    using Id = typename Layout::id;
    using vector = typename id_traits<Id>::vector;
    constexpr uint32_t width = sizeof(vector) / sizeof(Id);
    const uint32_t all = args.num_tokens * args.experts_per_token;
    const Id *ids = static_cast<const Id *>(args.expert_ids);
    Id *slots = static_cast<Id *>(args.slot_ids);
    const uint32_t first = (blockIdx.x * blockDim.x + threadIdx.x) * width;
    const bool is_vector =
        Layout::is_plain &&
        (reinterpret_cast<uintptr_t>(ids) | reinterpret_cast<uintptr_t>(slots)) % sizeof(vector) == 0 &&
        first + width <= all;
    vector these = {};
    if (is_vector) {
        these = *reinterpret_cast<const vector *>(ids + first);
    }
    const uint32_t valid_ids = num_valid_ids(args);
    route_tables tables;
    tables.find<EPLB_ROUTE_THREADS / EPLB_HASH_THREADS>(args);
    route_counter counter;
    counter.begin(args, valid_ids);
    // Of the first id. A division for each id would cost more than all the rest.
    const uint32_t token = first / args.experts_per_token, choice = first - token * args.experts_per_token;
    __syncthreads();

    const auto slot_of = [&](Id id, uint32_t i) {
        const uint32_t bin = first + i < valid_ids ? bin_of(id, args.num_experts) : args.num_experts;
        if (bin == args.num_experts) {
            return static_cast<Id>(first + i < valid_ids ? Layout::slot_without_expert(args, id)
                                                         : args.invalid_slot);
        }
        uint32_t row = token;
#pragma unroll 1
        for (uint32_t left = choice + i; left >= args.experts_per_token; left -= args.experts_per_token) {
            row++;
        }
        const uint32_t count = tables.count[bin], hash = row * golden_ratio;
        const uint32_t replica = count <= 2 ? hash & (count - 1) : hash % count;
        return static_cast<Id>(tables.slots[tables.start[bin] + replica]);
    };
    const auto count = [&](Id id, Id slot, uint32_t i) {
        if (first + i < valid_ids) {
            counter.add<Layout>(args, id, bin_of(id, args.num_experts), static_cast<uint32_t>(slot));
        }
    };
    if (is_vector) {
        const vector those = slots_of(these, slot_of);
        *reinterpret_cast<vector *>(slots + first) = those;
        if (counter.on) {
            count_each(these, those, count);
        }
    } else {
#pragma unroll 1
        for (uint32_t i = 0; i < width && first + i < all; i++) {
            const Id id = Layout::load(args, first + i), slot = slot_of(id, i);
            Layout::store(args, first + i, static_cast<int32_t>(slot));
            count(id, slot, i);
        }
    }
    counter.end(args);
}

} // namespace eplb

// A block of threads for as many ids as fit 16 bytes a thread.
EPLB_ROUTE_ENTRIES(token_hash, EPLB_HASH_THREADS)
