// Compares the kernel that adds counts with a reference, for all types, sizes and launches.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "cuda_emulation.h"

EMULATION_SHARED_MEMORY(uint32_t, eplb_bins);
#include "../../kernels/add_counts.cuh"

namespace {

struct shape {
    uint32_t num_counts;
    unsigned blocks;
    uint32_t row;
    bool is_cumulative;
};

template <class Count> Count random_count(std::mt19937_64 &random) {
    switch (random() % 8) {
    case 0:
        return -1;
    case 1:
        return std::numeric_limits<Count>::max();
    case 2:
        return std::numeric_limits<Count>::min();
    case 3:
        return 0;
    default:
        return Count(random() % 1000);
    }
}

template <class Count, class Cell> void check(const shape &shape, uint64_t seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed << ", " << shape.num_counts << " counts of "
                                    << sizeof(Count) << " bytes, " << shape.blocks << " blocks, row "
                                    << int32_t(shape.row) << ", cumulative " << shape.is_cumulative);
    std::mt19937_64 random(seed);
    // In allocations of their exact size, so that AddressSanitizer and valgrind detect reads behind them.
    std::unique_ptr<Count[]> counts(new Count[shape.num_counts]);
    std::generate_n(counts.get(), shape.num_counts, [&] { return random_count<Count>(random); });
    std::vector<int64_t> last(shape.is_cumulative ? shape.num_counts : 0);
    std::generate(last.begin(), last.end(), [&] { return int64_t(random() % 1000); });

    // The cells of this layer and of three others, none of them 0.
    const uint64_t row_stride = shape.num_counts + 3;
    std::vector<Cell> cells(3 * row_stride - 3);
    std::generate(cells.begin(), cells.end(), [&] { return Cell(random() % 1000 + 1); });
    eplb_count_totals totals = {};
    totals.ids = 1000;
    totals.out_of_range = 2000;
    totals.padding = 3000;

    std::vector<Cell> expected_cells = cells;
    std::vector<int64_t> expected_last = last;
    eplb_count_totals expected = totals;
    for (uint32_t i = 0; i < shape.num_counts; i++) {
        int64_t more = counts[i];
        if (shape.is_cumulative) {
            // int32 counters are unsigned.
            const int64_t counter = sizeof(Count) == 4 ? int64_t(uint32_t(counts[i])) : int64_t(counts[i]);
            more = counter >= last[i] ? counter - last[i] : counter;
            expected_last[i] = counter < 0 ? last[i] : counter;
        }
        if (shape.row == EPLB_COUNT_OFF) {
            continue;
        }
        if (more < 0) {
            expected.ids++;
            expected.out_of_range++;
        } else {
            expected.ids += uint64_t(more);
            expected_cells[shape.row * row_stride + i] += Cell(more);
        }
    }

    const eplb_add_counts_arguments args = {counts.get(),      shape.is_cumulative ? last.data() : nullptr,
                                            &shape.row,        cells.data(),
                                            row_stride,        &totals,
                                            shape.num_counts,  sizeof(Count) == 8,
                                            sizeof(Cell) == 8, 0};
    emulation::launch({shape.blocks}, {EPLB_COUNT_THREADS}, 0, [&] { eplb_add_counts(args); }, {seed});

    EXPECT_EQ(cells, expected_cells);
    EXPECT_EQ(last, expected_last);
    EXPECT_EQ(totals.ids, expected.ids);
    EXPECT_EQ(totals.out_of_range, expected.out_of_range);
    EXPECT_EQ(totals.padding, 3000u);
}

void check_all(uint32_t num_counts, unsigned blocks, uint32_t row, uint64_t seed) {
    for (const bool is_cumulative : {false, true}) {
        const shape shape = {num_counts, blocks, row, is_cumulative};
        check<int32_t, unsigned>(shape, seed);
        check<int64_t, unsigned>(shape, seed);
        check<int32_t, unsigned long long>(shape, seed);
        check<int64_t, unsigned long long>(shape, seed);
    }
}

TEST(AddCounts, AddsAnyNumberOfCounts) {
    for (const uint32_t num_counts : {1, 2, 31, 32, 33, 256, 511, 512, 513, 1030}) {
        check_all(num_counts, (num_counts + EPLB_COUNT_THREADS - 1) / EPLB_COUNT_THREADS, 1, num_counts);
    }
}

TEST(AddCounts, AddsWithAnyNumberOfBlocks) {
    for (const unsigned blocks : {1, 2, 3, 5}) {
        check_all(1100, blocks, 2, blocks);
    }
}

TEST(AddCounts, AddsInAnyOrderOfThreads) {
    for (uint64_t seed = 0; seed < 6; seed++) {
        check_all(70, 2, 0, seed);
    }
}

TEST(AddCounts, OnlyTakesLastValuesIfOff) { check_all(300, 1, EPLB_COUNT_OFF, 1); }

} // namespace
