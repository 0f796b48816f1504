// Live tables and snapshots over the fake driver: the calls that they make, captures, tables that were not
// read yet, and a fault in every driver call.
#include <cstdlib>

#include "fake_fixture.h"
#include "live_fixture.h"

namespace {

const layer_placement whole = {4, 2, {0, 1, 2, 3, 3, 2, 1, 0}};
const layer_placement other = {4, 2, {0, 1, 2, 2, 3, 3, 1, 0}};

/// Two live layers, a batch, and a plan for layer 3.
struct live_layers {
    engine_stream stream, beside;
    eplb::dispatch_config config;
    eplb::dispatch dispatch;
    routed_batch batch;
    planned plan = plan_of(whole, other);

    explicit live_layers(eplb_rule rule = EPLB_RULE_LEAST_LOADED)
        : config(config_of(rule)), dispatch(eplb::dispatch::create(placement_of(whole, {3, 5}), config)),
          batch({0, 1, 2, 3, 0, 0, 1, 1, 2, 2, 3, 3}, 2, stream) {}

    static eplb::dispatch_config config_of(eplb_rule rule) {
        auto config = a_config(whole, rule, 2);
        config.live = true;
        return config;
    }
    eplb_status stage(CUstream on) { return eplb_dispatch_stage_layer(dispatch.get(), plan, 3, on); }
    eplb_status commit(CUstream on) { return eplb_dispatch_commit_layer(dispatch.get(), 3, on); }
    eplb_status update(CUstream on) { return eplb_dispatch_update_layer(dispatch.get(), plan, 3, on); }
    eplb_status kill_rank_1(CUstream on) {
        const uint8_t active[] = {1, 0};
        return eplb_dispatch_set_active_ranks(dispatch.get(), active, 2, on);
    }
    std::vector<int32_t> slots(int32_t layer = 3) {
        batch.route(dispatch, stream, layer);
        return batch.result(stream);
    }
    std::vector<int32_t> slots_of(const layer_placement &layer) { return slots_of_new(layer, config, batch); }
};

eplb::recorder_config rolling_config() {
    eplb::recorder_config config;
    config.rolling_iterations = 4;
    config.num_ranks = 1;
    config.num_experts = 64;
    config.experts_per_token = 4;
    config.layer_ids = {0};
    config.device = 0;
    return config;
}

/// A deferred driver, whatever the environment has.
struct deferred {
    deferred() { fake().fake_cuda_set_deferred(1); }
    ~deferred() {
        const char *mode = std::getenv("EPLB_FAKE_CUDA");
        fake().fake_cuda_set_deferred(mode != nullptr && std::strcmp(mode, "deferred") == 0);
    }
};

} // namespace

TEST_F(FakeCuda, FlipIsOneKernelWithoutAllocationCopyOrSynchronisation) {
    using names = std::vector<std::string>;
    const names one_kernel = {"cuCtxGetCurrent", "cuStreamIsCapturing", "cuCtxGetCurrent", "cuLaunchKernel"};
    for (const eplb_rule rule : all_rules) {
        live_layers live(rule);
        EXPECT_EQ(call_log([&] { EXPECT_EQ(live.stage(live.stream), EPLB_STATUS_OK); }), one_kernel);
        EXPECT_EQ(call_log([&] { EXPECT_EQ(live.commit(live.stream), EPLB_STATUS_OK); }), one_kernel);
        live.stream.synchronize();
        live.plan = plan_of(live.plan.after, whole);
        EXPECT_EQ(call_log([&] { EXPECT_EQ(live.update(live.stream), EPLB_STATUS_OK); }), one_kernel);
        live.stream.synchronize();
        EXPECT_EQ(call_log([&] { EXPECT_EQ(live.kill_rank_1(live.stream), EPLB_STATUS_OK); }), one_kernel)
            << "of both layers";
        EXPECT_EQ(call_log([&] { generation_of(live.dispatch); }), names{});
        live.stream.synchronize();
    }
    auto recorder = eplb::recorder::create(rolling_config());
    engine_array<int64_t> counts(64);
    const engine_stream stream;
    recorder.begin_iteration(0, stream);
    const auto calls = call_log(
        [&] { EXPECT_EQ(eplb_recorder_snapshot(recorder.get(), counts.data(), 1, stream), EPLB_STATUS_OK); });
    EXPECT_EQ(std::count(calls.begin(), calls.end(), "cuLaunchKernel"), 1);
    // It looks up where the counts go.
    const std::set<std::string> allowed = {"cuCtxGetCurrent", "cuStreamIsCapturing", "cuLaunchKernel",
                                           "cuPointerGetAttribute", "cuThreadExchangeStreamCaptureMode"};
    for (const std::string &name : calls) {
        EXPECT_TRUE(allowed.count(name)) << name;
    }
    stream.synchronize();
}

TEST_F(FakeCuda, ChangesAreRefusedWhileTheirStreamIsCaptured) {
    live_layers live;
    const auto before = live.slots();
    auto recorder = eplb::recorder::create(rolling_config());
    engine_array<int64_t> counts(64);
    ASSERT_EQ(live.stage(live.stream), EPLB_STATUS_OK);
    live.stream.synchronize();
    const engine_graph graph(live.stream, [&] {
        const auto refused = [&](eplb_status status, const char *call) {
            EXPECT_EQ(status, EPLB_STATUS_CAPTURING) << call;
            EXPECT_EQ(
                eplb_last_error_message(),
                std::string("the stream is being captured by a CUDA graph, which would do the same at each "
                            "replay: call ") +
                    call + "() before or after");
        };
        refused(live.stage(live.stream), "eplb_dispatch_stage_layer");
        refused(live.commit(live.stream), "eplb_dispatch_commit_layer");
        refused(live.update(live.stream), "eplb_dispatch_update_layer");
        refused(live.kill_rank_1(live.stream), "eplb_dispatch_set_active_ranks");
        refused(eplb_recorder_snapshot(recorder.get(), counts.data(), 1, live.stream),
                "eplb_recorder_snapshot");
        live.batch.route(live.dispatch, live.stream);
    });
    EXPECT_EQ(generation_of(live.dispatch), 1u);
    graph.replay(live.stream);
    EXPECT_EQ(live.batch.result(live.stream), before);
    // Another stream may change the tables meanwhile.
    const engine_graph second(live.beside, [&] {
        live.batch.route(live.dispatch, live.beside);
        EXPECT_EQ(live.commit(live.stream), EPLB_STATUS_OK) << eplb_last_error_message();
    });
    live.stream.synchronize();
    second.replay(live.beside);
    EXPECT_EQ(live.batch.result(live.beside), live.slots_of(live.plan.after));
}

TEST_F(FakeCuda, TablesThatTheDeviceHasNotReadAreNotOverwritten) {
    const deferred driver;
    live_layers live;
    const auto not_ready = [&](eplb_status status) {
        EXPECT_EQ(status, EPLB_STATUS_NOT_READY);
        EXPECT_STREQ(eplb_last_error_message(),
                     "layer 3: the device has not copied the tables of the last call yet; "
                     "call again once its stream has");
    };
    ASSERT_EQ(live.stage(live.beside), EPLB_STATUS_OK);
    not_ready(live.stage(live.beside));
    not_ready(live.update(live.stream));
    not_ready(live.kill_rank_1(live.stream));
    EXPECT_EQ(live.slots(), live.slots_of(whole));
    live.stream.wait_for(live.beside);
    ASSERT_EQ(live.commit(live.stream), EPLB_STATUS_OK) << "the stream orders it after the upload";
    live.beside.synchronize();
    const auto there = live.plan.after;
    live.plan = plan_of(there, whole);
    not_ready(live.stage(live.beside));
    EXPECT_EQ(generation_of(live.dispatch), 2u);
    EXPECT_EQ(live.slots(), live.slots_of(there));
    ASSERT_EQ(live.stage(live.beside), EPLB_STATUS_OK) << eplb_last_error_message();
    live.beside.synchronize();
    ASSERT_EQ(live.commit(live.stream), EPLB_STATUS_OK);
    EXPECT_EQ(live.slots(), live.slots_of(whole));
}

TEST_F(FakeCuda, DriverFaultLeavesTheTablesAsTheyWere) {
    enum class kind { stage, commit, update, active };
    size_t fired = 0;
    for (const kind kind : {kind::stage, kind::commit, kind::update, kind::active}) {
        for (size_t n = 1; n < 12; n++) {
            SCOPED_TRACE(testing::Message() << "call " << n << " of step " << int(kind));
            live_layers live;
            const auto before = live.slots();
            fault fault(n);
            const auto act = [&] {
                switch (kind) {
                case kind::stage:
                    return live.stage(live.stream);
                case kind::commit:
                    return live.commit(live.stream);
                case kind::update:
                    return live.update(live.stream);
                default:
                    return live.kill_rank_1(live.stream);
                }
            };
            if (kind == kind::commit) {
                ASSERT_EQ(live.stage(live.stream), EPLB_STATUS_OK);
            }
            const eplb_status status = fault.call(act);
            EXPECT_EQ(status, fault.fired() ? EPLB_STATUS_CUDA : EPLB_STATUS_OK) << eplb_last_error_message();
            fired += fault.fired();
            if (status != EPLB_STATUS_OK) {
                EXPECT_EQ(live.slots(3), before);
                EXPECT_EQ(live.slots(5), before);
                EXPECT_EQ(generation_of(live.dispatch), 1u);
                ASSERT_EQ(act(), EPLB_STATUS_OK) << eplb_last_error_message();
            }
            if (kind == kind::stage) {
                EXPECT_EQ(live.slots(3), before);
                ASSERT_EQ(live.commit(live.stream), EPLB_STATUS_OK);
            }
            const bool is_active = kind == kind::active;
            EXPECT_EQ(live.slots(3), is_active ? live.batch.values : live.slots_of(live.plan.after));
            EXPECT_EQ(live.slots(5), is_active ? live.batch.values : before);
            EXPECT_EQ(generation_of(live.dispatch), is_active ? 1u : 2u);
        }
    }
    EXPECT_GE(fired, 4u * 4u) << "each step makes four calls of the driver";
}

TEST_F(FakeCuda, DriverFaultInCreationOfALiveDispatchLeaksNothing) {
    const auto config = live_layers::config_of(EPLB_RULE_LEAST_LOADED);
    const auto placement = placement_of(whole, {3, 5});
    const eplb_dispatch_config c = config.c();
    const size_t objects = fake().fake_cuda_live_objects();
    size_t refused = 0;
    for (size_t n = 1; n < 60; n++) {
        fault fault(n);
        eplb_dispatch *handle = nullptr;
        const eplb_status status =
            fault.call([&] { return eplb_dispatch_create(placement.get(), &c, &handle); });
        EXPECT_EQ(handle == nullptr, status != EPLB_STATUS_OK);
        refused += status != EPLB_STATUS_OK;
        eplb_dispatch_destroy(handle);
        EXPECT_EQ(fake().fake_cuda_live_objects(), objects) << "after a fault in call " << n;
    }
    EXPECT_GT(refused, 10u);
    // Both the tables and their page-locked copies are named in the error.
    std::set<std::string> purposes;
    for (size_t n = 1; n < 60; n++) {
        fake().fake_cuda_fail_call(n, CUDA_ERROR_OUT_OF_MEMORY);
        eplb_dispatch *handle = nullptr;
        if (eplb_dispatch_create(placement.get(), &c, &handle) == EPLB_STATUS_OUT_OF_MEMORY) {
            const std::string message = eplb_last_error_message();
            purposes.insert(message.find("copies of the dispatch tables") != std::string::npos ? "copies"
                                                                                               : "tables");
        }
        fake().fake_cuda_fail_call(0, 0);
        eplb_dispatch_destroy(handle);
    }
    EXPECT_EQ(purposes, (std::set<std::string>{"copies", "tables"}));
}

TEST_F(FakeCuda, DriverFaultInASnapshotLeavesTheCountsAsTheyWere) {
    const engine_stream stream;
    const chosen_ids ids(stream);
    engine_array<int64_t> counts(64 * 2);
    size_t fired = 0;
    for (size_t n = 1; n < 12; n++) {
        auto recorder = eplb::recorder::create(rolling_config());
        for (int64_t iteration = 0; iteration < 3; iteration++) {
            recorder.begin_iteration(iteration, stream);
            recorder.count_ids(0, ids.data(), 1, nullptr, stream);
        }
        const auto snapshot = [&] {
            return eplb_recorder_snapshot(recorder.get(), counts.data(), 2, stream);
        };
        fault fault(n);
        const eplb_status status = fault.call(snapshot);
        // A driver that cannot tell where the counts go is no reason to refuse them.
        EXPECT_TRUE(status == EPLB_STATUS_OK || (status == EPLB_STATUS_CUDA && fault.fired()));
        fired += status == EPLB_STATUS_CUDA;
        if (status != EPLB_STATUS_OK) {
            recorder.count_ids(0, ids.data(), 1, nullptr, stream);
            ASSERT_EQ(snapshot(), EPLB_STATUS_OK) << eplb_last_error_message();
        }
        const auto read = download(counts.data(), counts.size(), stream);
        EXPECT_EQ(read[5], 2) << "iteration 0";
        EXPECT_EQ(read[64 + 5], status == EPLB_STATUS_OK ? 4 : 6)
            << "iterations 1 and 2, after a fault in call " << n;
    }
    EXPECT_GE(fired, 3u);
}
