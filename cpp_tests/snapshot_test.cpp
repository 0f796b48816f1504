// Snapshots of a rolling recorder beside a reference: on the host, over fake_cuda in both of its modes, and
// on a GPU.
#include <eplb_tools.hpp>

#include "dump_file.h"
#include "live_fixture.h"

namespace {

constexpr uint32_t num_experts = 12, choices = 2;
const std::vector<int32_t> layers = {7, 3};

eplb::recorder_config rolling(uint64_t iterations) {
    eplb::recorder_config config;
    config.rolling_iterations = iterations;
    config.num_ranks = 1;
    config.num_experts = num_experts;
    config.experts_per_token = choices;
    config.layer_ids = layers;
    config.device = engine::get().device();
    return config;
}

/// What a rolling recorder has, from the definition in the header.
class reference {
  public:
    using cells = std::vector<int64_t>;
    explicit reference(size_t ring) : ring_(ring) {}

    void begin() {
        if (rows_.size() == ring_) {
            add(merged_, rows_.front());
            rows_.erase(rows_.begin());
            num_merged_++;
        }
        // Counts between a snapshot and the next iteration belong to that iteration.
        rows_.push_back(rest_);
        rest_.assign(rest_.size(), 0);
    }
    void count(int32_t layer, int64_t expert, int64_t times = 1) {
        if (expert >= 0 && expert < num_experts) {
            const size_t first = layer == layers[0] ? 0 : num_experts;
            (rows_.empty() ? rest_ : rows_.back())[first + static_cast<size_t>(expert)] += times;
        }
    }
    cells snapshot(size_t num_samples) {
        cells all(num_samples * rest_.size());
        if (rows_.empty()) {
            rows_.push_back(rest_);
            rest_.assign(rest_.size(), 0);
        }
        const size_t n = rows_.size(), groups = std::min(n, num_samples);
        for (size_t sample = 0; sample < groups; sample++) {
            cells sum = sample == 0 ? merged_ : cells(rest_.size());
            for (size_t row = sample * n / groups; row < (sample + 1) * n / groups; row++) {
                add(sum, rows_[row]);
            }
            std::copy(sum.begin(), sum.end(), all.begin() + static_cast<ptrdiff_t>(sample * sum.size()));
        }
        rows_.clear();
        merged_.assign(merged_.size(), 0);
        return all;
    }
    uint64_t num_merged() const { return num_merged_; }

  private:
    static void add(cells &to, const cells &from) {
        for (size_t i = 0; i < to.size(); i++) {
            to[i] += from[i];
        }
    }
    size_t ring_;
    std::vector<cells> rows_;
    cells merged_ = cells(2 * num_experts), rest_ = cells(2 * num_experts);
    uint64_t num_merged_ = 0;
};

/// Page-locked memory; plain memory on the host.
struct pinned_counts {
    int64_t *data = nullptr;
    explicit pinned_counts(size_t size) {
        if (engine::get().is_cuda()) {
            void *memory = nullptr;
            engine::check(engine::get().driver().cuMemHostAlloc(&memory, size * sizeof(int64_t), 0),
                          "cuMemHostAlloc");
            data = static_cast<int64_t *>(memory);
        } else {
            data = static_cast<int64_t *>(std::malloc(size * sizeof(int64_t)));
        }
    }
    ~pinned_counts() {
        if (engine::get().is_cuda()) {
            engine::get().driver().cuMemFreeHost(data);
        } else {
            std::free(data);
        }
    }
    pinned_counts(const pinned_counts &) = delete;
    pinned_counts &operator=(const pinned_counts &) = delete;
};

template <class Call> std::string refusal(Call call, eplb_status expected) {
    EXPECT_EQ(call(), expected) << eplb_last_error_message();
    return eplb_last_error_message();
}

/// A recorder of slots beside a dispatch whose tables change.
struct slot_run {
    temporary_directory dir;
    engine_stream stream;
    eplb::recorder_config recording;
    eplb::dispatch_config routing;
    engine_array<int32_t> ids = engine_array<int32_t>(4), slots = engine_array<int32_t>(4);
    std::vector<int32_t> values = {0, 1, 2, 3};

    slot_run() {
        recording.path = dir / "dump";
        recording.iter_stop = 4;
        recording.num_ranks = 2;
        recording.num_experts = 6;
        recording.experts_per_token = 2;
        recording.layer_ids = {3};
        recording.id_kind = EPLB_ID_KIND_SLOT;
        recording.device = engine::get().device();
        routing = a_config(small, EPLB_RULE_ROUND_ROBIN, 2);
        routing.live = true;
        ids.upload(values, stream);
    }

    /// Runs iterations 0 to 4 and flips in those of `flips`.
    void run(const std::vector<int64_t> &flips) {
        auto recorder = eplb::recorder::create(recording);
        layer_placement now = small;
        const auto dispatch = eplb::dispatch::create(placement_of(now), routing);
        for (int64_t iteration = 0; iteration <= 4; iteration++) {
            recorder.begin_iteration(iteration, stream);
            dispatch.route_and_count(recorder, 3, ids.data(), 2, nullptr, slots.data(), stream);
            if (std::count(flips.begin(), flips.end(), iteration) != 0) {
                // Expert 0 or 2 leaves rank 1.
                const bool is_first = now.slots_of(2).size() == 1;
                const auto plan = plan_of(now, is_first ? layer_placement{4, 2, {0, 1, 2, 3, 2, 1}} : small);
                EXPECT_EQ(eplb_dispatch_update_layer(dispatch.get(), plan, 3, stream), EPLB_STATUS_OK)
                    << eplb_last_error_message();
                now = plan.after;
            }
            stream.synchronize();
        }
        recorder.flush();
    }
};

} // namespace

TEST(Snapshot, EqualsTheReferenceForAnyOrderOfCalls) {
    const int runs = engine::get().is_cuda() ? 6 : 40;
    for (int run = 0; run < runs; run++) {
        SCOPED_TRACE(testing::Message() << "run " << run);
        routing random(num_experts, choices, static_cast<uint64_t>(run));
        const size_t ring = 1 + random.below(5);
        auto recorder = eplb::recorder::create(rolling(ring));
        reference reference(ring);
        const engine_stream stream;
        engine_array<int32_t> ids(5 * choices);
        const auto fixed = random.ids<int32_t>(5);
        ids.upload(fixed, stream);
        stream.synchronize();
        engine_array<int64_t> added(num_experts);
        const std::vector<int64_t> deltas = [&] {
            std::vector<int64_t> deltas(num_experts);
            for (auto &delta : deltas) {
                delta = static_cast<int64_t>(random.below(9));
            }
            return deltas;
        }();
        added.upload(deltas, stream);
        const engine_graph graph(stream, [&] { recorder.count_ids(7, ids.data(), 5, nullptr, stream); });
        const auto note = [&](int32_t layer) {
            for (const int32_t id : fixed) {
                reference.count(layer, id);
            }
        };
        engine_array<int64_t> on_device(9 * 2 * num_experts);
        const pinned_counts on_host(9 * 2 * num_experts);
        int64_t iteration = 0;
        bool has_begun = false;
        for (int step = 0; step < 60; step++) {
            switch (random.below(8)) {
            case 0:
            case 1:
            case 2:
                iteration += static_cast<int64_t>(1 + random.below(2));
                recorder.begin_iteration(iteration, stream);
                reference.begin();
                has_begun = true;
                break;
            case 3:
                recorder.count_ids(3, ids.data(), 5, nullptr, stream);
                if (has_begun) {
                    note(3);
                }
                break;
            case 4:
                graph.replay(stream);
                if (has_begun) {
                    note(7);
                }
                break;
            case 5:
                recorder.add_counts(3, added.data(), EPLB_DTYPE_INT64, stream);
                for (uint32_t expert = 0; has_begun && expert < num_experts; expert++) {
                    reference.count(3, expert, deltas[expert]);
                }
                break;
            default: {
                const uint32_t num_samples = static_cast<uint32_t>(1 + random.below(8));
                const bool to_device = random.below(2) == 0;
                int64_t *counts = to_device ? on_device.data() : on_host.data;
                ASSERT_EQ(eplb_recorder_snapshot(recorder.get(), counts, num_samples, stream), EPLB_STATUS_OK)
                    << eplb_last_error_message();
                const size_t size = num_samples * 2 * num_experts;
                stream.synchronize();
                const auto read =
                    to_device ? download(counts, size, stream) : std::vector<int64_t>(counts, counts + size);
                ASSERT_EQ(read, reference.snapshot(num_samples)) << "step " << step;
            }
            }
        }
        EXPECT_EQ(recorder.info().iterations_merged, reference.num_merged());
        stream.synchronize();
    }
}

TEST(Snapshot, IterationsBeyondTheRingAreAddedIntoTheFirstSampleAndCounted) {
    const engine_stream stream;
    auto recorder = eplb::recorder::create(rolling(2));
    engine_array<int32_t> ids(2);
    const std::vector<int32_t> values = {4, 5};
    ids.upload(values, stream);
    for (int64_t iteration = 0; iteration < 5; iteration++) {
        recorder.begin_iteration(iteration, stream);
        recorder.count_ids(7, ids.data(), 1, nullptr, stream);
    }
    engine_array<int64_t> counts(2 * 2 * num_experts);
    ASSERT_EQ(eplb_recorder_snapshot(recorder.get(), counts.data(), 2, stream), EPLB_STATUS_OK);
    const auto read = download(counts.data(), counts.size(), stream);
    EXPECT_EQ(read[4], 4) << "iterations 0 to 2, which the ring no longer has, and 3";
    EXPECT_EQ(read[2 * num_experts + 4], 1);
    EXPECT_EQ(recorder.info().iterations_merged, 3u);
}

TEST(Snapshot, RollingWindowAndDumpRangeGoTogether) {
    temporary_directory dir;
    const engine_stream stream;
    engine_array<int32_t> ids(3 * choices);
    const std::vector<int32_t> values = {0, 1, 2, 3, 11, 11};
    ids.upload(values, stream);
    stream.synchronize();
    const auto run = [&](eplb::recorder_config config, std::vector<int64_t> *sums) {
        config.path = dir / (sums == nullptr ? "without" : "with");
        config.iter_start = 2;
        config.iter_stop = 5;
        auto recorder = eplb::recorder::create(config);
        engine_array<int64_t> counts(2 * num_experts);
        for (int64_t iteration = 0; iteration < 8; iteration++) {
            recorder.begin_iteration(iteration, stream);
            recorder.count_ids(7, ids.data(), 3, nullptr, stream);
            recorder.count_ids(3, ids.data(), 1, nullptr, stream);
            if (sums != nullptr && iteration % 3 == 2) {
                EXPECT_EQ(eplb_recorder_snapshot(recorder.get(), counts.data(), 1, stream), EPLB_STATUS_OK);
                const auto read = download(counts.data(), counts.size(), stream);
                for (size_t i = 0; i < read.size(); i++) {
                    (*sums)[i] += read[i];
                }
            }
        }
        recorder.flush();
        EXPECT_EQ(recorder.info().dumps_written, 1u);
        return undated_file(config.path + "/rank0.safetensors");
    };
    std::vector<int64_t> sums(2 * num_experts);
    const std::string with = run(rolling(4), &sums), without = run(rolling(0), nullptr);
    EXPECT_TRUE(with == without) << "snapshots change nothing in a dump";
    EXPECT_EQ(sums[11], 12) << "two of layer 7 in each of six iterations";
    EXPECT_EQ(sums[num_experts + 1], 6) << "one of layer 3";
}

TEST(Snapshot, NeedsARingCountsByExpertAndReachableMemory) {
    const engine_stream stream;
    auto config = rolling(4);
    auto recorder = eplb::recorder::create(config);
    engine_array<int64_t> counts(2 * num_experts + 1);
    const auto snapshot = [&](int64_t *to, uint32_t num_samples) {
        return
            [&, to, num_samples] { return eplb_recorder_snapshot(recorder.get(), to, num_samples, stream); };
    };
    EXPECT_EQ(refusal(snapshot(nullptr, 1), EPLB_STATUS_INVALID_ARGUMENT), "counts is NULL");
    EXPECT_EQ(refusal(snapshot(reinterpret_cast<int64_t *>(reinterpret_cast<char *>(counts.data()) + 4), 1),
                      EPLB_STATUS_INVALID_ARGUMENT),
              "counts is not aligned to its 8 bytes");
    EXPECT_EQ(refusal(snapshot(counts.data(), 0), EPLB_STATUS_INVALID_ARGUMENT),
              "num_samples is 0, at least 1 expected");
    if (engine::get().is_cuda()) {
        std::vector<int64_t> pageable(2 * num_experts);
        refusal(snapshot(pageable.data(), 1), EPLB_STATUS_INVALID_ARGUMENT);
    }
    EXPECT_EQ(snapshot(counts.data(), 1)(), EPLB_STATUS_OK) << "nothing above changed the recorder";
    stream.synchronize();

    config.rolling_iterations = 0;
    recorder = eplb::recorder::create(config);
    EXPECT_EQ(refusal(snapshot(counts.data(), 1), EPLB_STATUS_INVALID_ARGUMENT),
              "the recorder keeps no iterations for snapshots: create it with rolling_iterations");
    config.rolling_iterations = 4;
    config.id_kind = EPLB_ID_KIND_SLOT;
    const eplb_recorder_config slots = config.c();
    eplb_recorder *handle = nullptr;
    const std::string message =
        refusal([&] { return eplb_recorder_create(&slots, &handle); }, EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(message.rfind("rolling_iterations needs id_kind EPLB_ID_KIND_EXPERT", 0), 0u) << message;
}

TEST(Snapshot, FlipWithinTheRangeOfSlotsMakesTheDumpIncomplete) {
    // The loads of iterations of the dump, which is complete or names what it has.
    const auto loads_of = [](const slot_run &run, int64_t start, int64_t stop) {
        eplb::stats_options options;
        options.allow_missing_ranks = true; // The other rank has no recorder.
        if (start != 0 || stop != 4) {
            EXPECT_THROW(eplb::stats::load(run.recording.path, options), eplb::error) << "it is incomplete";
            options.iter_start = start;
            options.iter_stop = stop;
        }
        return eplb::stats::load(run.recording.path, options).layer_loads(3);
    };
    using loads = std::vector<double>;
    {
        slot_run none;
        none.run({});
        EXPECT_EQ(loads_of(none, 0, 4), (loads{4, 4, 4, 4, 0, 0}));
    }
    {
        slot_run later;
        later.run({2, 3});
        EXPECT_EQ(loads_of(later, 0, 2), (loads{2, 2, 2, 2, 0, 0})) << "slots of the first table";
    }
    {
        slot_run first;
        first.run({0});
        EXPECT_EQ(loads_of(first, 1, 4), (loads{3, 3, 3, 3, 0, 0}))
            << "the range begins again after the flip";
    }
    {
        slot_run after;
        after.run({4});
        EXPECT_EQ(loads_of(after, 0, 4), (loads{4, 4, 4, 4, 0, 0})) << "the range was over";
    }
    // Experts keep their numbers.
    slot_run experts;
    experts.recording.id_kind = EPLB_ID_KIND_EXPERT;
    experts.recording.num_experts = 4;
    experts.run({1, 2});
    EXPECT_EQ(loads_of(experts, 0, 4), (loads{4, 4, 4, 4}));
}
