// Copies of tables of any length and number of layers, in any order of threads.
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "cuda_emulation.h"

EMULATION_SHARED_MEMORY(uint32_t, eplb_bins);
#include "../../kernels/copy_tables.cuh"

namespace {

void check(uint32_t num_vectors, uint32_t num_layers, uint32_t gap, uint64_t seed) {
    SCOPED_TRACE(testing::Message() << num_vectors << " vectors, " << num_layers << " layers, seed " << seed);
    std::mt19937_64 random(seed);
    // The word of a layer is behind its tables, as in src/dispatch/live/copy.rs.
    const uint32_t from_stride = num_vectors + 4, to_stride = num_vectors + gap;
    std::unique_ptr<uint4[]> from(new uint4[from_stride * num_layers]), to(new uint4[to_stride * num_layers]);
    const auto word = [&](uint4 *all, size_t i) -> unsigned & { return (&all[i / 4].x)[i % 4]; };
    for (size_t i = 0; i < size_t(from_stride) * num_layers * 4; i++) {
        word(from.get(), i) = static_cast<unsigned>(random());
    }
    for (size_t i = 0; i < size_t(to_stride) * num_layers * 4; i++) {
        word(to.get(), i) = 7;
    }
    uint32_t *const done = &from[num_vectors].x;
    const eplb_copy_arguments args = {to.get(), from.get(), done, 1000, num_vectors, to_stride, from_stride};
    emulation::launch({num_layers}, {EPLB_COPY_THREADS}, 0, [&] { eplb_copy_tables(args); }, {seed});
    for (uint32_t layer = 0; layer < num_layers; layer++) {
        for (size_t i = 0; i < size_t(to_stride) * 4; i++) {
            const unsigned found = word(to.get(), size_t(layer) * to_stride * 4 + i);
            const bool is_table = i < size_t(num_vectors) * 4;
            const unsigned expected = is_table ? word(from.get(), size_t(layer) * from_stride * 4 + i) : 7;
            ASSERT_EQ(found, expected) << "layer " << layer << ", word " << i;
        }
        EXPECT_EQ(done[size_t(layer) * from_stride * 4], 1000u) << "layer " << layer;
    }
}

TEST(CopyTables, CopiesTablesOfAnyLength) {
    for (const uint32_t num_vectors : {1, 4, 1023, 1024, 1025, 4096, 4100, 9000}) {
        check(num_vectors, 1, 4, num_vectors);
    }
}

TEST(CopyTables, CopiesAllLayersAtOnceAndNothingBetween) {
    for (const uint32_t num_layers : {2, 3, 7}) {
        check(36, num_layers, 12, num_layers);
        check(1028, num_layers, 0, num_layers);
    }
}

/// The host may write to `from` once it sees the number, so that comes last.
TEST(CopyTables, WritesTheNumberAfterTheLastVector) {
    for (uint64_t seed = 0; seed < 8; seed++) {
        constexpr uint32_t num_vectors = 1100;
        std::vector<uint4> from(num_vectors + 4, uint4{5, 5, 5, 5}), to(num_vectors);
        uint32_t *const done = &from[num_vectors].x;
        *done = 0;
        const eplb_copy_arguments args = {to.data(),   from.data(), done,           1,
                                          num_vectors, num_vectors, num_vectors + 4};
        size_t late = 0;
        emulation::launch({1}, {EPLB_COPY_THREADS}, 0,
                          [&] {
                              eplb_copy_tables(args);
                              // Whenever a thread has ended and the number is there, so is every vector.
                              if (*static_cast<volatile uint32_t *>(done) == 1) {
                                  for (const uint4 &vector : to) {
                                      late += vector.x != 5;
                                  }
                              }
                          },
                          {seed});
        EXPECT_EQ(late, 0u) << "seed " << seed;
        EXPECT_EQ(*done, 1u);
    }
}

} // namespace
