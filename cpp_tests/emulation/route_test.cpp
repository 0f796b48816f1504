// Compares the routing kernels with a second implementation of the rules, in many orders of their threads.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "../route_reference.h"
#include "checkers.h"
#include "cuda_emulation.h"

EMULATION_SHARED_MEMORY(uint32_t, eplb_bins);
#include "../../kernels/eplb.cu"

namespace {

constexpr uint32_t choices = 3;

/// Consecutive parts in one allocation, so that checkers detect accesses behind it.
struct table_words {
    std::vector<uint32_t> words;

    /// The start of the part.
    uint32_t add(const std::vector<uint32_t> &part) {
        const size_t at = words.size();
        words.insert(words.end(), part.begin(), part.end());
        return static_cast<uint32_t>(at);
    }
    uint32_t size() {
        words.resize((words.size() + 3) / 4 * 4, 77);
        return static_cast<uint32_t>(words.size());
    }
};

/// Tables and workspaces of one layer.
struct layer_memory {
    std::vector<uint32_t> count, start, slots;
    std::vector<uint32_t> edges, row_start, experts, holder_start = {0}, holder_rank, holder_first,
                                                     holder_size, holder_place, sizes;
    std::vector<uint64_t> memory;
    std::vector<uint32_t> ends, block_counts, blocks_done = {0};
    /// The tables of nearest for one rank.
    std::vector<uint32_t> shares;
    table_words tables;

    explicit layer_memory(const layer_placement &layer)
        : ends((layer.experts.size() + 3) / 4 * 4, 77),
          block_counts(size_t(EPLB_SPLIT_BLOCKS) * layer.num_experts, 77) {
        struct holder {
            uint32_t rank, first, size;
        };
        struct replicated {
            uint32_t expert;
            std::vector<holder> holders;
        };
        std::vector<replicated> all;
        for (uint32_t expert = 0; expert < layer.num_experts; expert++) {
            const auto mine = layer.slots_of(expert);
            start.push_back(static_cast<uint32_t>(slots.size()));
            count.push_back(static_cast<uint32_t>(mine.size()));
            std::vector<holder> holders;
            for (const int64_t slot : mine) {
                const uint32_t rank = layer.rank_of(slot);
                if (holders.empty() || holders.back().rank != rank) {
                    holders.push_back({rank, static_cast<uint32_t>(slots.size()), 0});
                }
                holders.back().size++;
                slots.push_back(static_cast<uint32_t>(slot));
            }
            if (mine.size() > 1) {
                all.push_back({expert, holders});
            }
        }
        std::stable_sort(all.begin(), all.end(), [](const replicated &a, const replicated &b) {
            return a.holders.size() > b.holders.size();
        });
        std::map<uint32_t, std::vector<uint32_t>> ranks;
        std::map<uint32_t, uint32_t> first_holders;
        for (const replicated &one : all) {
            first_holders[one.expert] = static_cast<uint32_t>(holder_rank.size());
            for (const holder &mine : one.holders) {
                holder_rank.push_back(mine.rank);
                holder_first.push_back(mine.first);
                holder_size.push_back(mine.size);
                holder_place.push_back(static_cast<uint32_t>(experts.size()));
                if (one.holders.size() > 1) {
                    ranks[one.expert].push_back(mine.rank);
                }
            }
            experts.push_back(one.expert);
            holder_start.push_back(static_cast<uint32_t>(holder_rank.size()));
        }
        const auto steps = edge_steps(ranks);
        for (const auto &step : steps) {
            for (size_t i = 0; i < step.size(); i++) {
                if (i % 32 == 0) {
                    row_start.push_back(static_cast<uint32_t>(edges.size() / 4));
                }
                const rank_edge &edge = step[i];
                const uint32_t first = layer.num_ranks + first_holders[edge.expert];
                const auto &held_by = ranks[edge.expert];
                for (const size_t index :
                     {first + edge.x, first + edge.y, size_t(held_by[edge.x]), size_t(held_by[edge.y])}) {
                    edges.push_back(static_cast<uint32_t>(index * 4));
                }
            }
        }
        row_start.push_back(static_cast<uint32_t>(edges.size() / 4));
        sizes = {static_cast<uint32_t>(holder_rank.size()), static_cast<uint32_t>(row_start.size() - 1),
                 own_sweeps(ranks)};
        memory.assign(memory_words(layer) / 2 + 1, 77);
    }

    uint32_t memory_words(const layer_placement &layer) const {
        const size_t words = 5 * layer.num_experts + 4 + layer.num_ranks + holder_rank.size();
        return static_cast<uint32_t>((words + 3) / 4 * 4);
    }

    void share(const layer_placement &layer, uint32_t rank, const std::vector<int32_t> &nodes) {
        __extension__ using wide = unsigned __int128;
        for (uint32_t expert = 0; expert < layer.num_experts; expert++) {
            const auto units = nearest_units(layer, layer.slots_of(expert), rank, nodes);
            const wide all = std::accumulate(units.begin(), units.end(), wide(0));
            wide sum = 0;
            for (const uint64_t unit : units) {
                sum += unit;
                shares.push_back(static_cast<uint32_t>(std::min((sum << 32) / all, wide(UINT32_MAX))));
            }
        }
    }

    eplb_route_arguments arguments(const layer_placement &layer) {
        eplb_route_arguments args = {};
        tables.add(count);
        args.start_at = tables.add(start);
        args.slots_at = tables.add(slots);
        args.shares_at = tables.add(shares);
        args.table_words = tables.size();
        args.num_experts = layer.num_experts;
        args.num_slots = static_cast<uint32_t>(layer.experts.size());
        args.invalid_slot = static_cast<int32_t>(args.num_slots);
        eplb_split_arguments &split = args.split;
        split.edges_at = tables.add(edges);
        split.row_start_at = tables.add(row_start);
        split.holder_rank_at = tables.add(holder_rank);
        split.holder_first_at = tables.add(holder_first);
        split.holder_size_at = tables.add(holder_size);
        split.holder_place_at = tables.add(holder_place);
        split.experts_at = tables.add(experts);
        split.holder_start_at = tables.add(holder_start);
        split.sizes_at = tables.add(sizes);
        tables.size();
        args.tables = tables.words.data();
        split.memory = memory.data();
        split.ends = ends.data();
        split.block_counts = block_counts.data();
        split.blocks_done = blocks_done.data();
        split.num_holders = static_cast<uint32_t>(holder_rank.size());
        split.num_ranks = layer.num_ranks;
        split.slots_per_rank = args.num_slots / layer.num_ranks;
        split.ids_per_block = EPLB_ROUTE_BLOCK;
        return args;
    }
};

layer_placement a_placement(std::mt19937_64 &random) {
    const uint32_t ranks = 1 + static_cast<uint32_t>(random() % 40),
                   experts = 1 + static_cast<uint32_t>(random() % 50);
    const uint32_t slots = ((experts + ranks - 1) / ranks + static_cast<uint32_t>(random() % 3)) * ranks;
    std::vector<int32_t> held(slots);
    for (uint32_t slot = 0; slot < slots; slot++) {
        held[slot] = static_cast<int32_t>(slot < experts ? slot : random() % (random() % experts + 1));
    }
    std::shuffle(held.begin(), held.end(), random);
    return {experts, ranks, held};
}

} // namespace

TEST(RouteKernels, GiveTheSameSlotsInAnyOrderOfThreads) {
    // Fewer under valgrind, which slows down every fiber.
    const uint64_t seeds = emulation::under_valgrind() ? 4 : 24;
    for (uint64_t seed = 0; seed < seeds; seed++) {
        std::mt19937_64 random(seed);
        const auto layer = a_placement(random);
        layer_memory memory(layer);
        // Nearest adds the rank to the block's number. Three ranks share a node.
        const uint32_t rank = static_cast<uint32_t>(random() % layer.num_ranks);
        std::vector<int32_t> nodes;
        for (uint32_t r = 0; r < layer.num_ranks; r++) {
            nodes.push_back(static_cast<int32_t>(r / 3));
        }
        memory.share(layer, rank, nodes);
        const uint32_t tokens = 1 + static_cast<uint32_t>(random() % 1000);
        std::vector<int32_t> ids(tokens * choices);
        for (int32_t &id : ids) {
            id = static_cast<int32_t>(random() % (layer.num_experts + 3)) - 2;
        }
        const int32_t valid = static_cast<int32_t>(random() % (tokens + 1));
        const size_t valid_ids = static_cast<size_t>(valid) * choices;
        std::vector<int32_t> slots(ids.size(), 77);
        auto args = memory.arguments(layer);
        args.expert_ids = ids.data();
        args.slot_ids = slots.data();
        args.num_valid = &valid;
        args.num_tokens = tokens;
        args.experts_per_token = choices;
        args.offset = rank;
        // Count slots: in bins, or in cells if the seed leaves no room for bins.
        const uint32_t row = 1;
        std::vector<uint32_t> cells(2 * layer.experts.size());
        eplb_count_totals totals = {};
        args.row = &row;
        args.cells = cells.data();
        args.row_stride = layer.experts.size();
        args.totals = &totals;
        args.num_cells = args.num_slots;
        args.counts_slots = 1;
        // Each part of shared memory is optional: bins or cells, positions by rows or by a scan.
        size_t shared = 0;
        const auto take = [&](size_t words) {
            const size_t at = shared / sizeof(uint32_t);
            if (random() % 4 == 0) {
                return EPLB_NO_ROOM;
            }
            shared += (words + 3) / 4 * 4 * sizeof(uint32_t);
            return static_cast<uint32_t>(at);
        };
        args.shared_rows_at = take(4 * layer.num_experts);
        // The tables of all rules, or none.
        if (random() % 2 == 0) {
            args.table_words = memory.tables.size();
        }
        args.shared_tables_at = take(args.table_words);
        args.shared_bins_at = take(args.num_cells + EPLB_OTHER_BINS);
        args.split.shared_counts_at = take((layer.num_experts + 3) / 4 * 4 + args.num_slots);
        args.split.shared_memory_at = take(memory.memory_words(layer));
        const auto blocks_of = [&](size_t per_block) {
            return static_cast<unsigned>((ids.size() + per_block - 1) / per_block);
        };
        const auto launch = [&](void (*kernel)(eplb_route_arguments), unsigned blocks,
                                unsigned threads = EPLB_ROUTE_THREADS) {
            emulation::options options;
            options.seed = seed;
            emulation::launch(
                {blocks}, {threads}, shared, [&] { kernel(args); }, options);
        };
        const auto expect = [&](const std::vector<int32_t> &expected) {
            EXPECT_EQ(slots, expected) << "seed " << seed;
            std::vector<uint32_t> counts(2 * layer.experts.size());
            uint64_t none = 0, out_of_range = 0;
            for (size_t i = 0; i < valid_ids; i++) {
                if (expected[i] < layer.num_slots()) {
                    counts[layer.experts.size() + static_cast<size_t>(expected[i])]++;
                } else {
                    (ids[i] == -1 ? none : out_of_range)++;
                }
            }
            EXPECT_EQ(cells, counts) << "seed " << seed;
            EXPECT_EQ(totals.ids, valid_ids);
            EXPECT_EQ(totals.padding, ids.size() - valid_ids);
            EXPECT_EQ(totals.none, none);
            EXPECT_EQ(totals.out_of_range, out_of_range);
            std::fill(cells.begin(), cells.end(), 0);
            std::fill(slots.begin(), slots.end(), 77);
            totals = {};
        };
        launch(eplb_route_round_robin_i32, blocks_of(EPLB_ROUTE_BLOCK));
        expect(round_robin(layer, ids, valid_ids, rank));
        launch(eplb_route_nearest_i32, blocks_of(EPLB_ROUTE_BLOCK));
        expect(nearest(layer, ids, valid_ids, rank, nodes));
        launch(eplb_route_token_hash_i32, blocks_of(EPLB_HASH_THREADS * 4), EPLB_HASH_THREADS);
        expect(token_hash(layer, ids, valid_ids, choices));
        // A second time, since workspaces are reused.
        for (int time = 0; time < 2; time++) {
            const unsigned blocks = blocks_of(EPLB_ROUTE_BLOCK);
            for (args.split.phase = 0; args.split.phase < (blocks > 1 ? 2u : 1u); args.split.phase++) {
                launch(eplb_route_least_loaded_i32, blocks);
            }
            expect(least_loaded(layer, ids, valid_ids));
            EXPECT_EQ(memory.blocks_done[0], 0u);
        }
    }
}

/// Routes by the kernels for any layout, and counts in the same pass.
template <class Id, class Slot> void route_general(uint64_t seed) {
    std::mt19937_64 random(seed);
    const auto layer = a_placement(random);
    layer_memory memory(layer);
    const uint32_t rank = static_cast<uint32_t>(random() % layer.num_ranks);
    const std::vector<int32_t> nodes(layer.num_ranks);
    memory.share(layer, rank, nodes);
    const uint32_t tokens = 1 + static_cast<uint32_t>(random() % 900), num_shared = random() % 3;
    const auto num_experts = static_cast<int64_t>(layer.num_experts);
    // Shared experts are behind the placement's slots, and -1 is the slot of ids without an expert.
    const std::vector<int32_t> shared = {static_cast<int32_t>(layer.num_slots()) + 5,
                                         static_cast<int32_t>(layer.num_slots())};
    std::vector<int64_t> ids(tokens * choices);
    for (int64_t &id : ids) {
        const int64_t far[] = {INT64_MIN, INT64_MAX, (int64_t(1) << 32) - 1, int64_t(1) << 32};
        id = static_cast<int64_t>(random() % (layer.num_experts + 5)) - 2;
        if (sizeof(Id) == 8 && random() % 20 == 0) {
            id = far[random() % 4];
        }
    }
    const int32_t valid = static_cast<int32_t>(random() % (tokens + 1));
    const size_t valid_ids = static_cast<size_t>(valid) * choices;
    const uint32_t ids_gap = random() % 4, slots_gap = random() % 4;
    const size_t ids_stride = choices + ids_gap, slots_stride = choices + slots_gap;
    std::vector<Id> given((tokens - 1) * ids_stride + choices, 0);
    std::vector<Slot> slots((tokens - 1) * slots_stride + choices, 77);
    for (size_t i = 0; i < ids.size(); i++) {
        given[i / choices * ids_stride + i % choices] = static_cast<Id>(ids[i]);
    }
    auto args = memory.arguments(layer);
    args.expert_ids = given.data();
    args.slot_ids = slots.data();
    args.num_valid = &valid;
    args.num_tokens = tokens;
    args.experts_per_token = choices;
    args.offset = rank;
    args.invalid_slot = -1;
    args.layout.shared_slots = shared.data();
    args.layout.num_shared = num_shared;
    args.layout.ids_stride = static_cast<uint32_t>(ids_stride);
    args.layout.slots_stride = static_cast<uint32_t>(slots_stride);
    args.layout.ids_are_64_bits = sizeof(Id) == 8;
    args.layout.slots_are_64_bits = sizeof(Slot) == 8;
    const uint32_t row = 0;
    const bool counts_slots = random() % 2 == 0;
    std::vector<unsigned long long> cells(counts_slots ? layer.experts.size() : layer.num_experts);
    eplb_count_totals totals = {};
    args.row = &row;
    args.cells = cells.data();
    args.cells_are_64_bits = 1;
    args.totals = &totals;
    args.num_cells = static_cast<uint32_t>(cells.size());
    args.counts_slots = counts_slots;
    args.shared_rows_at = args.shared_tables_at = args.split.shared_counts_at = EPLB_NO_ROOM;
    args.split.shared_memory_at = EPLB_NO_ROOM;
    args.shared_bins_at = random() % 2 == 0 ? 0 : EPLB_NO_ROOM;
    const size_t shared_bytes = (args.num_cells + EPLB_OTHER_BINS) * sizeof(uint32_t);
    const auto launch = [&](void (*kernel)(eplb_route_arguments), size_t per_block, unsigned threads) {
        emulation::options options;
        options.seed = seed;
        emulation::launch(
            {static_cast<unsigned>((ids.size() + per_block - 1) / per_block)}, {threads}, shared_bytes,
            [&] { kernel(args); }, options);
    };
    // `routed` has slot num_slots for all that the rule does not serve.
    const auto expect = [&](const char *rule, const std::vector<int64_t> &routed) {
        std::vector<Slot> expected(slots.size(), 77);
        std::vector<unsigned long long> counts(cells.size());
        eplb_count_totals sums = {};
        for (size_t i = 0; i < ids.size(); i++) {
            int64_t slot = routed[i];
            if (i >= valid_ids) {
                sums.padding++;
                slot = -1;
            } else if (slot != layer.num_slots()) {
                counts[static_cast<size_t>(counts_slots ? slot : ids[i])]++;
            } else if (ids[i] >= num_experts && ids[i] < num_experts + num_shared) {
                sums.shared++;
                slot = shared[static_cast<size_t>(ids[i] - num_experts)];
            } else {
                (ids[i] == -1 ? sums.none : sums.out_of_range)++;
                slot = -1;
            }
            expected[i / choices * slots_stride + i % choices] = static_cast<Slot>(slot);
        }
        EXPECT_EQ(slots, expected) << rule << ", seed " << seed;
        EXPECT_EQ(cells, counts) << rule << ", seed " << seed;
        EXPECT_EQ(totals.ids, valid_ids);
        EXPECT_EQ(totals.padding, sums.padding);
        EXPECT_EQ(totals.none, sums.none);
        EXPECT_EQ(totals.shared, sums.shared);
        EXPECT_EQ(totals.out_of_range, sums.out_of_range);
        std::fill(cells.begin(), cells.end(), 0);
        std::fill(slots.begin(), slots.end(), 77);
        totals = {};
    };
    launch(eplb_route_round_robin_general, EPLB_ROUTE_BLOCK, EPLB_ROUTE_THREADS);
    expect("round robin", round_robin(layer, ids, valid_ids, rank));
    launch(eplb_route_nearest_general, EPLB_ROUTE_BLOCK, EPLB_ROUTE_THREADS);
    expect("nearest", nearest(layer, ids, valid_ids, rank, nodes));
    launch(eplb_route_token_hash_general, EPLB_HASH_THREADS * 4, EPLB_HASH_THREADS);
    expect("token hash", token_hash(layer, ids, valid_ids, choices));
    args.split.phase = 0;
    launch(eplb_route_least_loaded_general, EPLB_ROUTE_BLOCK, EPLB_ROUTE_THREADS);
    args.split.phase = 2;
    args.num_tokens = 0;
    args.layout.num_counted = static_cast<uint32_t>((ids.size() + EPLB_ROUTE_BLOCK - 1) / EPLB_ROUTE_BLOCK);
    launch(eplb_route_least_loaded_i32, ids.size(), EPLB_ROUTE_THREADS);
    args.split.phase = 1;
    args.num_tokens = tokens;
    launch(eplb_route_least_loaded_general, EPLB_ROUTE_BLOCK, EPLB_ROUTE_THREADS);
    expect("least loaded", least_loaded(layer, ids, valid_ids));
}

TEST(RouteKernels, RouteAnyStrideAndTypeAndServeSharedExperts) {
    const uint64_t seeds = emulation::under_valgrind() ? 2 : 12;
    for (uint64_t seed = 0; seed < seeds; seed++) {
        route_general<int32_t, int32_t>(seed);
        route_general<int32_t, int64_t>(seed + 100);
        route_general<int64_t, int32_t>(seed + 200);
        route_general<int64_t, int64_t>(seed + 300);
    }
}
