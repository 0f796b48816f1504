// eplb_placement: checks, file, hash, evaluation.
#include <gtest/gtest.h>

#include <cmath>
#include <eplb_tools.hpp>

#include <fcntl.h>
#include <unistd.h>

#include "files.h"

namespace {

// 4 experts on 2 ranks x 3 slots, layers 7 and 3. Rank 0 holds expert 3 twice in layer 3.
const std::vector<int32_t> layers = {7, 3};
const std::vector<int32_t> slots = {0, 1, 2, 3, 0, 1, 3, 3, 2, 1, 0, 0};

eplb_placement_config sizes() {
    eplb_placement_config config = EPLB_PLACEMENT_CONFIG_INIT;
    config.num_experts = 4;
    config.num_ranks = 2;
    config.num_slots = 6;
    return config;
}

eplb::placement_config cpp_sizes() {
    eplb::placement_config config;
    config.num_experts = 4;
    config.num_ranks = 2;
    config.num_slots = 6;
    return config;
}

std::string refused(const eplb_placement_config &config, const std::vector<int32_t> &slot_experts,
                    eplb_status expected) {
    eplb_placement *placement = nullptr;
    EXPECT_EQ(eplb_placement_create(&config, layers.data(), layers.size(), slot_experts.data(), &placement),
              expected);
    EXPECT_EQ(placement, nullptr);
    return eplb_last_error_message();
}

template <class T> std::vector<T> list(eplb::view<T> values) { return {values.begin(), values.end()}; }

} // namespace

TEST(Placement, LayersAreSortedAndSlotsBelongToRanksInOrder) {
    const auto placement = eplb::placement::create(cpp_sizes(), layers, slots);
    EXPECT_EQ(list(placement.layer_ids()), (std::vector<int32_t>{3, 7}));
    EXPECT_EQ(list(placement.layer_experts(7)), (std::vector<int32_t>{0, 1, 2, 3, 0, 1}));
    EXPECT_EQ(list(placement.rank_experts(3, 1)), (std::vector<int32_t>{1, 0, 0}));
    const eplb_placement_info info = placement.info();
    EXPECT_EQ(info.num_experts, 4u);
    EXPECT_EQ(info.num_ranks, 2u);
    EXPECT_EQ(info.num_slots, 6u);
    EXPECT_EQ(info.slots_per_rank, 3u);
    EXPECT_EQ(info.max_replicas, 2u);
    EXPECT_EQ(info.num_duplicates, 2u);
}

TEST(Placement, ValidateListsDuplicatesWithTheirPlace) {
    const auto placement = eplb::placement::create(cpp_sizes(), layers, slots);
    const auto issues = placement.issues();
    ASSERT_EQ(issues.size(), 2u);
    const auto place = [](const eplb_placement_issue &issue) {
        return std::vector<int32_t>{issue.kind, issue.layer,  issue.rank,
                                    issue.slot, issue.expert, issue.other_slot};
    };
    EXPECT_EQ(place(issues[0]), (std::vector<int32_t>{EPLB_ISSUE_KIND_DUPLICATE_ON_RANK, 3, 0, 1, 3, 0}));
    EXPECT_EQ(place(issues[1]), (std::vector<int32_t>{EPLB_ISSUE_KIND_DUPLICATE_ON_RANK, 3, 1, 5, 0, 4}));

    // Room for one of two.
    eplb_placement_issue one = {};
    size_t found = 0;
    EXPECT_EQ(eplb_placement_validate(placement.get(), &one, 1, &found), EPLB_STATUS_OK);
    EXPECT_EQ(found, 2u);
    EXPECT_EQ(one.slot, 1);
}

TEST(Placement, UnservablePlacementIsRefusedByItsPlace) {
    auto wrong = slots;
    wrong[4] = 4;
    EXPECT_EQ(refused(sizes(), wrong, EPLB_STATUS_INVALID_PLACEMENT),
              "layer 7, rank 1, slot 4: expert 4 does not exist; experts are 0 to 3");
    wrong[4] = -1;
    EXPECT_EQ(refused(sizes(), wrong, EPLB_STATUS_INVALID_PLACEMENT),
              "layer 7, rank 1, slot 4 is empty (-1); set allow_empty_slots, or give it one of the "
              "experts 0 to 3");
    wrong = slots;
    wrong[2] = 0;
    EXPECT_EQ(refused(sizes(), wrong, EPLB_STATUS_INVALID_PLACEMENT),
              "layer 7: expert 2 has no slot; every expert needs one");
    auto config = sizes();
    config.num_slots = 5;
    EXPECT_EQ(
        refused(config, slots, EPLB_STATUS_INVALID_SHAPE),
        "5 slots cannot be split evenly over 2 ranks; for 4 experts the nearest valid numbers of slots are "
        "4 and 6");
    config.num_slots = UINT32_MAX;
    refused(config, slots, EPLB_STATUS_INVALID_SHAPE);
    config = sizes();
    config.struct_size += 8; // A field of a newer header, which is set.
    struct {
        eplb_placement_config config;
        uint64_t beyond;
    } newer = {config, 1};
    EXPECT_EQ(refused(newer.config, slots, EPLB_STATUS_INVALID_ARGUMENT),
              "config sets fields that eplb 0.1.0 does not know; the header is newer than the library");
}

TEST(Placement, SaveAndLoadPreserveThePlacement) {
    temporary_directory dir;
    auto config = cpp_sizes();
    config.layer_updates_per_iter = 2;
    const auto placement = eplb::placement::create(config, layers, slots);
    const std::string path = dir / "moe_load_balancer.yaml";
    placement.save(path);
    EXPECT_EQ(read_file(path), "initial_global_assignments:\n"
                               "  3: [3, 3, 2, 1, 0, 0]\n"
                               "  7: [0, 1, 2, 3, 0, 1]\n"
                               "layer_updates_per_iter: 2\n"
                               "num_slots: 6\n");

    eplb::placement_load_options options;
    options.num_ranks = 2;
    const auto loaded = eplb::placement::load(path, options);
    EXPECT_EQ(loaded.hash(), placement.hash());
    EXPECT_EQ(loaded.info().layer_updates_per_iter, 2u);

    options.num_ranks = 3;
    EXPECT_NE(eplb::placement::load(path, options).hash(), placement.hash())
        << "the hash includes the number of ranks";
}

TEST(Placement, SaveWritesToADescriptorAndAPipeAndADashIsAFile) {
    temporary_directory dir;
    const auto placement = eplb::placement::create(cpp_sizes(), layers, slots);
    placement.save(dir / "config.yaml");
    const std::string yaml = read_file(dir / "config.yaml");

    // The redirected standard output of a host.
    const int log = open((dir / "log").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    ASSERT_EQ(write(log, "before\n", 7), 7);
    placement.save("/dev/fd/" + std::to_string(log));
    ASSERT_EQ(write(log, "after\n", 6), 6);
    close(log);
    EXPECT_EQ(read_file(dir / "log"), "before\n" + yaml + "after\n");

    // A reader that leaves early is an error, not the death of the host, which has not touched the signal.
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    close(ends[0]);
    const std::string path = "/dev/fd/" + std::to_string(ends[1]);
    EXPECT_EQ(eplb_placement_save(placement.get(), path.c_str()), EPLB_STATUS_WRITE_FAILED);
    EXPECT_EQ(eplb_last_error_message(), "cannot write " + path + ": Broken pipe (os error 32)");
    close(ends[1]);

    const auto before = std::filesystem::current_path();
    std::filesystem::current_path(dir / "");
    placement.save("-");
    std::filesystem::current_path(before);
    EXPECT_EQ(read_file(dir / "-"), yaml);
}

TEST(Placement, LoadRefusesAFileForAnotherModel) {
    const std::string path = data("expected/dsv2lite-translation.ep8.slots72.yaml");
    const auto load = [&](const eplb_placement_load_options &options) {
        eplb_placement *placement = nullptr;
        const eplb_status status = eplb_placement_load(path.c_str(), &options, &placement);
        EXPECT_EQ(placement != nullptr, status == EPLB_STATUS_OK);
        eplb_placement_destroy(placement);
        return status;
    };
    const int32_t needed[] = {1, 26, 27};
    eplb_placement_load_options options = EPLB_PLACEMENT_LOAD_OPTIONS_INIT;
    EXPECT_EQ(load(options), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(eplb_last_error_message(), path + ": the file has no ep_size; set num_ranks (--ep_size)");
    options.num_ranks = 8;
    options.num_experts = 64;
    options.layer_ids = needed;
    options.num_layers = 2;
    EXPECT_EQ(load(options), EPLB_STATUS_OK);
    options.num_layers = 3;
    EXPECT_EQ(load(options), EPLB_STATUS_INVALID_PLACEMENT);
    EXPECT_EQ(eplb_last_error_message(), path + ": layer 27 is missing from initial_global_assignments");
    options.num_layers = 0;
    options.num_experts = 63;
    EXPECT_EQ(load(options), EPLB_STATUS_INVALID_PLACEMENT);
    options.num_experts = 65;
    EXPECT_EQ(load(options), EPLB_STATUS_INVALID_PLACEMENT);
    EXPECT_EQ(eplb_last_error_message(), path + ": layer 1: expert 64 has no slot; every expert needs one");
    options.num_experts = 64;
    options.num_ranks = 7;
    EXPECT_EQ(load(options), EPLB_STATUS_INVALID_SHAPE);
}

TEST(Placement, EvaluationSplitsExpertsEvenlyAndAveragesSamples) {
    // Layer 7: rank 0 holds 0 1 2, rank 1 holds 3 0 1. Loads 4 2 1 6: ranks 2 + 1 + 1 and 6 + 2 + 1,
    // mean 6.5. Loads 2 2 3 2: ranks 1 + 1 + 3 and 2 + 1 + 1, mean 4.5.
    const auto placement = eplb::placement::create(cpp_sizes(), layers, slots);
    const auto one = eplb::evaluate(placement, 7, std::vector<double>{4, 2, 1, 6});
    EXPECT_DOUBLE_EQ(one.mean_load, 6.5);
    EXPECT_DOUBLE_EQ(one.max_load, 9.0);
    EXPECT_DOUBLE_EQ(one.imbalance_ratio, 2.5 / 6.5);
    EXPECT_DOUBLE_EQ(one.balancedness, 6.5 / 9.0);
    EXPECT_EQ(one.worst_rank, 1u);
    EXPECT_EQ(one.max_replicas, 2u);
    EXPECT_EQ(one.num_duplicates, 0u);
    const auto two = eplb::evaluate(placement, 7, std::vector<double>{4, 2, 1, 6, 2, 2, 3, 2}, 2);
    EXPECT_DOUBLE_EQ(two.imbalance_ratio, (2.5 / 6.5 + 0.5 / 4.5) / 2);
    EXPECT_EQ(eplb::evaluate(placement, 3, std::vector<double>{1, 1, 1, 1}).num_duplicates, 2u);
    EXPECT_TRUE(std::isnan(eplb::evaluate(placement, 7, std::vector<double>{0, 0, 0, 0}).imbalance_ratio));
    try {
        eplb::evaluate(placement, 7, std::vector<double>{1, 1, NAN, 1});
        FAIL();
    } catch (const eplb::error &e) {
        EXPECT_EQ(e.status(), EPLB_STATUS_INVALID_LOADS);
        EXPECT_STREQ(e.what(), "layer 7, sample 0, expert 2: load NaN must be finite and not negative");
    }
}

TEST(Placement, EvaluationBoundsAnyPlacementAndAnySplit) {
    // Layer 7: rank 0 holds 0 1 2, rank 1 holds 3 0 1. Loads 4 2 1 6: the ranks carry 4 and 9. The mean, 6.5,
    // is the bound, and the best split: rank 0 takes 5.5 of the 6 of experts 0 and 1 to its 1, rank 1 the
    // other 0.5 to its 6.
    const auto placement = eplb::placement::create(cpp_sizes(), layers, slots);
    const auto one = eplb::evaluate(placement, 7, std::vector<double>{4, 2, 1, 6});
    EXPECT_DOUBLE_EQ(one.lower_bound, 6.5);
    EXPECT_DOUBLE_EQ(one.gap, 2.5 / 6.5);
    EXPECT_DOUBLE_EQ(one.best_split_max_load, 6.5);
    EXPECT_DOUBLE_EQ(one.best_split_balancedness, 1.0);
    // Loads 1 1 1 9: the ranks carry 2 and 10. With both spares expert 3 has three replicas of 3, of which
    // two share a rank: 6 is the mean and the bound. The best split leaves 9 on rank 1.
    const auto other = eplb::evaluate(placement, 7, std::vector<double>{1, 1, 1, 9});
    EXPECT_DOUBLE_EQ(other.lower_bound, 6.0);
    EXPECT_DOUBLE_EQ(other.gap, 4.0 / 6.0);
    EXPECT_DOUBLE_EQ(other.best_split_max_load, 9.0);
    EXPECT_DOUBLE_EQ(other.best_split_balancedness, 6.0 / 9.0);
    const auto both = eplb::evaluate(placement, 7, std::vector<double>{4, 2, 1, 6, 1, 1, 1, 9}, 2);
    EXPECT_DOUBLE_EQ(both.lower_bound, 6.25);
    EXPECT_DOUBLE_EQ(both.gap, (2.5 / 6.5 + 4.0 / 6.0) / 2);
    EXPECT_DOUBLE_EQ(both.best_split_max_load, 7.75);
    EXPECT_DOUBLE_EQ(both.best_split_balancedness, (1 + 6.0 / 9.0) / 2);

    // 4 slots for 4 experts on 2 ranks. Loads 9 2 2 2, mean 7.5: 9 shares its rank with 2, so no placement is
    // below 11.
    eplb::placement_config config;
    config.num_experts = 4;
    config.num_ranks = 2;
    const auto least =
        eplb::placement::create(config, std::vector<int32_t>{0}, std::vector<int32_t>{0, 1, 2, 3});
    const auto best = eplb::evaluate(least, 0, std::vector<double>{9, 2, 2, 2});
    EXPECT_DOUBLE_EQ(best.lower_bound, 11.0);
    EXPECT_NEAR(best.gap, 0, 1e-12);
    EXPECT_DOUBLE_EQ(best.best_split_max_load, 11.0);

    const auto idle = eplb::evaluate(placement, 7, std::vector<double>{4, 2, 1, 6, 0, 0, 0, 0}, 2);
    EXPECT_DOUBLE_EQ(idle.lower_bound, 3.25);
    EXPECT_DOUBLE_EQ(idle.best_split_max_load, 3.25);
    // Ratios leave out the sample without load.
    EXPECT_DOUBLE_EQ(idle.gap, 2.5 / 6.5);
    EXPECT_DOUBLE_EQ(idle.best_split_balancedness, 1.0);
    EXPECT_DOUBLE_EQ(idle.imbalance_ratio, 2.5 / 6.5);
    EXPECT_EQ(idle.num_idle_samples, 1u);
    const auto none = eplb::evaluate(placement, 7, std::vector<double>(8), 2);
    EXPECT_TRUE(std::isnan(none.gap) && std::isnan(none.best_split_balancedness));
    EXPECT_EQ(none.num_idle_samples, 2u);
}

TEST(Placement, NullAndUnknownNumbersAreRefused) {
    const auto placement = eplb::placement::create(cpp_sizes(), layers, slots);
    const auto config = sizes();
    eplb_placement *made = nullptr;
    eplb_placement_info info = EPLB_PLACEMENT_INFO_INIT;
    const int32_t *experts = nullptr;
    uint64_t hash = 0;
    size_t count = 0;
    const double loads[4] = {1, 1, 1, 1};
    eplb_placement_evaluation evaluation = EPLB_PLACEMENT_EVALUATION_INIT;
    for (const eplb_status status : {
             eplb_placement_create(nullptr, layers.data(), 2, slots.data(), &made),
             eplb_placement_create(&config, nullptr, 2, slots.data(), &made),
             eplb_placement_create(&config, layers.data(), 2, nullptr, &made),
             eplb_placement_create(&config, layers.data(), 2, slots.data(), nullptr),
             eplb_placement_create(&config, layers.data(), SIZE_MAX, slots.data(), &made),
             eplb_placement_load(nullptr, nullptr, &made),
             eplb_placement_load("x", nullptr, nullptr),
             eplb_placement_save(nullptr, "x"),
             eplb_placement_save(placement.get(), nullptr),
             eplb_placement_validate(nullptr, nullptr, 0, &count),
             eplb_placement_validate(placement.get(), nullptr, 1, &count),
             eplb_placement_validate(placement.get(), nullptr, 0, nullptr),
             eplb_placement_get_info(nullptr, &info),
             eplb_placement_get_info(placement.get(), nullptr),
             eplb_placement_layer_experts(placement.get(), 4, &experts, nullptr),
             eplb_placement_layer_experts(placement.get(), -3, &experts, nullptr),
             eplb_placement_layer_experts(placement.get(), 3, nullptr, nullptr),
             eplb_placement_rank_experts(nullptr, 3, 0, &experts, nullptr),
             eplb_placement_rank_experts(placement.get(), 3, 2, &experts, nullptr),
             eplb_placement_hash(placement.get(), nullptr),
             eplb_placement_hash(nullptr, &hash),
             eplb_placement_evaluate(placement.get(), 3, nullptr, 1, 4, nullptr, &evaluation),
             eplb_placement_evaluate(placement.get(), 3, loads, 1, 4, nullptr, nullptr),
             eplb_placement_evaluate(placement.get(), 3, loads, 0, 4, nullptr, &evaluation),
             eplb_placement_evaluate(placement.get(), 3, loads, SIZE_MAX, 4, nullptr, &evaluation),
             eplb_placement_evaluate(placement.get(), 3, loads, 1, 3, nullptr, &evaluation),
             eplb_placement_evaluate(nullptr, 3, loads, 1, 4, nullptr, &evaluation),
         }) {
        EXPECT_EQ(status, EPLB_STATUS_INVALID_ARGUMENT);
    }
    EXPECT_EQ(made, nullptr);
    EXPECT_EQ(eplb_placement_create(&config, layers.data(), 0, slots.data(), &made),
              EPLB_STATUS_INVALID_PLACEMENT);
    eplb_placement_destroy(nullptr);
}

TEST(Placement, DistinctExpertsListsEachExpertOfARankOnce) {
    eplb::placement_config config;
    config.num_experts = 3;
    config.num_ranks = 2;
    config.num_slots = 6;
    const std::vector<int32_t> layers = {4}, experts = {2, 0, 2, 1, 1, 1};
    const auto placement = eplb::placement::create(config, layers, experts);
    EXPECT_EQ(placement.distinct_experts(4, 0), (std::vector<int32_t>{0, 2}));
    EXPECT_EQ(placement.distinct_experts(4, 1), (std::vector<int32_t>{1}));
}

TEST(Placement, RanksMayHaveUnequalNumbersOfSlots) {
    // Ranks of 2, 1 and 3 slots: slots 0 1 - | 3 - - | 6 7 8.
    const std::vector<double> loads = {8, 4, 2, 2};
    eplb::placement_config config;
    config.num_experts = 4;
    config.num_ranks = 3;
    config.rank_num_slots = {2, 1, 3};
    const std::vector<int32_t> layer = {5};
    const auto solved = eplb::solve(config, layer, loads);
    EXPECT_EQ(solved.info().num_slots, 9u);
    EXPECT_EQ(solved.info().slots_per_rank, 3u);
    const auto experts = list(solved.layer_experts(5));
    for (const size_t lacking : {2, 4, 5}) {
        EXPECT_EQ(experts.at(lacking), -1);
    }
    EXPECT_EQ(solved.rank_experts(5, 0).size(), 2u);
    EXPECT_EQ(solved.rank_experts(5, 1).size(), 1u);
    EXPECT_EQ(solved.rank_experts(5, 2).size(), 3u);
    // 4 + 2, 4 and 4 + 2. A mean of 5.33 needs a part of a 4, so 6 is the best.
    EXPECT_EQ(eplb::evaluate(solved, 5, loads).max_load, 6);

    // Each rule routes an id to a slot that holds the expert.
    for (const eplb_rule rule :
         {EPLB_RULE_ROUND_ROBIN, EPLB_RULE_TOKEN_HASH, EPLB_RULE_NEAREST, EPLB_RULE_LEAST_LOADED}) {
        eplb::dispatch_config run;
        run.num_ranks = 3;
        run.experts_per_token = 1;
        run.layer_ids = layer;
        run.rule = rule;
        const auto dispatch = eplb::dispatch::create(solved, run);
        std::vector<int32_t> ids(120), routed(120);
        for (size_t i = 0; i < ids.size(); i++) {
            ids[i] = static_cast<int32_t>(i / 5 % 4);
        }
        dispatch.route(5, ids.data(), 120, nullptr, routed.data());
        for (size_t i = 0; i < ids.size(); i++) {
            ASSERT_LT(static_cast<size_t>(routed[i]), experts.size());
            EXPECT_EQ(experts[static_cast<size_t>(routed[i])], ids[i]) << rule;
        }
    }

    // Its arrays make the same placement, and no configuration file can hold it.
    EXPECT_EQ(eplb::placement::create(config, layer, experts).hash(), solved.hash());
    const temporary_directory dir;
    try {
        solved.save(dir / "config.yaml");
        FAIL();
    } catch (const eplb::error &error) {
        EXPECT_NE(std::string(error.what()).find("layer 5, rank 0, slot 2 is empty"), std::string::npos);
    }
    eplb::solve_options options;
    options.policy = EPLB_POLICY_TRTLLM;
    EXPECT_THROW(eplb::solve(config, layer, loads, 1, options), eplb::error);
    config.rank_num_slots = {};
    config.num_slots = 9;
    EXPECT_THROW(eplb::placement::create(config, layer, experts), eplb::error);
}

TEST(Placement, MissingLayersOptionFillsMissingLayers) {
    const temporary_directory dir;
    write_file(dir / "config.yaml", "initial_global_assignments:\n  3: [0, 1, 2, 2]\n  10: [2, 0, 1, 0]\n"
                                    "layer_updates_per_iter: 0\nnum_slots: 4\n");
    eplb::placement_load_options options;
    options.num_ranks = 2;
    options.layer_ids = {3, 10, 61};
    try {
        eplb::placement::load(dir / "config.yaml", options);
        ADD_FAILURE() << "accepted";
    } catch (const eplb::error &error) {
        EXPECT_EQ(error.status(), EPLB_STATUS_INVALID_PLACEMENT);
        EXPECT_NE(std::string(error.what()).find("layer 61 is missing"), std::string::npos) << error.what();
    }
    options.missing_layers = EPLB_MISSING_LAYERS_COPY_LAST;
    const auto copied = eplb::placement::load(dir / "config.yaml", options);
    EXPECT_EQ(copied.layer_experts(61)[0], 2);
    options.missing_layers = EPLB_MISSING_LAYERS_SEQUENTIAL;
    const auto sequential = eplb::placement::load(dir / "config.yaml", options);
    EXPECT_EQ(sequential.layer_experts(61)[3], 2);
    options.missing_layers = static_cast<eplb_missing_layers>(3);
    EXPECT_THROW(eplb::placement::load(dir / "config.yaml", options), eplb::error);
    options.missing_layers = EPLB_MISSING_LAYERS_SEQUENTIAL;
    options.num_slots = 6;
    EXPECT_THROW(eplb::placement::load(dir / "config.yaml", options), eplb::error);
}
