// Live rebalancing: the loop of docs/live.md, on two ranks.
#include <condition_variable>
#include <eplb_live.hpp>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include "recipe.h"

namespace {

// recipe
/// What the engine has on each rank: its collectives, its weights, its log.
class own_engine {
  public:
    virtual ~own_engine() = default;
    /// All-reduces counts of the device in the order of the stream, and returns them on the host.
    virtual std::vector<int64_t> sum_over_ranks(int64_t *counts, size_t size, CUstream_st *stream) = 0;
    virtual std::vector<uint64_t> max_over_ranks(std::vector<uint64_t> words) = 0;
    virtual eplb::placement from_rank_0(eplb::placement own) = 0;
    /// Starts to send a slot, or to receive into a staging slot: every tensor of the expert.
    virtual void start(const eplb_transfer &transfer) = 0;
    /// Whether all transfers of all ranks are done: one word on a collective, with the same result
    /// everywhere.
    virtual bool has_arrived_everywhere() = 0;
    /// Copies what has arrived into its slots, in the order of the stream.
    virtual void staging_to_slots(CUstream_st *stream) = 0;
    virtual void log(const char *message) = 0;
};

/// One rank's part. All ranks call step() after each forward pass, on the stream of the forward pass.
struct live_loop {
    int32_t rank;
    own_engine &engine;
    eplb::recorder recorder; // With rolling_iterations.
    eplb::rebalancer rebalancer;
    eplb::dispatch dispatch; // With live.
    eplb::plan_limits limits;
    int64_t *counts; // On the device: [num_layers][num_experts]
    size_t num_counts;
    std::optional<eplb::plan> plan = {};
    std::vector<int32_t> layers = {}; // Of the plan, those to come.

    void step(int64_t iteration, uint64_t num_tokens, CUstream_st *stream) {
        if (plan) {
            move_on(stream);
        } else if (iteration % 4 == 3) {
            make_plan(num_tokens, stream);
        }
    }

    void make_plan(uint64_t num_tokens, CUstream_st *stream) {
        // 1. What all ranks have counted.
        eplb::snapshot(recorder, counts, 1, stream);
        const std::vector<int64_t> observed = engine.sum_over_ranks(counts, num_counts, stream);

        // 2. A plan on every rank. These calls may run on another thread, beside recorder and routing.
        std::vector<uint64_t> words = {EPLB_PLAN_DISAGREE, EPLB_PLAN_DISAGREE};
        try {
            rebalancer.observe(observed, 1, num_tokens);
            plan = rebalancer.plan(limits);
            const eplb_plan_info info = plan->info();
            words = {info.agreement[0], info.agreement[1]};
            engine.log(info.message);
        } catch (const eplb::error &error) {
            engine.log(error.what());
        }

        // 3. Is it the same one everywhere?
        words = engine.max_over_ranks(words);
        if (words[0] != ~words[1]) {
            engine.log("ranks disagree: they start again from rank 0's placement");
            plan.reset();
            rebalancer.reset(engine.from_rank_0(rebalancer.placement()));
            return;
        }
        const auto planned = plan->layer_ids();
        layers.assign(planned.begin(), planned.end());
        start_layer(stream);
    }

    void start_layer(CUstream_st *stream) {
        if (layers.empty()) {
            plan.reset();
            return;
        }
        // 4. Weights into staging slots, and the tables into their shadow, while the layer runs on.
        for (const eplb_transfer &transfer : plan->transfers(layers.front(), rank)) {
            engine.start(transfer);
        }
        eplb::stage_layer(dispatch, *plan, layers.front(), stream);
    }

    void move_on(CUstream_st *stream) {
        // 5. The only point at which ranks meet.
        if (!engine.has_arrived_everywhere()) {
            return;
        }
        // 6. At the same step on all ranks: weights first, then the table.
        engine.staging_to_slots(stream);
        eplb::commit_layer(dispatch, layers.front(), stream);
        rebalancer.commit_layer(*plan, layers.front());
        layers.erase(layers.begin());
        start_layer(stream);
    }
};
// end

/// Where two ranks, each on a thread, combine values.
class meeting {
  public:
    template <class T> std::vector<T> combine(std::vector<T> values, const std::function<T(T, T)> &by) {
        std::unique_lock<std::mutex> lock(mutex_);
        static std::vector<T> all;
        const uint64_t own = number_;
        if (++arrived_ == 1) {
            all = values;
        } else {
            for (size_t i = 0; i < values.size(); i++) {
                all[i] = by(all[i], values[i]);
            }
            arrived_ = 0;
            number_++;
            changed_.notify_all();
        }
        changed_.wait(lock, [&] { return number_ != own; });
        const std::vector<T> result = all;
        // Nobody begins the next one before both have the result.
        if (++left_ == 2) {
            left_ = 0;
            changed_.notify_all();
        } else {
            changed_.wait(lock, [&] { return left_ == 0; });
        }
        return result;
    }

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    int arrived_ = 0, left_ = 0;
    uint64_t number_ = 0;
};

/// 2 ranks of 2 slots, whose weights are expert ids. A transfer takes two steps.
struct cluster {
    meeting ranks;
    std::mutex mutex;
    std::vector<int32_t> weights = {0, 1, 2, 3};
};

class rank_engine : public own_engine {
  public:
    explicit rank_engine(cluster &all) : all_(all) {}

    std::vector<int64_t> sum_over_ranks(int64_t *counts, size_t size, CUstream_st *) override {
        return all_.ranks.combine<int64_t>(download(counts, size, stream), std::plus<int64_t>());
    }
    std::vector<uint64_t> max_over_ranks(std::vector<uint64_t> words) override {
        return all_.ranks.combine<uint64_t>(
            std::move(words), [](uint64_t one, uint64_t other) { return std::max(one, other); });
    }
    eplb::placement from_rank_0(eplb::placement own) override { return own; }
    void start(const eplb_transfer &transfer) override {
        const std::lock_guard<std::mutex> lock(all_.mutex);
        EXPECT_EQ(all_.weights[static_cast<size_t>(transfer.src_slot)], transfer.expert);
        staging.push_back(transfer);
        steps_to_go_ = 2;
    }
    bool has_arrived_everywhere() override {
        steps_to_go_ -= steps_to_go_ > 0;
        return max_over_ranks({steps_to_go_})[0] == 0;
    }
    void staging_to_slots(CUstream_st *) override {
        // Both ranks are here, so no slot is read any more.
        max_over_ranks({0});
        const std::lock_guard<std::mutex> lock(all_.mutex);
        for (const eplb_transfer &transfer : staging) {
            all_.weights[static_cast<size_t>(transfer.dst_slot)] = transfer.expert;
        }
        staging.clear();
    }
    void log(const char *message) override { messages.push_back(message); }

    engine_stream stream;
    std::vector<eplb_transfer> staging;
    std::vector<std::string> messages;

  private:
    cluster &all_;
    uint64_t steps_to_go_ = 0;
};

/// 16 iterations of a rank, whose tokens mostly choose experts 0 and 1.
std::vector<std::string> run_rank(cluster &all, int32_t rank) {
    engine::get().attach_thread();
    const layer_placement layer = {4, 2, {0, 1, 2, 3}};
    const auto placement = placement_of(layer);
    eplb::recorder_config counting;
    counting.num_ranks = 2;
    counting.rank = static_cast<uint32_t>(rank);
    counting.num_experts = 4;
    counting.experts_per_token = 1;
    counting.layer_ids = {3};
    counting.rolling_iterations = 4;
    counting.device = engine::get().device();
    eplb::rebalancer_config planning;
    planning.experts_per_token = 1;
    planning.min_tokens = planning.noise = -1; // There are few tokens.
    auto routing = a_config(layer, EPLB_RULE_ROUND_ROBIN);
    routing.rank = static_cast<uint32_t>(rank);
    routing.live = true;
    rank_engine own(all);
    const engine_array<int64_t> counts(4);
    live_loop loop{rank,
                   own,
                   eplb::recorder::create(counting),
                   eplb::rebalancer::create(planning, placement),
                   eplb::dispatch::create(placement, routing),
                   {},
                   counts.data(),
                   4};
    const std::vector<int32_t> chosen = {0, 1, 0, 1, 0, 1, 2, 3};
    const engine_array<int32_t> ids(8), slots(8);
    ids.upload(chosen, own.stream);
    for (int64_t iteration = 0; iteration < 16; iteration++) {
        loop.recorder.begin_iteration(iteration, own.stream);
        loop.recorder.count_ids(3, ids.data(), 8, nullptr, own.stream);
        loop.dispatch.route(3, ids.data(), 8, nullptr, slots.data(), own.stream);
        const auto routed = download(slots.data(), 8, own.stream);
        {
            const std::lock_guard<std::mutex> lock(all.mutex);
            for (size_t i = 0; i < 8; i++) {
                EXPECT_EQ(all.weights[static_cast<size_t>(routed[i])], chosen[i])
                    << "iteration " << iteration;
            }
        }
        // All ranks have done their forward pass.
        own.max_over_ranks({0});
        loop.step(iteration, 64, own.stream);
        own.max_over_ranks({0});
    }
    EXPECT_EQ(ids_of(loop.rebalancer.placement().layer_experts(3)), all.weights);
    return own.messages;
}

TEST(Recipes, LiveLoopMovesHotExpertsApartOnAllRanksAtOnce) {
    cluster all;
    std::vector<std::string> messages[2];
    std::thread other([&] { messages[1] = run_rank(all, 1); });
    messages[0] = run_rank(all, 0);
    other.join();
    // Plans after iterations 3 and 7: the first is carried out in two steps.
    EXPECT_EQ(messages[0][0], "2 slots of 1 layers receive an expert");
    EXPECT_EQ(messages[0], messages[1]);
    ASSERT_EQ(messages[0].size(), 4u);
    EXPECT_EQ(messages[0][3].find("balancedness is 1.0000"), 0u) << messages[0][3];
    for (const size_t rank : {0u, 1u}) {
        const auto own = all.weights.begin() + static_cast<ptrdiff_t>(2 * rank);
        EXPECT_EQ((own[0] < 2) + (own[1] < 2), 1) << "each rank has one of the hot experts";
    }
}

} // namespace
