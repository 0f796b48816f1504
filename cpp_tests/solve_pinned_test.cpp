// Pinned slots, and slots that generate leaves empty.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include <eplb_tools.hpp>

#include "files.h"

namespace {

constexpr int32_t free_slot = -1;

eplb::placement_config sizes() {
    eplb::placement_config config;
    config.num_experts = 4;
    config.num_ranks = 2;
    config.num_slots = 8;
    return config;
}

const std::vector<int32_t> layers = {3, 5};
/// [2 layers][1 sample][4 experts]
const std::vector<double> loads = {8, 4, 2, 1, 1, 2, 4, 8};

std::vector<int32_t> list(eplb::view<std::int32_t> values) { return {values.begin(), values.end()}; }

std::string message_of(const eplb_placement_config &config, const eplb_solve_options &options,
                       eplb_status expected = EPLB_STATUS_INVALID_ARGUMENT) {
    eplb_placement *made = nullptr;
    EXPECT_EQ(eplb_solve(&config, &options, layers.data(), 2, loads.data(), 1, &made), expected);
    EXPECT_EQ(made, nullptr);
    return eplb_last_error_message();
}

/// Free slots that end where the next page cannot be read.
struct guarded_slots {
    explicit guarded_slots(size_t count)
        : page(static_cast<size_t>(sysconf(_SC_PAGESIZE))),
          readable((count * sizeof(int32_t) + page - 1) / page * page),
          memory(static_cast<char *>(
              mmap(nullptr, readable + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
        mprotect(memory + readable, page, PROT_NONE);
        data = reinterpret_cast<int32_t *>(memory + readable) - count;
        std::fill_n(data, count, free_slot);
    }
    guarded_slots(const guarded_slots &) = delete;
    guarded_slots &operator=(const guarded_slots &) = delete;
    ~guarded_slots() { munmap(memory, readable + page); }

    size_t page, readable;
    char *memory;
    int32_t *data;
};

/// A dump of the repository, with 64 experts in 26 layers, and the files that a test writes.
struct generated {
    temporary_directory directory;
    eplb::generate_config config;

    explicit generated(const std::string &name) {
        config.expert_statistic_path = data("dumps/dsv2lite-translation");
        config.output_path = directory / name;
        config.num_ranks = 8;
        config.num_slots = 88;
        config.solve.effort = 5;
    }
    std::string message() const {
        try {
            eplb::generate(config);
        } catch (const eplb::error &error) {
            return error.what();
        }
        return "accepted";
    }
};

} // namespace

TEST(SolvePinned, PinnedSlotsHoldTheirExperts) {
    eplb::solve_options options;
    options.pinned_experts = {free_slot, 3, free_slot, free_slot, free_slot, free_slot, free_slot, 3};
    const auto same = eplb::solve(sizes(), layers, loads, 1, options);
    for (const int32_t layer : layers) {
        EXPECT_EQ(same.layer_experts(layer)[1], 3);
        EXPECT_EQ(same.layer_experts(layer)[7], 3);
    }
    options.num_pinned_layers = 2;
    options.pinned_experts.insert(options.pinned_experts.end(),
                                  {0, free_slot, free_slot, free_slot, 0, 0, free_slot, free_slot});
    const auto different = eplb::solve(sizes(), layers, loads, 1, options);
    EXPECT_EQ(different.layer_experts(3)[1], 3);
    const auto second = list(different.layer_experts(5));
    EXPECT_EQ(second[0], 0);
    EXPECT_EQ(second[4], 0);
    EXPECT_EQ(second[5], 0);
    options.pinned_experts.pop_back();
    EXPECT_THROW(eplb::solve(sizes(), layers, loads, 1, options), eplb::error);
}

TEST(SolvePinned, BadPinsHaveTheirOwnMessage) {
    const eplb_placement_config config = sizes().c();
    std::vector<int32_t> pinned(8, free_slot);
    eplb_solve_options options = EPLB_SOLVE_OPTIONS_INIT;
    options.pinned_experts = pinned.data();
    EXPECT_EQ(message_of(config, options),
              "options->num_pinned_layers is 0; set it to 1 for all layers, or to num_layers");
    options.num_pinned_layers = 1;
    pinned[2] = 4;
    EXPECT_EQ(message_of(config, options),
              "pinned_experts[0][2] is 4; experts are 0 to 3, and -1 leaves the slot free");
    pinned[2] = -2;
    EXPECT_EQ(message_of(config, options),
              "pinned_experts[0][2] is -2; experts are 0 to 3, and -1 leaves the slot free");
    pinned.assign(8, 0);
    pinned[0] = free_slot;
    EXPECT_EQ(
        message_of(config, options),
        "pinned_experts[0] leaves 1 of 8 slots free, too few for the 3 experts that it does not pin; pin "
        "fewer slots or add slots");
    pinned.assign(24, free_slot);
    options.pinned_experts = pinned.data();
    options.num_pinned_layers = 3;
    EXPECT_EQ(message_of(config, options),
              "options->num_pinned_layers is 3; 1 or 2, the number of layers, expected");
    options.num_pinned_layers = 1;
    options.policy = EPLB_POLICY_TRTLLM;
    EXPECT_EQ(message_of(config, options),
              "policy trtllm takes no pinned slots; remove pinned_experts or use policy search");
    options.pinned_experts = nullptr;
    EXPECT_EQ(message_of(config, options), "options->pinned_experts is NULL, but num_pinned_layers is 1");

    auto unequal = sizes();
    unequal.rank_num_slots = {4, 3};
    const eplb_placement_config ranks = unequal.c();
    options = EPLB_SOLVE_OPTIONS_INIT;
    pinned.assign(8, free_slot);
    pinned[7] = 0;
    options.pinned_experts = pinned.data();
    options.num_pinned_layers = 1;
    EXPECT_EQ(message_of(ranks, options),
              "pinned_experts[0][7] is 0, but the slot is empty: rank 1 has 3 slots");
}

TEST(SolvePinned, RowsOfAnotherNumberOfLayersAreNotRead) {
    // The array ends where memory does.
    guarded_slots pinned(8);
    eplb_solve_options options = EPLB_SOLVE_OPTIONS_INIT;
    options.pinned_experts = pinned.data;
    const eplb_placement_config config = sizes().c();
    for (const size_t rows : {size_t{24}, size_t{3}, size_t{1} << 40, SIZE_MAX}) {
        options.num_pinned_layers = rows;
        EXPECT_EQ(message_of(config, options), "options->num_pinned_layers is " + std::to_string(rows) +
                                                   "; 1 or 2, the number of layers, expected");
    }
    options.num_pinned_layers = 1;
    eplb_placement *made = nullptr;
    EXPECT_EQ(eplb_solve(&config, &options, layers.data(), 2, loads.data(), 1, &made), EPLB_STATUS_OK);
    eplb_placement_destroy(made);

    guarded_slots two_layers(16);
    options.pinned_experts = two_layers.data;
    options.num_pinned_layers = 2;
    EXPECT_EQ(eplb_solve(&config, &options, layers.data(), 2, loads.data(), 1, &made), EPLB_STATUS_OK);
    eplb_placement_destroy(made);
}

TEST(SolvePinned, GenerateReadsRowsOfTheDumpsNumberOfLayers) {
    generated made("placement.eplb.yaml");
    const eplb_generate_config config = made.config.c();
    eplb_solve_options options = EPLB_SOLVE_OPTIONS_INIT;
    options.effort = 5;
    guarded_slots one_row(88);
    options.pinned_experts = one_row.data;
    for (const size_t rows : {size_t{27}, size_t{2}, SIZE_MAX}) {
        options.num_pinned_layers = rows;
        EXPECT_EQ(eplb_generate(&config, nullptr, &options, nullptr), EPLB_STATUS_INVALID_ARGUMENT);
        EXPECT_EQ(eplb_last_error_message(), "options->num_pinned_layers is " + std::to_string(rows) +
                                                 "; 1 or 26, the number of layers, expected");
    }
    options.num_pinned_layers = 1;
    EXPECT_EQ(eplb_generate(&config, nullptr, &options, nullptr), EPLB_STATUS_OK)
        << eplb_last_error_message();
    guarded_slots row_of_each_layer(26 * 88);
    options.pinned_experts = row_of_each_layer.data;
    options.num_pinned_layers = 26;
    EXPECT_EQ(eplb_generate(&config, nullptr, &options, nullptr), EPLB_STATUS_OK)
        << eplb_last_error_message();
    options.pinned_experts = nullptr;
    EXPECT_EQ(eplb_generate(&config, nullptr, &options, nullptr), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(), "options->pinned_experts is NULL, but num_pinned_layers is 26");
}

TEST(SolvePinned, GenerateLeavesSlotsEmptyAndKeepsPins) {
    generated made("placement.eplb.yaml");
    made.config.rank_num_slots = {11, 11, 10, 10, 10, 10, 10, 10};
    made.config.solve.pinned_experts.assign(88, free_slot);
    for (size_t rank = 0; rank < 8; rank++) {
        made.config.solve.pinned_experts[rank * 11 + 2] = 5;
    }
    const eplb_generate_report report = eplb::generate(made.config);
    EXPECT_EQ(report.num_slots, 88u);
    const auto placement = eplb::placement::load(made.config.output_path);
    EXPECT_EQ(placement.hash(), report.hash);
    const eplb_placement_info info = placement.info();
    EXPECT_EQ(info.num_ranks, 8u) << "the file has it";
    EXPECT_EQ(info.num_empty_slots, 6u * info.num_layers);
    for (size_t i = 0; i < info.num_layers; i++) {
        const int32_t layer = info.layer_ids[i];
        EXPECT_EQ(placement.rank_experts(layer, 0).size(), 11u);
        EXPECT_EQ(placement.rank_experts(layer, 7).size(), 10u);
        EXPECT_EQ(placement.layer_experts(layer)[87], -1);
        for (uint32_t rank = 0; rank < 8; rank++) {
            EXPECT_EQ(placement.rank_experts(layer, rank)[2], 5);
        }
    }
    // Saved again it is the same, byte for byte, and another name is refused with the way out.
    placement.save(made.directory / "again.eplb.yaml");
    EXPECT_EQ(read_file(made.directory / "again.eplb.yaml"), read_file(made.config.output_path));
    try {
        placement.save(made.directory / "config.yaml");
        FAIL();
    } catch (const eplb::error &error) {
        EXPECT_EQ(error.status(), EPLB_STATUS_INVALID_PLACEMENT);
        EXPECT_NE(std::string(error.what()).find("save the placement as *.eplb.yaml"), std::string::npos);
    }
}

TEST(SolvePinned, EqualRanksMayAllLackTheirLastSlot) {
    for (const eplb_policy policy : {EPLB_POLICY_TRTLLM, EPLB_POLICY_SEARCH}) {
        generated made("placement.eplb.yaml");
        made.config.solve.policy = policy;
        made.config.rank_num_slots.assign(8, 10);
        eplb::generate(made.config);
        const auto reserved = eplb::placement::load(made.config.output_path);
        made.config.rank_num_slots.clear();
        made.config.num_slots = 80;
        eplb::generate(made.config);
        const auto plain = eplb::placement::load(made.config.output_path);
        for (uint32_t rank = 0; rank < 8; rank++) {
            EXPECT_EQ(list(reserved.rank_experts(7, rank)), list(plain.rank_experts(7, rank))) << policy;
        }
    }
}

TEST(SolvePinned, GenerateNamesWhatIsMissing) {
    generated made("moe_load_balancer.yaml");
    made.config.rank_num_slots.assign(8, 10);
    EXPECT_NE(
        made.message().find("TensorRT-LLM's configuration file cannot hold empty slots; name the output "
                            "*.eplb.yaml"),
        std::string::npos)
        << made.message();
    EXPECT_FALSE(std::filesystem::exists(made.config.output_path));
    made.config.rank_num_slots.assign(8, 11);
    EXPECT_EQ(made.message(), "accepted") << "no slot is empty";

    eplb_generate_config config = made.config.c();
    config.num_ranks = 0;
    EXPECT_EQ(eplb_generate(&config, nullptr, nullptr, nullptr), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(),
                 "config->rank_num_slots has num_ranks values; set config->num_ranks too");
    config = made.config.c();
    config.num_slots = 0;
    const std::vector<int32_t> pinned(88, free_slot);
    eplb_solve_options options = EPLB_SOLVE_OPTIONS_INIT;
    options.pinned_experts = pinned.data();
    options.num_pinned_layers = 1;
    EXPECT_EQ(eplb_generate(&config, nullptr, &options, nullptr), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(),
                 "solve_options->pinned_experts has num_slots columns; set config->num_slots too");
}
