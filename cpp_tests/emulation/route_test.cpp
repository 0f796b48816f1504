// The routing kernels in many orders of their threads, against the rules written down a second time.
#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "../route_reference.h"
#include "checkers.h"
#include "cuda_emulation.h"

EMULATION_SHARED_MEMORY(uint32_t, eplb_bins);
#include "../../kernels/route.cuh"

namespace {

constexpr uint32_t choices = 3;

/// Tables and workspaces of one layer, each an allocation of its own, so that checkers see what lies behind.
struct layer_memory {
    std::vector<int32_t> count, start, slots;
    std::vector<uint32_t> experts, group_start = {0}, group_rank, group_first, group_size;
    std::vector<uint64_t> totals, quotas, rank_loads;
    std::vector<uint32_t> ends, block_counts, blocks_done = {0};
    /// Of nearest, for one rank.
    std::vector<uint32_t> shares;

    explicit layer_memory(const layer_placement &layer)
        : totals(layer.num_experts, 77), rank_loads(layer.num_ranks, 77), ends(layer.experts.size(), 77),
          block_counts(size_t(EPLB_LEVEL_BLOCKS) * layer.num_experts, 77) {
        struct group {
            uint32_t rank, first, size;
        };
        std::vector<std::pair<uint32_t, std::vector<group>>> replicated;
        for (uint32_t expert = 0; expert < layer.num_experts; expert++) {
            const auto mine = layer.slots_of(expert);
            start.push_back(static_cast<int32_t>(slots.size()));
            count.push_back(static_cast<int32_t>(mine.size()));
            std::vector<group> groups;
            for (const int64_t slot : mine) {
                const uint32_t rank = layer.rank_of(slot);
                if (groups.empty() || groups.back().rank != rank) {
                    groups.push_back({rank, static_cast<uint32_t>(slots.size()), 0});
                }
                groups.back().size++;
                slots.push_back(static_cast<int32_t>(slot));
            }
            if (mine.size() > 1) {
                replicated.emplace_back(expert, groups);
            }
        }
        std::stable_sort(replicated.begin(), replicated.end(),
                         [](const auto &a, const auto &b) { return a.second.size() < b.second.size(); });
        for (const auto &[expert, groups] : replicated) {
            experts.push_back(expert);
            for (const group &group : groups) {
                group_rank.push_back(group.rank);
                group_first.push_back(group.first);
                group_size.push_back(group.size);
            }
            group_start.push_back(static_cast<uint32_t>(group_rank.size()));
        }
        quotas.assign(group_rank.size(), 77);
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
        args.replica_count = count.data();
        args.replica_start = start.data();
        args.replica_slots = slots.data();
        args.shares = shares.data();
        args.num_experts = layer.num_experts;
        args.num_slots = static_cast<uint32_t>(layer.experts.size());
        args.level = {experts.data(),
                      group_start.data(),
                      group_rank.data(),
                      group_first.data(),
                      group_size.data(),
                      totals.data(),
                      quotas.data(),
                      rank_loads.data(),
                      ends.data(),
                      block_counts.data(),
                      blocks_done.data(),
                      nullptr,
                      0,
                      static_cast<uint32_t>(experts.size()),
                      static_cast<uint32_t>(group_rank.size()),
                      layer.num_ranks,
                      args.num_slots / layer.num_ranks,
                      0,
                      EPLB_ROUTE_BLOCK,
                      0};
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
    // Valgrind looks at every step of every fiber.
    const uint64_t seeds = emulation::under_valgrind() ? 4 : 24;
    for (uint64_t seed = 0; seed < seeds; seed++) {
        std::mt19937_64 random(seed);
        const auto layer = a_placement(random);
        layer_memory memory(layer);
        // What nearest adds to a block's number is the rank; three ranks share a node.
        const uint32_t rank = static_cast<uint32_t>(random() % layer.num_ranks);
        std::vector<int32_t> nodes;
        for (uint32_t r = 0; r < layer.num_ranks; r++) {
            nodes.push_back(static_cast<int32_t>(r / 3));
        }
        memory.share(layer, rank, nodes);
        const uint32_t tokens = 1 + static_cast<uint32_t>(random() % 1000);
        std::vector<int32_t> ids(tokens * choices);
        for (int32_t &id : ids) {
            id = static_cast<int32_t>(random() % (layer.num_experts + 2)) - 1;
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
        // Slots are counted: in bins, or in cells where the seed says that there is no room.
        const uint32_t row = 1;
        std::vector<uint32_t> cells(2 * layer.experts.size());
        eplb_count_totals totals = {};
        args.row = &row;
        args.cells = cells.data();
        args.row_stride = layer.experts.size();
        args.totals = &totals;
        args.num_cells = args.num_slots;
        args.counts_slots = 1;
        args.has_bins = seed % 3 != 0;
        const uint32_t bins = args.has_bins != 0 ? args.num_cells + 1 : 0;
        // Positions by rows, or by a scan.
        args.rows_at = seed % 4 == 3 ? 0xffffffff : bins;
        const size_t shared = (bins + (seed % 4 == 3 ? 0 : 4 * layer.num_experts)) * sizeof(uint32_t);
        const auto blocks_of = [&](size_t per_block) {
            return static_cast<unsigned>((ids.size() + per_block - 1) / per_block);
        };
        const auto launch = [&](void (*kernel)(eplb_route_arguments), unsigned blocks) {
            emulation::options options;
            options.seed = seed;
            emulation::launch(
                {blocks}, {EPLB_ROUTE_THREADS}, shared, [&] { kernel(args); }, options);
        };
        const auto expect = [&](const std::vector<int32_t> &expected) {
            EXPECT_EQ(slots, expected) << "seed " << seed;
            std::vector<uint32_t> counts(2 * layer.experts.size());
            for (size_t i = 0; i < valid_ids; i++) {
                if (expected[i] < layer.num_slots()) {
                    counts[layer.experts.size() + static_cast<size_t>(expected[i])]++;
                }
            }
            EXPECT_EQ(cells, counts) << "seed " << seed;
            EXPECT_EQ(totals.ids, valid_ids);
            EXPECT_EQ(totals.padding, ids.size() - valid_ids);
            std::fill(cells.begin(), cells.end(), 0);
            std::fill(slots.begin(), slots.end(), 77);
            totals = {};
        };
        launch(eplb_route_round_robin_i32, blocks_of(EPLB_ROUTE_BLOCK));
        expect(round_robin(layer, ids, valid_ids, rank));
        launch(eplb_route_nearest_i32, blocks_of(EPLB_ROUTE_BLOCK));
        expect(nearest(layer, ids, valid_ids, rank, nodes));
        launch(eplb_route_token_hash_i32, blocks_of(EPLB_ROUTE_THREADS * 4));
        expect(token_hash(layer, ids, valid_ids, choices));
        // A second time, since workspaces are used again.
        for (int time = 0; time < 2; time++) {
            const unsigned blocks = blocks_of(EPLB_ROUTE_BLOCK);
            for (args.level.phase = 0; args.level.phase < (blocks > 1 ? 2u : 1u); args.level.phase++) {
                launch(eplb_route_least_loaded_i32, blocks);
            }
            expect(least_loaded(layer, ids, valid_ids));
            EXPECT_EQ(memory.blocks_done[0], 0u);
        }
    }
}
