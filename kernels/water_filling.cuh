// Water-filling: the tokens of an expert raise the lowest loads of the ranks that hold it to a common height.
// docs/routing.md defines it.
#pragma once

#include <cstdint>

namespace eplb {

template <class T> struct quotient {
    T whole;
    uint32_t rest;
};

__device__ inline quotient<uint32_t> divide(uint32_t value, uint32_t by) { return {value / by, value % by}; }

/// Divides by at most 2^20, the largest size of a placement. Beyond 32 bits it takes 12 bits at a time, since
/// a division of 64 bits would be a call, and spill.
__device__ inline quotient<uint64_t> divide(uint64_t value, uint32_t by) {
    if (value >> 32 == 0) {
        const auto [whole, rest] = divide(static_cast<uint32_t>(value), by);
        return {whole, rest};
    }
    quotient<uint64_t> result = {0, 0};
#pragma unroll 1
    for (int shift = 60; shift >= 0; shift -= 12) {
        const uint32_t part = result.rest << 12 | (static_cast<uint32_t>(value >> shift) & 0xfff);
        result.whole = result.whole << 12 | part / by;
        result.rest = part % by;
    }
    return result;
}

/// The quota of the holder at `place` of two, where `load` is its rank's and `other` that of the other
/// holder.
template <class T> __device__ T fill_two(T tokens, T load, T other, uint32_t place) {
    // The lower one is raised to the higher one. Each gets half of the remaining tokens.
    const T apart = load < other ? other - load : load - other;
    const T both = tokens > apart ? tokens - apart : 0;
    const T lower = load < other ? tokens - both : 0;
    return both / 2 + lower + (both & (place == (tokens & 1) ? 1 : 0));
}

/// The quota of the holder at `place` of `count`. `loads` are those of their ranks, and `turn` is the first
/// holder to get one of the tokens left.
template <class T>
__device__ T fill(T tokens, const uint64_t *loads, uint32_t count, uint32_t place, uint32_t turn) {
    // Requested from memory together, which covers most experts.
    constexpr uint32_t at_once = 8;
    T some[at_once];
#pragma unroll
    for (uint32_t g = 0; g < at_once; g++) {
        some[g] = static_cast<T>(loads[g < count ? g : 0]);
    }
    // A load above the height of all takes no part. Without it the height falls, and more loads may be above
    // it.
    quotient<T> height = {static_cast<T>(~T(0)), 0};
    T top;
    do {
        T sum = tokens;
        uint32_t reached = 0;
        top = 0;
        const auto take = [&](T load, bool is_holder) {
            if (is_holder && load <= height.whole) {
                reached++;
                sum += load;
                top = top > load ? top : load;
            }
        };
#pragma unroll
        for (uint32_t g = 0; g < at_once; g++) {
            take(some[g], g < count);
        }
#pragma unroll 4
        for (uint32_t g = at_once; g < count; g++) {
            take(static_cast<T>(loads[g]), true);
        }
        height = divide(sum, reached);
    } while (top > height.whole);
    const T mine = static_cast<T>(loads[place]);
    if (mine > height.whole) {
        return 0;
    }
    uint32_t before = 0;
    const uint32_t wait = place >= turn ? place - turn : place + count - turn;
    const auto comes_before = [&](T load, uint32_t g) {
        const uint32_t other = g >= turn ? g - turn : g + count - turn;
        return g < count && other < wait && load <= height.whole ? 1u : 0u;
    };
#pragma unroll
    for (uint32_t g = 0; g < at_once; g++) {
        before += comes_before(some[g], g);
    }
#pragma unroll 4
    for (uint32_t g = at_once; g < count; g++) {
        before += comes_before(static_cast<T>(loads[g]), g);
    }
    return height.whole - mine + (before < height.rest ? 1 : 0);
}

} // namespace eplb
