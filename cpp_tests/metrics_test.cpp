// eplb_metrics: compares the text, as a strict reader parses it, with the infos of the objects.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <eplb_tools.hpp>
#include <thread>

#include "exposition.h"
#include "files.h"

namespace {

/// A recorder of iterations 100 to 199, of layers 3 and 4 with 64 experts, 4 for each token.
eplb::recorder a_recorder(const std::string &path) {
    eplb::recorder_config config;
    config.path = path;
    config.iter_start = 100;
    config.iter_stop = 200;
    config.num_ranks = 1;
    config.num_experts = 64;
    config.experts_per_token = 4;
    config.layer_ids = {4, 3};
    return eplb::recorder::create(config);
}

/// 4 experts on 2 ranks x 3 slots. In layer 3 rank 0 holds expert 3 twice, and rank 1 expert 0.
eplb::placement a_placement() {
    eplb::placement_config config;
    config.num_experts = 4;
    config.num_ranks = 2;
    config.num_slots = 6;
    config.layer_updates_per_iter = 5;
    return eplb::placement::create(config, std::vector<int32_t>{7, 3},
                                   std::vector<int32_t>{0, 1, 2, 3, 0, 0, 3, 3, 2, 1, 0, 0});
}

eplb::dispatch a_dispatch(const eplb::placement &placement, eplb_rule rule = EPLB_RULE_DEFAULT) {
    eplb::dispatch_config config;
    config.num_ranks = 2;
    config.experts_per_token = 2;
    config.max_replicas = 3;
    config.rule = rule;
    return eplb::dispatch::create(placement, config);
}

template <class Object> exposition metrics_of(const Object &object) {
    auto metrics = eplb::metrics::create();
    metrics.add(object);
    return exposition(metrics.text());
}

std::string hex(uint64_t hash) {
    char text[17];
    std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(hash));
    return text;
}

/// The message of a call that is refused.
template <class Call> std::string refused(const Call &call) {
    try {
        call();
    } catch (const eplb::error &error) {
        EXPECT_EQ(error.status(), EPLB_STATUS_INVALID_ARGUMENT);
        return error.what();
    }
    ADD_FAILURE() << "accepted";
    return "";
}

} // namespace

TEST(Metrics, ReaderOfTheseTestsRefusesMalformedText) {
    const std::string metric = "# HELP a b\n# TYPE a gauge\n";
    EXPECT_EQ(exposition(metric + "a 1\n").at("a"), 1);
    EXPECT_EQ(
        exposition(metric + "a{b=\"c\\\\n\\\"\\n,}\",d=\"\"} -1\n").at("a", {{"b", "c\\n\"\n,}"}, {"d", ""}}),
        -1);
    for (const std::string &text : {
             metric + "a 1",
             metric,
             std::string("a 1\n"),
             std::string("# TYPE a gauge\na 1\n"),
             std::string("# HELP a b\na 1\n"),
             std::string("# HELP a b\n# TYPE a counter\na 1\n"),
             std::string("# HELP a_total b\n# TYPE a_total counter\na_total -1\n"),
             metric + "a 1\n" + metric + "a{b=\"c\"} 1\n",
             metric + "a 1\na 1\n",
             metric + "a one\n",
             metric + "a  1\n",
             metric + "a{} 1\n",
             metric + "a{b=\"c\" 1\n",
             metric + "a{b=\"c\"d=\"e\"} 1\n",
             metric + "a{b=\"\\t\"} 1\n",
             metric + "a{b=\"c\",b=\"d\"} 1\n",
             metric + "a{1=\"c\"} 1\n",
             metric + "a 1\n# HELP c d\n# TYPE c gauge\nc 1\na{b=\"c\"} 1\n",
             metric + "a 1\n\r\n",
         }) {
        EXPECT_THROW(exposition{text}, std::runtime_error) << text;
    }
}

TEST(Metrics, RecorderMetricsEqualItsInfo) {
    temporary_directory dir;
    auto recorder = a_recorder(dir / "dump");
    // 3 tokens, 2 of them valid; one id of those names no expert.
    const int32_t ids[12] = {0, 1, 2, 64, 4, 5, 6, 7, 0, 0, 0, 0}, num_valid = 2;
    recorder.register_buffer(3, ids, 3, &num_valid);
    EXPECT_EQ(metrics_of(recorder).at("eplb_recorder_iteration"), -1);
    for (const int64_t iteration : {110, 111, 115}) {
        recorder.begin_iteration(iteration);
        recorder.count(3, 3);
        recorder.count_ids(4, ids, 2);
    }
    for (const bool is_dumped : {false, true}) {
        if (is_dumped) {
            recorder.dump();
            recorder.flush();
        }
        const eplb_recorder_info info = recorder.info();
        const std::vector<uint64_t> tokens = recorder.layer_tokens(2);
        const exposition found = metrics_of(recorder);
        EXPECT_EQ(found.at("eplb_recorder_state", {{"state", "counting"}}), is_dumped ? 0 : 1);
        EXPECT_EQ(found.at("eplb_recorder_state", {{"state", "dumped"}}), is_dumped ? 1 : 0);
        EXPECT_EQ(found.metrics.at("eplb_recorder_state").samples.size(), 8u);
        EXPECT_EQ(found.at("eplb_recorder_error"), 0);
        EXPECT_EQ(found.at("eplb_recorder_iteration"), info.iteration);
        EXPECT_EQ(found.at("eplb_recorder_iter_start"), info.iter_start);
        EXPECT_EQ(found.at("eplb_recorder_iter_stop"), info.iter_stop);
        EXPECT_EQ(found.at("eplb_recorder_skipped_iterations_total"), info.iterations_skipped);
        EXPECT_EQ(found.at("eplb_recorder_iterations_total"), 3);
        EXPECT_EQ(uint64_t(info.counted_stop - info.counted_start) - info.iterations_skipped, 3u);
        EXPECT_EQ(found.at("eplb_recorder_tokens_total", {{"layer", "4"}}), tokens[0]);
        EXPECT_EQ(found.at("eplb_recorder_tokens_total", {{"layer", "3"}}), tokens[1]);
        EXPECT_EQ(tokens, (std::vector<uint64_t>{3 * 2, 3 * 2}));
        const auto sum = [&](const char *name) {
            return found.at(name, {{"layer", "3"}}) + found.at(name, {{"layer", "4"}});
        };
        EXPECT_EQ(sum("eplb_recorder_out_of_range_ids_total"), info.ids_out_of_range);
        EXPECT_EQ(sum("eplb_recorder_padding_ids_total"), info.ids_padding);
        EXPECT_EQ(found.at("eplb_recorder_padding_ids_total", {{"layer", "3"}}), 3 * 4);
        EXPECT_EQ(sum("eplb_recorder_tokens_total") * 4, info.ids_counted + info.ids_out_of_range);
        EXPECT_EQ(found.at("eplb_recorder_dumps_total", {{"result", "written"}}), info.dumps_written);
        EXPECT_EQ(info.dumps_written, is_dumped ? 1u : 0u);
        EXPECT_EQ(found.at("eplb_recorder_dumps_total", {{"result", "failed"}}), info.dumps_failed);
        EXPECT_EQ(found.at("eplb_recorder_layers"), info.num_layers);
        EXPECT_EQ(found.at("eplb_recorder_registered_layers"), info.num_registered_layers);
        EXPECT_EQ(found.at("eplb_recorder_workspace_bytes"), info.workspace_bytes);
        EXPECT_EQ(found.at("eplb_recorder_host_bytes"), info.host_bytes);
        EXPECT_EQ(found.at("eplb_recorder_iter_bucket"), 1);
        EXPECT_EQ(found.at("eplb_recorder_iter_stride"), 1);
        EXPECT_EQ(found.metrics.size(), 17u) << "each is checked";
    }
}

TEST(Metrics, FailedDumpSetsTheErrorMetric) {
    temporary_directory dir;
    auto recorder = a_recorder(dir / "dump");
    recorder.begin_iteration(100);
    std::filesystem::remove_all(dir / "dump");
    write_file(dir / "dump", "in the way");
    recorder.dump();
    EXPECT_EQ(eplb_recorder_flush(recorder.get(), -1), EPLB_STATUS_WRITE_FAILED);
    const exposition found = metrics_of(recorder);
    EXPECT_EQ(found.at("eplb_recorder_state", {{"state", "failed"}}), 1);
    EXPECT_EQ(found.at("eplb_recorder_error"), 1);
    EXPECT_EQ(found.at("eplb_recorder_dumps_total", {{"result", "failed"}}), 1);
}

TEST(Metrics, RecorderThatIsOffHasNoLayers) {
    const exposition found = metrics_of(eplb::recorder::create({}));
    EXPECT_EQ(found.at("eplb_recorder_state", {{"state", "off"}}), 1);
    EXPECT_EQ(found.at("eplb_recorder_workspace_bytes"), 0);
    EXPECT_EQ(found.metrics.count("eplb_recorder_tokens_total"), 0u);
}

TEST(Metrics, PlacementMetricsEqualItsInfo) {
    const auto placement = a_placement();
    const eplb_placement_info info = placement.info();
    const exposition found = metrics_of(placement);
    EXPECT_EQ(found.at("eplb_placement_info", {{"hash", hex(placement.hash())}}), 1);
    EXPECT_EQ(found.at("eplb_placement_experts"), info.num_experts);
    EXPECT_EQ(found.at("eplb_placement_ranks"), info.num_ranks);
    EXPECT_EQ(found.at("eplb_placement_slots"), info.num_slots);
    EXPECT_EQ(found.at("eplb_placement_slots_per_rank"), info.slots_per_rank);
    EXPECT_EQ(found.at("eplb_placement_layers"), info.num_layers);
    EXPECT_EQ(found.at("eplb_placement_layer_updates_per_iter"), info.layer_updates_per_iter);
    EXPECT_EQ(found.at("eplb_placement_max_replicas", {{"layer", "3"}}), 2);
    EXPECT_EQ(found.at("eplb_placement_max_replicas", {{"layer", "7"}}), 3);
    EXPECT_EQ(info.max_replicas, 3u) << "in any layer";
    EXPECT_EQ(found.at("eplb_placement_duplicates", {{"layer", "3"}}), 2);
    EXPECT_EQ(found.at("eplb_placement_duplicates", {{"layer", "7"}}), 1);
    EXPECT_EQ(info.num_duplicates, 3u) << "of all layers";
    EXPECT_EQ(found.metrics.size(), 9u) << "each is checked";
}

TEST(Metrics, DispatchMetricsEqualItsInfo) {
    const auto placement = a_placement();
    auto dispatch = a_dispatch(placement);
    const std::vector<int64_t> rank_counts(2 * 4);
    dispatch.register_rank_counts(7, rank_counts.data(), EPLB_DTYPE_INT64);
    const eplb_dispatch_info info = dispatch.info();
    const exposition found = metrics_of(dispatch);
    EXPECT_EQ(found.at("eplb_dispatch_info", {{"hash", hex(placement.hash())}, {"rule", "least-loaded"}}), 1);
    EXPECT_EQ(found.at("eplb_dispatch_experts"), info.num_experts);
    EXPECT_EQ(found.at("eplb_dispatch_ranks"), info.num_ranks);
    EXPECT_EQ(found.at("eplb_dispatch_slots"), info.num_slots);
    EXPECT_EQ(found.at("eplb_dispatch_slots_per_rank"), info.slots_per_rank);
    EXPECT_EQ(found.at("eplb_dispatch_experts_per_token"), info.experts_per_token);
    EXPECT_EQ(found.at("eplb_dispatch_layers"), info.num_layers);
    EXPECT_EQ(found.at("eplb_dispatch_layers_with_rank_counts"), 1);
    EXPECT_EQ(info.num_layers_with_rank_counts, 1u);
    EXPECT_EQ(found.at("eplb_dispatch_max_replicas"), info.max_replicas);
    EXPECT_EQ(found.at("eplb_dispatch_workspace_bytes"), info.workspace_bytes);
    EXPECT_EQ(found.metrics.size(), 10u) << "each is checked";
    for (const auto &[rule, name] : {std::pair(EPLB_RULE_ROUND_ROBIN, "round-robin"),
                                     {EPLB_RULE_TOKEN_HASH, "token-hash"},
                                     {EPLB_RULE_NEAREST, "nearest"}}) {
        EXPECT_EQ(metrics_of(a_dispatch(placement, rule))
                      .at("eplb_dispatch_info", {{"hash", hex(placement.hash())}, {"rule", name}}),
                  1);
    }
}

TEST(Metrics, ManyObjectsGiveOneText) {
    auto metrics = eplb::metrics::create();
    EXPECT_EQ(std::string(metrics.text()), "");
    for (const char *model : {"main", "draft"}) {
        // The objects are destroyed before the text is read.
        temporary_directory dir;
        const auto placement = a_placement();
        for (const char *rank : {"0", "1"}) {
            metrics.add(a_recorder(dir / "dump"), {{"model", model}, {"rank", rank}});
            metrics.add(a_dispatch(placement), {{"model", model}, {"rank", rank}});
        }
        metrics.add(placement, {{"model", model}});
    }
    const exposition found(metrics.text());
    EXPECT_EQ(found.metrics.size(), 17u + 9u + 10u);
    EXPECT_EQ(found.metrics.at("eplb_recorder_iteration").samples.size(), 4u);
    EXPECT_EQ(
        found.at("eplb_recorder_padding_ids_total", {{"model", "draft"}, {"rank", "1"}, {"layer", "4"}}), 0);
    EXPECT_EQ(found.at("eplb_placement_slots", {{"model", "main"}}), 6);
}

TEST(Metrics, LabelValuesAreEscaped) {
    const std::string strange = "C:\\new\\ \"quoted\"\r\n\t{a=\"b\",c} \xe4\xb8\x93\xe5\xae\xb6 \\";
    auto metrics = eplb::metrics::create();
    metrics.add(a_placement(), {{"model", strange}, {"A_9", "x"}});
    EXPECT_EQ(exposition(metrics.text()).at("eplb_placement_slots", {{"model", strange}, {"A_9", "x"}}), 6);
}

TEST(Metrics, WrongAndRepeatedLabelsAreRefusedWithoutEffect) {
    const auto placement = a_placement();
    auto metrics = eplb::metrics::create();
    metrics.add(placement, {{"rank", "0"}, {"model", "r1"}});
    const std::string before = metrics.text();
    const auto add = [&](const eplb::metrics_labels &labels) {
        return refused([&] { metrics.add(placement, labels); });
    };
    EXPECT_EQ(
        add({{"model", "r1"}, {"rank", "0"}}),
        "a placement with the labels {model=\"r1\",rank=\"0\"} was already added; pass different labels, "
        "such as the rank");
    EXPECT_EQ(add({{"my-label", "x"}}),
              "label \"my-label\": a name must have letters, digits and _, and no digit first");
    EXPECT_EQ(add({{"hash", "x"}}), "label \"hash\": the name is reserved for labels of eplb");
    EXPECT_EQ(add({{"a", "x"}, {"a", "y"}}), "label \"a\": the name is given twice");
    EXPECT_EQ(add({{"__a", "x"}}), "label \"__a\": names that begin with __ are reserved for Prometheus");
    EXPECT_EQ(add({{"a", ""}}), "a label's value is empty");
    EXPECT_EQ(add({{"a", "\xff"}}), "a label's value is not UTF-8");
    const eplb_metrics_label no_value = {"a", nullptr};
    EXPECT_EQ(eplb_metrics_add_placement(metrics.get(), placement.get(), &no_value, 1),
              EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(), "a label's value is NULL");
    EXPECT_EQ(eplb_metrics_add_placement(metrics.get(), placement.get(), nullptr, 1),
              EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(), "labels is NULL");
    EXPECT_EQ(std::string(metrics.text()), before);
}

TEST(Metrics, TextIsReturnedWithItsLength) {
    auto metrics = eplb::metrics::create();
    metrics.add(a_placement());
    const char *text = nullptr;
    size_t length = 0;
    ASSERT_EQ(eplb_metrics_text(metrics.get(), &text, &length), EPLB_STATUS_OK);
    EXPECT_EQ(std::strlen(text), length);
    const std::string copy = text;
    ASSERT_EQ(eplb_metrics_text(metrics.get(), &text, nullptr), EPLB_STATUS_OK) << "the length is optional";
    EXPECT_EQ(text, copy);
}

TEST(Metrics, CountersNeverDecreaseWhileOtherThreadsCount) {
    temporary_directory dir;
    auto recorder = a_recorder(dir / "dump");
    const int32_t ids[8] = {0, 1, 2, 64, 4, 5, 6, 7};
    std::atomic<bool> is_done = false;
    std::thread counting([&] {
        for (int64_t iteration = 100; iteration < 200; iteration++) {
            recorder.begin_iteration(iteration);
            for (int i = 0; i < 50; i++) {
                recorder.count_ids(3, ids, 2);
            }
        }
        is_done = true;
    });
    exposition::labels layer = {{"layer", "3"}};
    double iterations = 0, tokens = 0, out_of_range = 0;
    for (bool is_last = false; !is_last;) {
        is_last = is_done;
        const exposition found = metrics_of(recorder);
        const auto grows = [&](const char *name, const exposition::labels &labels, double &before) {
            EXPECT_GE(found.at(name, labels), before) << name;
            before = found.at(name, labels);
        };
        grows("eplb_recorder_iterations_total", {}, iterations);
        grows("eplb_recorder_tokens_total", layer, tokens);
        grows("eplb_recorder_out_of_range_ids_total", layer, out_of_range);
    }
    counting.join();
    EXPECT_EQ(iterations, 100);
    EXPECT_EQ(tokens, 100 * 50 * 2);
    EXPECT_EQ(out_of_range, 100 * 50);
}
