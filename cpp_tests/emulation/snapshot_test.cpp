// The kernel of snapshots beside a reference, for all sizes, places in the ring, and launches.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "cuda_emulation.h"

EMULATION_SHARED_MEMORY(uint32_t, eplb_bins);
#include "../../kernels/snapshot.cuh"

namespace {

using cells = std::vector<unsigned long long>;

struct shape {
    uint64_t num_cells;
    uint32_t ring_rows, first, num_rows, num_samples;
    unsigned blocks;
};

void check(const shape &shape, uint64_t seed) {
    const auto &[num_cells, ring_rows, first, num_rows, num_samples, blocks] = shape;
    SCOPED_TRACE(testing::Message() << num_cells << " cells, " << num_rows << " of " << ring_rows
                                    << " rows from " << first << ", " << num_samples << " samples, " << blocks
                                    << " blocks");
    std::mt19937_64 random(seed);
    // Rows that are not in use are zeros, and the last row has what the ring holds no more.
    cells all((ring_rows + 1) * num_cells);
    const auto fill_row = [&](uint64_t row) {
        for (uint64_t i = 0; i < num_cells; i++) {
            all[row * num_cells + i] = random() % 3 == 0 ? 0 : random() % (1ull << 40);
        }
    };
    for (uint32_t row = 0; row < num_rows; row++) {
        fill_row((first + row) % ring_rows);
    }
    fill_row(ring_rows);
    std::vector<int64_t> expected(num_samples * num_cells);
    const uint64_t groups = num_samples < num_rows ? num_samples : num_rows;
    for (uint64_t i = 0; i < num_cells; i++) {
        expected[i] += static_cast<int64_t>(all[ring_rows * num_cells + i]);
        for (uint64_t row = 0; row < num_rows; row++) {
            // Sample s has the rows from s * n / m to (s + 1) * n / m.
            uint64_t sample = 0;
            while ((sample + 1) * num_rows / groups <= row) {
                sample++;
            }
            expected[sample * num_cells + i] +=
                static_cast<int64_t>(all[(first + row) % ring_rows * num_cells + i]);
        }
    }
    std::vector<int64_t> counts(num_samples * num_cells, -1);
    const eplb_snapshot_arguments args = {all.data(), counts.data(), num_cells,  ring_rows,
                                          first,      num_rows,      num_samples};
    emulation::launch({blocks}, {EPLB_SNAPSHOT_THREADS}, 0, [&] { eplb_snapshot(args); }, {seed});
    EXPECT_EQ(counts, expected);
    EXPECT_EQ(all, cells(all.size())) << "what was read is cleared";
}

TEST(Snapshot, AddsUpTheRowsOfEachSample) {
    for (const uint32_t ring_rows : {1u, 2u, 5u, 8u}) {
        for (uint32_t num_rows = 1; num_rows <= ring_rows; num_rows++) {
            for (const uint32_t num_samples : {1u, 2u, 3u, 8u, 11u}) {
                check({20, ring_rows, (num_rows * 3) % ring_rows, num_rows, num_samples, 1}, num_rows);
            }
        }
    }
}

TEST(Snapshot, TakesAnyNumberOfCellsAndBlocks) {
    for (const uint64_t num_cells : {1, 255, 256, 257, 1000}) {
        for (const unsigned blocks : {1u, 2u, 4u}) {
            check({num_cells, 3, 2, 3, 2, blocks}, num_cells);
        }
    }
}

TEST(Snapshot, AddsTheOldestRowToTheLastOne) {
    constexpr uint64_t num_cells = 300;
    for (const uint32_t first : {0u, 2u}) {
        cells all(4 * num_cells), expected = all;
        std::mt19937_64 random(first);
        for (uint64_t i = 0; i < all.size(); i++) {
            expected[i] = all[i] = random() % 1000;
        }
        for (uint64_t i = 0; i < num_cells; i++) {
            expected[3 * num_cells + i] += expected[first * num_cells + i];
            expected[first * num_cells + i] = 0;
        }
        const eplb_snapshot_arguments args = {all.data(), nullptr, num_cells, 3, first, 1, 0};
        emulation::launch({2}, {EPLB_SNAPSHOT_THREADS}, 0, [&] { eplb_snapshot(args); }, {first});
        EXPECT_EQ(all, expected);
    }
}

} // namespace
