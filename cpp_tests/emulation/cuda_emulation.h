// Compiles CUDA C++ with g++. Include this before a kernel file, as emulation/kernels.cpp does, or compile
// one alone:
//   g++ -std=c++17 -Icpp_tests/emulation -x c++ -include cuda_emulation.h -c kernels/eplb.cu
// Each CUDA thread is a fiber. It runs until a barrier, a warp collective or an atomic yields to another.
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
// Blocks run one at a time, so static storage is shared by the threads of one block. Kernels must declare
// `static __shared__`: a section on a variable without static storage is an error. Such arrays keep the
// values of the previous block.
#define __shared__ EMULATION_SECTION(__COUNTER__)
#define EMULATION_SECTION(number) EMULATION_SECTION_NAMED(number)
#define EMULATION_SECTION_NAMED(number) __attribute__((section(".bss.shared" #number)))
#ifdef __clang__
#pragma clang diagnostic ignored "-Wsection" // A second declaration adds it.
#endif

/// Makes `extern __shared__ type name[]` of a kernel file the dynamic shared memory. Place it before that
/// file, at namespace scope.
#define EMULATION_SHARED_MEMORY(type, name) extern type name[] __asm__("emulation_shared_memory")

/// Registers the kernel `name` for emulation::find(). Place it once per kernel, at namespace scope.
#define EMULATION_KERNEL(name) static const bool name##_is_registered = emulation::add(#name, name)

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

/// The values that the lanes of a warp passed to a collective.
struct lane_values {
    unsigned arrived; // A bit for each lane.
    std::array<uint64_t, 32> values;
};

void barrier(const site &at);
const lane_values &exchange(const site &at, unsigned mask, uint64_t value);
unsigned lane();
/// Yields to another thread at random.
void preempt();

template <class T> uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a lane exchanges at most 64 bits");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}

/// The value of lane `source`; garbage if it did not arrive.
template <class T> T from_lane(const lane_values &all, unsigned source) {
    const uint64_t bits = all.arrived >> source & 1 ? all.values[source] : 0xdeadbeefdeadbeef;
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

/// The values of the lanes that arrived, put together one by one.
template <class Reduce> unsigned reduce(const lane_values &all, unsigned result, Reduce reduce) {
    for (unsigned lane = 0; lane < 32; lane++) {
        if (all.arrived >> lane & 1) {
            result = reduce(result, static_cast<unsigned>(all.values[lane]));
        }
    }
    return result;
}

template <class T, class Change> T atomically(T *cell, Change change) {
    preempt();
    const T old = *cell;
    *cell = change(old);
    return old;
}

} // namespace emulation

// As default arguments, these are the file and line of the call.
#define EMULATION_SITE(what) (emulation::site{what, file, line})
#define EMULATION_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(EMULATION_CALLER) { emulation::barrier(EMULATION_SITE("__syncthreads")); }

/// Does nothing: fibers run one at a time, so each sees all earlier writes.
inline void __threadfence() {}
inline void __threadfence_system() {}

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
    // By the manual, lanes of an earlier group may be read, those of a later group may not.
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

inline unsigned __reduce_add_sync(unsigned mask, unsigned value, EMULATION_CALLER) {
    const auto &all = emulation::exchange(EMULATION_SITE("__reduce_add_sync"), mask, value);
    return emulation::reduce(all, 0, [](unsigned a, unsigned b) { return a + b; });
}

#undef EMULATION_SITE
#undef EMULATION_CALLER

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
/// Adds the products of corresponding bytes to `sum`.
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
    for (int shift = 0; shift < 32; shift += 8) {
        sum += (a >> shift & 0xff) * (b >> shift & 0xff);
    }
    return sum;
}
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }

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
