// eplb_tools.hpp compiled with -fno-exceptions: every call that can fail returns an eplb::result.
#include <cstdio>
#include <eplb_tools.hpp>

#include "files.h"

#ifndef EPLB_NO_EXCEPTIONS
#error "-fno-exceptions must imply EPLB_NO_EXCEPTIONS"
#endif

static int failures = 0;

#define CHECK(condition)                                                                                     \
    if (!(condition)) {                                                                                      \
        std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition);                                          \
        failures++;                                                                                          \
    }

int main() {
    temporary_directory dir;
    eplb::generate_config config;
    config.expert_statistic_path = data("dumps/dsv2lite-translation");
    config.output_path = dir / "config.yaml";
    config.num_ranks = 8;
    config.num_slots = 72;
    config.solve.policy = EPLB_POLICY_TRTLLM;

    auto cancelled = eplb::generate(config, [](eplb_phase, uint64_t, uint64_t) { return false; });
    CHECK(!cancelled && cancelled.status() == EPLB_STATUS_CANCELLED);
    CHECK(cancelled.message() == "cancelled by the progress callback");

    auto report = eplb::generate(config, [](eplb_phase, uint64_t, uint64_t) { return true; });
    CHECK(report && report->num_layers == 26);
    CHECK(read_file(config.output_path) == read_file(data("expected/dsv2lite-translation.ep8.slots72.yaml")));

    eplb::placement_load_options options;
    CHECK(eplb::placement::load(config.output_path, options).status() == EPLB_STATUS_INVALID_ARGUMENT);
    options.num_ranks = 8;
    auto placement = eplb::placement::load(config.output_path, options);
    CHECK(placement && *placement->hash() == report->hash);
    CHECK(placement->rank_experts(1, 0)->size() == 9);
    CHECK(placement->rank_experts(1, 8).message() == "rank 8 is not one of 8 ranks");
    CHECK(placement->save(dir / "again.yaml"));
    CHECK(!placement->save(dir / "no/such/again.yaml"));

    auto stats = eplb::stats::load(data("dumps/dsv2lite-translation"));
    CHECK(stats && stats->info()->num_experts == 64);
    CHECK(stats->layer_loads(1)->size() == 64);
    CHECK(stats->layer_loads(1, 31)->size() == 31 * 64);
    CHECK(stats->layer_loads(1, 32).status() == EPLB_STATUS_INVALID_ARGUMENT);
    CHECK(stats->layer_loads(1, SIZE_MAX).status() == EPLB_STATUS_INVALID_ARGUMENT);
    auto evaluation = eplb::evaluate(*placement, 1, *stats->layer_loads(1, 31), 31);
    CHECK(evaluation && evaluation->max_load > evaluation->mean_load);
    CHECK(!eplb::evaluate(*placement, 1, std::vector<double>(65, 1.0)));
    auto metrics = eplb::metrics::create();
    CHECK(metrics && metrics->add(*placement, {{"rank", "0"}}));
    CHECK(metrics->add(*placement, {{"rank", "0"}}).status() == EPLB_STATUS_INVALID_ARGUMENT);
    CHECK(metrics->text()->find("eplb_placement_slots{rank=\"0\"} 72\n") != std::string::npos);
    CHECK(eplb::suggest_num_slots(256, 36, 290)->second == 324);
    CHECK(!eplb::suggest_num_slots(0, 36, 290));
    return failures == 0 ? 0 : 1;
}
