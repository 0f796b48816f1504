// Tests the emulator: it detects faulty kernels and runs correct ones.
#include <gtest/gtest.h>

#include <numeric>
#include <set>
#include <vector>

#include "checkers.h"
#include "cuda_emulation.h"

EMULATION_SHARED_MEMORY(unsigned, test_shared);
extern __shared__ unsigned test_shared[];

namespace {

__global__ void fill(unsigned *out, unsigned first, unsigned long long step) {
    out[threadIdx.x] = first + unsigned(step) * threadIdx.x;
}
EMULATION_KERNEL(fill);

void expect_error(const std::string &what, dim3 block, const std::function<void()> &body) {
    try {
        emulation::launch({}, block, 0, body);
        FAIL() << "nothing was reported";
    } catch (const emulation::error &error) {
        EXPECT_EQ(std::string(error.what()).find(what), 0u) << error.what();
    }
}

TEST(Emulation, RunsEachThreadOfEachBlockOnce) {
    std::set<std::vector<unsigned>> seen;
    emulation::launch({3, 2, 2}, {4, 3, 2}, 0, [&] {
        EXPECT_EQ(gridDim.x * 100 + gridDim.y * 10 + gridDim.z, 322u);
        EXPECT_EQ(blockDim.x * 100 + blockDim.y * 10 + blockDim.z, 432u);
        EXPECT_TRUE(
            seen.insert({blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z}).second);
    });
    EXPECT_EQ(seen.size(), 12u * 24u);
    EXPECT_EQ(*seen.begin(), std::vector<unsigned>(6, 0));
    EXPECT_EQ(*seen.rbegin(), (std::vector<unsigned>{2, 1, 1, 3, 2, 1}));
}

TEST(Emulation, DetectsBarrierDivergence) {
    expect_error("barrier divergence", {64}, [] {
        if (threadIdx.x < 32) {
            __syncthreads();
        } else {
            __syncthreads();
        }
    });
}

TEST(Emulation, DetectsABarrierThatSomeThreadsNeverReach) {
    expect_error("barrier divergence", {64}, [] {
        if (threadIdx.x != 7) {
            __syncthreads();
        }
    });
}

TEST(Emulation, DetectsDeadlocks) {
    expect_error("deadlock", {32}, [] {
        if (threadIdx.x == 0) {
            __syncthreads();
        }
        __syncwarp();
    });
    expect_error("deadlock", {32}, [] {
        __syncwarp(threadIdx.x < 16 ? 0xffffu : 0xffffffffu);
        __syncthreads();
    });
    expect_error("deadlock", {32}, [] {
        if (threadIdx.x % 2 == 0) {
            __ballot_sync(0xffffffff, 1);
        } else {
            __syncwarp();
        }
    });
}

TEST(Emulation, DetectsACallerOutsideItsMask) {
    expect_error("a lane calls __syncwarp with a mask that lacks it", {32}, [] { __syncwarp(0xfffffffe); });
}

TEST(Emulation, WorksAfterAnError) {
    for (int i = 0; i < 3; i++) {
        expect_error("barrier divergence", {256}, [] {
            volatile char frame[1000] = {};
            if (threadIdx.x % 2 == 0 && frame[999] == 0) {
                __syncthreads();
            }
        });
        unsigned ran = 0;
        emulation::launch({}, {256}, 0, [&] { atomicAdd(&ran, 1); });
        EXPECT_EQ(ran, 256u);
    }
}

TEST(Emulation, RethrowsExceptionsOfThreads) {
    EXPECT_THROW(emulation::launch({}, {32}, 0, [] { throw std::out_of_range("thrown"); }),
                 std::out_of_range);
}

TEST(Emulation, RejectsInvalidLaunches) {
    const auto nothing = [] {};
    EXPECT_THROW(emulation::launch({0}, {32}, 0, nothing), emulation::error);
    EXPECT_THROW(emulation::launch({}, {0}, 0, nothing), emulation::error);
    EXPECT_THROW(emulation::launch({}, {32, 33}, 0, nothing), emulation::error);
    EXPECT_THROW(emulation::launch({}, {32}, emulation::shared_capacity + 1, nothing), emulation::error);
}

/// Thread 0 adds up the values that the threads of a block wrote.
unsigned sum_of_block(uint64_t seed, bool with_barrier) {
    unsigned sum = 0;
    const auto body = [&] {
        test_shared[threadIdx.x] = threadIdx.x;
        if (with_barrier) {
            __syncthreads();
        }
        if (threadIdx.x == 0) {
            sum = std::accumulate(test_shared, test_shared + blockDim.x, 0u);
        }
    };
    emulation::launch({}, {64}, 64 * sizeof(unsigned), body, {seed, 0});
    return sum;
}

TEST(Emulation, ExposesAMissingBarrier) {
    if (emulation::under_valgrind()) {
        GTEST_SKIP() << "valgrind reports the race as an uninitialised read";
    }
    std::set<unsigned> with, without;
    for (uint64_t seed = 0; seed < 20; seed++) {
        with.insert(sum_of_block(seed, true));
        without.insert(sum_of_block(seed, false));
    }
    EXPECT_EQ(with, std::set<unsigned>{63 * 64 / 2});
    EXPECT_GT(without.size(), 10u);
}

TEST(Emulation, ExposesARaceBetweenAtomics) {
    // Each thread takes a ticket and then counts one served. The two agree unless another thread runs in
    // between.
    std::set<unsigned> results;
    for (uint64_t seed = 0; seed < 20; seed++) {
        unsigned tickets = 0, served = 0, in_order = 0;
        const auto body = [&] {
            const unsigned ticket = atomicAdd(&tickets, 1);
            in_order += atomicAdd(&served, 1) == ticket;
        };
        emulation::launch({}, {64}, 0, body, {seed, 2});
        EXPECT_EQ(tickets, 64u);
        results.insert(in_order);
    }
    EXPECT_GT(results.size(), 3u);
}

TEST(Emulation, FillsSharedMemoryWithGarbageForEachBlock) {
    if (emulation::under_valgrind()) {
        GTEST_SKIP() << "valgrind reports the reads";
    }
    unsigned zeros = 0;
    emulation::launch({8}, {}, 1000, [&] {
        for (unsigned i = 0; i < 250; i++) {
            zeros += test_shared[i] == 0;
            test_shared[i] = 0;
        }
    });
    EXPECT_EQ(zeros, 0u);
}

#ifdef __SANITIZE_ADDRESS__
TEST(EmulationDeathTest, DetectsAccessBeyondTheRequestedSharedMemory) {
    EXPECT_DEATH(emulation::launch({}, {}, 12, [] { test_shared[3] = 1; }), "use-after-poison");
}

TEST(EmulationDeathTest, DetectsMisalignedVectors) {
    alignas(16) static int ids[8] = {};
    EXPECT_DEATH(emulation::launch({}, {}, 0,
                                   [] {
                                       const int4 vector = *reinterpret_cast<const int4 *>(ids + 1);
                                       ids[0] = vector.x;
                                   }),
                 "misaligned address");
}
#endif

TEST(Emulation, SharesStaticMemoryWithinABlock) {
    unsigned sum = 0;
    emulation::launch({}, {32}, 0, [&] {
        static __shared__ unsigned numbers[32];
        numbers[threadIdx.x] = threadIdx.x;
        __syncthreads();
        sum += numbers[31 - threadIdx.x];
    });
    EXPECT_EQ(sum, 31u * 16u);
}

TEST(Emulation, ShufflesValuesBetweenLanes) {
    for (uint64_t seed = 0; seed < 5; seed++) {
        const auto body = [] {
            const unsigned lane = threadIdx.x % 32;
            const unsigned all = 0xffffffff;
            EXPECT_EQ(__shfl_sync(all, int64_t(lane) << 40, 5), int64_t(5) << 40);
            EXPECT_EQ(__shfl_sync(all, lane, int(lane) + 1), (lane + 1) % 32);
            EXPECT_EQ(__shfl_sync(all, lane, 9, 8), lane / 8 * 8 + 1);
            EXPECT_EQ(__shfl_down_sync(all, float(lane), 3), float(lane < 29 ? lane + 3 : lane));
            EXPECT_EQ(__shfl_down_sync(all, lane, 1, 4), lane % 4 < 3 ? lane + 1 : lane);
            EXPECT_EQ(__shfl_xor_sync(all, lane, 17), lane ^ 17);
            unsigned sum = lane;
            for (unsigned delta = 16; delta > 0; delta /= 2) {
                sum += __shfl_down_sync(all, sum, delta);
            }
            EXPECT_EQ(__shfl_sync(all, sum, 0), 31u * 16u);
        };
        emulation::launch({}, {96}, 0, body, {seed});
    }
}

TEST(Emulation, VotesAndMatches) {
    emulation::launch({}, {64}, 0, [] {
        const unsigned lane = threadIdx.x % 32;
        EXPECT_EQ(__ballot_sync(0xffffffff, lane % 3 == 0), 0x49249249u);
        EXPECT_EQ(__match_any_sync(0xffffffff, lane % 2), lane % 2 == 0 ? 0x55555555u : 0xaaaaaaaau);
        // Two halves of a warp, each with a collective of its own.
        const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
        EXPECT_EQ(__popc(__ballot_sync(half, lane == 3 || lane > 20)), lane < 16 ? 1 : 11);
        EXPECT_EQ(__ffs(int(half)), lane < 16 ? 1 : 17);
    });
}

TEST(Emulation, CollectivesDoNotWaitForExitedLanes) {
    // Nor for the lanes that a partial warp lacks.
    emulation::launch({}, {40}, 0, [] {
        if (threadIdx.x % 2 == 1) {
            return;
        }
        EXPECT_EQ(__ballot_sync(0xffffffff, 1), threadIdx.x < 32 ? 0x55555555u : 0x55u);
    });
}

TEST(Emulation, AtomicsReturnTheOldValue) {
    unsigned largest = 0, exchanged = 7;
    unsigned long long sum = 0;
    emulation::launch({2}, {100}, 0, [&] {
        atomicMax(&largest, threadIdx.x);
        atomicAdd(&sum, 1ull << 33);
        atomicExch(&exchanged, 8);
    });
    EXPECT_EQ(largest, 99u);
    EXPECT_EQ(sum, 200ull << 33);
    EXPECT_EQ(exchanged, 8u);
}

TEST(Emulation, FindsKernelsByNameAndCopiesTheirParameters) {
    EXPECT_EQ(emulation::find("no such kernel"), nullptr);
    const emulation::kernel *kernel = emulation::find("fill");
    ASSERT_NE(kernel, nullptr);
    std::vector<unsigned> out(4);
    unsigned *data = out.data();
    unsigned first = 10;
    unsigned long long step = 3;
    void *parameters[] = {&data, &first, &step};
    const emulation::bound_kernel bound = (*kernel)(parameters);
    data = nullptr;
    first = 0;
    step = 0;
    emulation::launch({}, {4}, 0, bound);
    EXPECT_EQ(out, (std::vector<unsigned>{10, 13, 16, 19}));
}

} // namespace
