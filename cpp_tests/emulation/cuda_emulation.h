// CUDA C++ as g++ compiles it: include this ahead of a kernel file (emulation/kernels.cpp does), or try one
// by itself with
//   g++ -std=c++17 -Icpp_tests/emulation -x c++ -include cuda_emulation.h -c kernels/eplb.cu
// Each CUDA thread is a fiber that runs until a barrier, a warp collective or an atomic hands over to
// another.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "emulation.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// Blocks run one after the other, so static storage is shared by the threads of one. A kernel says `static
// __shared__`: the section, which a variable on the stack cannot have, makes its absence an error. Such
// arrays keep what the last block left.
#define __shared__ EMULATION_SECTION(__COUNTER__)
#define EMULATION_SECTION(number) EMULATION_SECTION_NAMED(number)
#define EMULATION_SECTION_NAMED(number) __attribute__((section(".bss.shared" #number)))
#ifdef __clang__
#pragma clang diagnostic ignored "-Wsection" // A second declaration adds it.
#endif

/// Says that what a kernel file declares as `extern __shared__ type name[]` is the dynamic shared memory.
/// Ahead of that file, at namespace scope.
#define EMULATION_SHARED_MEMORY(type, name) extern type name[] __asm__("emulation_shared_memory")

/// Lets emulation::find() know the kernel `name`. Once per kernel, at namespace scope.
#define EMULATION_KERNEL(name) static const bool name##_is_known = emulation::add(#name, name)

struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) longlong2 {
    long long x, y;
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulation {

/// Where a thread waits.
struct site {
    const char *what;
    const char *file;
    int line;
};

/// What the lanes of a warp offered to a collective.
struct offers {
    unsigned arrived;
    std::array<uint64_t, 32> values;
};

void barrier(const site &at);
const offers &exchange(const site &at, unsigned mask, uint64_t value);
unsigned lane();
/// Perhaps lets another thread go first.
void preempt();

template <class T> uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "what a lane exchanges has at most 64 bits");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}

/// What `source` offered; garbage if it is not among those that arrived.
template <class T> T from_lane(const offers &all, unsigned source) {
    const uint64_t bits = all.arrived >> source & 1 ? all.values[source] : 0xdeadbeefdeadbeef;
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T, class Change> T atomically(T *cell, Change change) {
    preempt();
    const T old = *cell;
    *cell = change(old);
    return old;
}

} // namespace emulation

// The caller's place, as a default argument, is where the call is written.
#define EMULATION_SITE(what) (emulation::site{what, file, line})
#define EMULATION_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(EMULATION_CALLER) { emulation::barrier(EMULATION_SITE("__syncthreads")); }

/// Threads take turns, so each sees what others wrote before.
inline void __threadfence() {}

inline void __syncwarp(unsigned mask = 0xffffffff, EMULATION_CALLER) {
    emulation::exchange(EMULATION_SITE("__syncwarp"), mask, 0);
}

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATION_CALLER) {
    const auto &all = emulation::exchange(EMULATION_SITE("__shfl_sync"), mask, emulation::to_bits(value));
    const unsigned first = emulation::lane() & ~unsigned(width - 1);
    return emulation::from_lane<T>(all, first + (unsigned(source) & unsigned(width - 1)));
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATION_CALLER) {
    const auto &all =
        emulation::exchange(EMULATION_SITE("__shfl_down_sync"), mask, emulation::to_bits(value));
    const unsigned lane = emulation::lane();
    const bool inside = (lane & unsigned(width - 1)) + delta < unsigned(width);
    return inside ? emulation::from_lane<T>(all, lane + delta) : value;
}

template <class T> T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMULATION_CALLER) {
    const auto &all = emulation::exchange(EMULATION_SITE("__shfl_xor_sync"), mask, emulation::to_bits(value));
    const unsigned lane = emulation::lane();
    const unsigned source = lane ^ unsigned(lanes);
    // As the manual has it: lanes of an earlier group may be read, those of a later one may not.
    return source < (lane & ~unsigned(width - 1)) + unsigned(width) ? emulation::from_lane<T>(all, source)
                                                                    : value;
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATION_CALLER) {
    const auto &all = emulation::exchange(EMULATION_SITE("__ballot_sync"), mask, predicate != 0);
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < 32; lane++) {
        ballot |= unsigned((all.arrived >> lane & 1) != 0 && all.values[lane] != 0) << lane;
    }
    return ballot;
}

template <class T> unsigned __match_any_sync(unsigned mask, T value, EMULATION_CALLER) {
    const uint64_t bits = emulation::to_bits(value);
    const auto &all = emulation::exchange(EMULATION_SITE("__match_any_sync"), mask, bits);
    unsigned equal = 0;
    for (unsigned lane = 0; lane < 32; lane++) {
        equal |= unsigned((all.arrived >> lane & 1) != 0 && all.values[lane] == bits) << lane;
    }
    return equal;
}

#undef EMULATION_SITE
#undef EMULATION_CALLER

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
/// The products of the bytes, added up.
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
    for (int shift = 0; shift < 32; shift += 8) {
        sum += (a >> shift & 0xff) * (b >> shift & 0xff);
    }
    return sum;
}
inline int __ffs(int bits) { return __builtin_ffs(bits); }

inline unsigned atomicAdd(unsigned *cell, unsigned value) {
    return emulation::atomically(cell, [=](unsigned old) { return old + value; });
}
inline unsigned long long atomicAdd(unsigned long long *cell, unsigned long long value) {
    return emulation::atomically(cell, [=](unsigned long long old) { return old + value; });
}
inline unsigned atomicMax(unsigned *cell, unsigned value) {
    return emulation::atomically(cell, [=](unsigned old) { return old > value ? old : value; });
}
inline unsigned atomicExch(unsigned *cell, unsigned value) {
    return emulation::atomically(cell, [=](unsigned) { return value; });
}
