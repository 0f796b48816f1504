// Compares the counting kernels with a reference, for many ids, layouts and launches.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "cuda_emulation.h"

EMULATION_SHARED_MEMORY(uint32_t, eplb_bins);
#include "../../kernels/count.cuh"

namespace {

struct shape {
    uint32_t num_experts;
    uint32_t num_tokens;
    uint32_t experts_per_token;
    unsigned blocks;
    /// Offset of the buffer from a multiple of 16 bytes, in ids.
    size_t offset;
};

template <class Id> Id random_id(std::mt19937_64 &random, uint32_t num_experts) {
    switch (random() % 20) {
    case 0:
    case 5:
        return -1;
    case 6:
        return -2;
    case 1:
        return Id(num_experts);
    case 2:
        return std::numeric_limits<Id>::min();
    case 3:
        return std::numeric_limits<Id>::max();
    case 4: // The low half of the int64_t is a valid expert.
        return Id((1ull << 32) + num_experts - 1);
    default:
        return Id(random() % num_experts);
    }
}

/// Ids in an allocation that ends with the last id, so that AddressSanitizer and valgrind detect reads behind
/// it.
template <class Id> class id_buffer {
  public:
    id_buffer(std::mt19937_64 &random, const shape &shape)
        : offset(shape.offset), size(size_t(shape.num_tokens) * shape.experts_per_token),
          ids(new Id[offset + size]) {
        for (size_t i = 0; i < size; i++) {
            ids[offset + i] = random_id<Id>(random, shape.num_experts);
        }
    }
    const Id *data() const { return ids.get() + offset; }

  private:
    size_t offset, size;
    std::unique_ptr<Id[]> ids;
};

template <class Id, class Cell>
void check(void (*kernel)(eplb_count_arguments), const shape &shape, const int32_t *num_valid, uint32_t row,
           uint64_t seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed << ", " << shape.num_experts << " experts, "
                                    << shape.num_tokens << " x " << shape.experts_per_token << " ids, "
                                    << shape.blocks << " blocks, offset " << shape.offset << ", row "
                                    << int32_t(row) << ", num_valid " << (num_valid ? *num_valid : -99));
    std::mt19937_64 random(seed);
    const id_buffer<Id> ids(random, shape);
    const uint32_t tokens = num_valid == nullptr
                                ? shape.num_tokens
                                : uint32_t(std::min<int64_t>(std::max(*num_valid, 0), shape.num_tokens));

    // The counts of this layer and of three others, none of them 0.
    const uint64_t row_stride = shape.num_experts + 3;
    std::vector<Cell> cells(3 * row_stride - 3);
    for (Cell &cell : cells) {
        cell = Cell(random() % 1000);
    }
    eplb_count_totals totals = {1000, 2000, 3000, 4000, 5000};
    std::vector<Cell> expected_cells = cells;
    eplb_count_totals expected = totals;
    if (row != EPLB_COUNT_OFF) {
        const uint64_t num_ids = uint64_t(tokens) * shape.experts_per_token;
        for (uint64_t i = 0; i < num_ids; i++) {
            const Id id = ids.data()[i];
            if (id >= 0 && uint64_t(id) < shape.num_experts) {
                expected_cells[row * row_stride + uint64_t(id)]++;
            } else if (id == -1) {
                expected.none++;
            } else {
                expected.out_of_range++;
            }
        }
        expected.ids += num_ids;
        expected.padding += uint64_t(shape.num_tokens - tokens) * shape.experts_per_token;
    }

    const size_t bins_bytes = (size_t(shape.num_experts) + EPLB_OTHER_BINS) * sizeof(uint32_t);
    const bool has_bins = bins_bytes <= emulation::shared_capacity;
    const eplb_count_arguments args = {ids.data(),
                                       num_valid,
                                       &row,
                                       cells.data(),
                                       row_stride,
                                       &totals,
                                       shape.num_tokens,
                                       shape.experts_per_token,
                                       shape.num_experts,
                                       has_bins,
                                       0,
                                       0,
                                       0,
                                       0};
    emulation::launch({shape.blocks}, {EPLB_COUNT_THREADS}, has_bins ? bins_bytes : 0, [&] { kernel(args); },
                      {seed});

    EXPECT_EQ(cells, expected_cells);
    EXPECT_EQ(totals.ids, expected.ids);
    EXPECT_EQ(totals.out_of_range, expected.out_of_range);
    EXPECT_EQ(totals.padding, expected.padding);
    EXPECT_EQ(totals.none, expected.none);
    EXPECT_EQ(totals.shared, 5000u);
}

void check_all(const shape &shape, const int32_t *num_valid, uint32_t row, uint64_t seed) {
    check<int32_t, unsigned>(eplb_count_i32_u32, shape, num_valid, row, seed);
    check<int64_t, unsigned>(eplb_count_i64_u32, shape, num_valid, row, seed);
    check<int32_t, unsigned long long>(eplb_count_i32_u64, shape, num_valid, row, seed);
    check<int64_t, unsigned long long>(eplb_count_i64_u64, shape, num_valid, row, seed);
}

TEST(Count, CountsAnyNumberOfExperts) {
    for (const uint32_t num_experts : {1, 2, 3, 31, 64, 127, 128, 256, 300}) {
        check_all({num_experts, 37, 6, 1, 0}, nullptr, 1, num_experts);
    }
}

TEST(Count, CountsMoreExpertsThanBins) {
    check_all({100000, 101, 7, 2, 1}, nullptr, 2, 1);
    const int32_t valid = 50;
    check_all({100000, 101, 7, 1, 3}, &valid, 0, 2);
}

TEST(Count, CountsWithAllSharedMemory) {
    check_all({emulation::shared_capacity / 4 - EPLB_OTHER_BINS, 9, 8, 1, 0}, nullptr, 0, 1);
    check_all({emulation::shared_capacity / 4 - EPLB_OTHER_BINS + 1, 9, 8, 1, 0}, nullptr, 0, 1);
}

TEST(Count, CountsAnyAlignmentAndLength) {
    for (const size_t offset : {0, 1, 2, 3}) {
        for (uint32_t num_tokens = 0; num_tokens < 12; num_tokens++) {
            check_all({8, num_tokens, 1, 1, offset}, nullptr, 0, 100 * offset + num_tokens);
        }
    }
}

TEST(Count, CountsAnyNumberOfValidTokens) {
    for (const int32_t valid : {0, 1, 5, 29, 30, 31, -1, INT32_MIN, INT32_MAX}) {
        check_all({16, 30, 3, 2, 1}, &valid, 1, 7);
    }
}

TEST(Count, TellsIdsOfMinusOneFromThoseOutOfRange) {
    const std::vector<std::vector<int64_t>> batches = {
        {-1, -1, -1}, {-2, 9, INT64_MIN}, {-1, 0, -2, -1, 3, 4}, {0, 1, 2, 3}};
    for (const auto &ids : batches) {
        std::vector<unsigned> cells(4);
        eplb_count_totals totals = {};
        const uint32_t row = 0;
        const eplb_count_arguments args = {
            ids.data(), nullptr, &row, cells.data(), 4, &totals, uint32_t(ids.size()), 1, 4, 1, 0, 0, 0, 0};
        emulation::launch({1}, {EPLB_COUNT_THREADS}, (4 + EPLB_OTHER_BINS) * sizeof(uint32_t),
                          [&] { eplb_count_i64_u32(args); }, {1});
        const auto none = std::count(ids.begin(), ids.end(), -1);
        const auto good = std::count_if(ids.begin(), ids.end(), [](int64_t id) { return id >= 0 && id < 4; });
        EXPECT_EQ(totals.ids, ids.size());
        EXPECT_EQ(totals.none, uint64_t(none));
        EXPECT_EQ(totals.out_of_range, ids.size() - uint64_t(none + good));
        EXPECT_EQ(totals.padding, 0u);
    }
}

TEST(Count, CountsNothingIfOff) {
    const int32_t valid = 5;
    check_all({16, 30, 3, 2, 0}, nullptr, EPLB_COUNT_OFF, 1);
    check_all({16, 30, 3, 2, 0}, &valid, EPLB_COUNT_OFF, 1);
}

TEST(Count, CountsWithAnyNumberOfBlocks) {
    // More threads than vectors, fewer, and about as many.
    for (const unsigned blocks : {1, 2, 3, 7}) {
        check_all({60, 1500, 8, blocks, 1}, nullptr, 0, blocks);
    }
}

TEST(Count, CountsInAnyOrderOfThreads) {
    for (uint64_t seed = 0; seed < 20; seed++) {
        check_all({60, 100, 8, 2, seed % 4}, nullptr, 0, seed);
    }
}

/// Counts by the kernel for any layout: `gap` ids between rows, which must not be read, and shared experts.
template <class Id, class Cell>
void check_general(const shape &shape, uint32_t gap, uint32_t num_shared, const int32_t *num_valid,
                   uint64_t seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed << ", " << shape.num_experts << " experts, "
                                    << shape.num_tokens << " x " << shape.experts_per_token << " ids, gap "
                                    << gap << ", " << num_shared << " shared");
    std::mt19937_64 random(seed);
    const size_t stride = shape.experts_per_token + gap;
    const size_t size = shape.num_tokens == 0 ? 0 : (shape.num_tokens - 1) * stride + shape.experts_per_token;
    // The last id is the last of the allocation.
    const std::unique_ptr<Id[]> ids(new Id[size]);
    std::vector<Cell> cells(2 * shape.num_experts, Cell(3)), expected = cells;
    eplb_count_totals totals = {10, 20, 30, 40, 50}, sums = totals;
    const uint32_t row = 1;
    const int64_t all = shape.num_tokens;
    const int64_t valid = num_valid == nullptr ? all : std::clamp<int64_t>(*num_valid, 0, all);
    for (size_t token = 0; token < shape.num_tokens; token++) {
        for (size_t column = 0; column < stride && token * stride + column < size; column++) {
            Id &id = ids[token * stride + column];
            if (column >= shape.experts_per_token) {
                id = 0; // Expert 0, if it were read.
                continue;
            }
            id = random() % 4 == 0 ? Id(shape.num_experts + random() % (num_shared + 1))
                                   : random_id<Id>(random, shape.num_experts);
            if (int64_t(token) >= valid) {
                sums.padding++;
                continue;
            }
            sums.ids++;
            if (id == -1) {
                sums.none++;
            } else if (id >= 0 && uint64_t(id) < shape.num_experts) {
                expected[shape.num_experts + size_t(id)]++;
            } else if (id >= 0 && uint64_t(id) < uint64_t(shape.num_experts) + num_shared) {
                sums.shared++;
            } else {
                sums.out_of_range++;
            }
        }
    }
    const size_t bins_bytes = (size_t(shape.num_experts) + EPLB_OTHER_BINS) * sizeof(uint32_t);
    const bool has_bins = bins_bytes <= emulation::shared_capacity;
    eplb_count_arguments args = {};
    args.expert_ids = ids.get();
    args.num_valid = num_valid;
    args.row = &row;
    args.cells = cells.data();
    args.row_stride = shape.num_experts;
    args.totals = &totals;
    args.num_tokens = shape.num_tokens;
    args.experts_per_token = shape.experts_per_token;
    args.num_experts = shape.num_experts;
    args.has_bins = has_bins;
    args.ids_stride = uint32_t(stride);
    args.ids_are_64_bits = sizeof(Id) == 8;
    args.cells_are_64_bits = sizeof(Cell) == 8;
    args.num_shared = num_shared;
    emulation::launch({shape.blocks}, {EPLB_COUNT_THREADS}, has_bins ? bins_bytes : 0,
                      [&] { eplb_count_general(args); }, {seed});
    EXPECT_EQ(cells, expected);
    EXPECT_EQ(totals.ids, sums.ids);
    EXPECT_EQ(totals.out_of_range, sums.out_of_range);
    EXPECT_EQ(totals.padding, sums.padding);
    EXPECT_EQ(totals.none, sums.none);
    EXPECT_EQ(totals.shared, sums.shared);
}

TEST(Count, CountsRowsWithGapsAndSkipsSharedExperts) {
    const int32_t valid = 20;
    for (const shape &shape : {::shape{16, 30, 3, 2, 0}, ::shape{1, 700, 1, 1, 0}, ::shape{60, 101, 8, 3, 0},
                               ::shape{20000, 40, 6, 2, 0}, ::shape{8, 0, 2, 1, 0}}) {
        for (const uint32_t gap : {0u, 1u, 5u}) {
            for (const uint32_t num_shared : {0u, 1u, 3u}) {
                const uint64_t seed = gap * 10 + num_shared;
                check_general<int32_t, unsigned>(shape, gap, num_shared, &valid, seed);
                check_general<int64_t, unsigned>(shape, gap, num_shared, nullptr, seed);
                check_general<int32_t, unsigned long long>(shape, gap, num_shared, nullptr, seed);
                check_general<int64_t, unsigned long long>(shape, gap, num_shared, &valid, seed);
            }
        }
    }
}

} // namespace
