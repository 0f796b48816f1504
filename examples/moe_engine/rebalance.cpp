// Live rebalancing: the page that other engines copy, in the order of the loop. When ranks disagree or one
// dies: rebalance_failures.cpp.
//
// eplb counts, plans and changes tables. The engine has the collectives, the weights and the say when.
#include "rebalance.h"

#include <algorithm>
#include <cstdio>

#include "timer.h"

namespace {

eplb::rebalancer create_rebalancer(const rebalance_options &options, const rebalance::engine_parts &engine,
                                   int ranks_per_node) {
    eplb::rebalancer_config config;
    config.experts_per_token = static_cast<uint32_t>(engine.weights.config().num_experts_per_tok);
    config.num_windows = options.window;
    config.num_threads = 1; // The ranks share this machine.
    for (int rank = 0; ranks_per_node > 0 && rank < engine.ranks.num_ranks(); rank++) {
        config.rank_to_node.push_back(rank / ranks_per_node);
    }
    return eplb::rebalancer::create(config, engine.placement);
}

} // namespace

rebalance::rebalance(const rebalance_options &options, const engine_parts &engine, int ranks_per_node)
    : options_(options), engine_(engine), rebalancer_(create_rebalancer(options, engine, ranks_per_node)),
      counts_(engine.forward, engine.layers.size() * engine.weights.config().n_routed_experts),
      active_(static_cast<size_t>(engine.ranks.num_ranks()), 1),
      transfers_(engine.weights, engine.ranks, engine.forward, engine.experts.front().packed_bytes(),
                 options.spoil_transfer) {
    limits_.max_layer_moves = options.max_moves;
    limits_.node_price = limits_.remote_price = options.move_price;
    limits_.buffering = options.buffering;
    totals_.by_nccl = transfers_.by_nccl();
    if (options.kill_rank >= engine.ranks.num_ranks()) {
        throw std::invalid_argument("--kill_rank " + std::to_string(options.kill_rank) + ": there are " +
                                    std::to_string(engine.ranks.num_ranks()) + " ranks");
    }
}

// ---- After a step: counts, a plan, and whether all ranks have the same one ----

void rebalance::after_step(int64_t iteration, size_t num_tokens) {
    tokens_ += static_cast<int64_t>(num_tokens);
    if ((iteration + 1) % options_.every == 0) {
        plan();
    }
}

void rebalance::plan() {
    // 1. The counts of all ranks on every rank: the engine's all-reduce, here with the tokens behind them.
    std::vector<int64_t> counts;
    {
        const timer timer(totals_.eplb_seconds);
        eplb::snapshot(engine_.recorder, counts_.host(), 1, engine_.forward.stream());
        engine_.forward.synchronize();
        counts.assign(counts_.host(), counts_.host() + counts_.size());
    }
    counts.push_back(tokens_);
    tokens_ = 0;
    counts = engine_.ranks.sum(counts);
    const auto num_tokens = static_cast<uint64_t>(counts.back());
    counts.pop_back();

    // 2. A plan on every rank, from the same counts.
    std::optional<eplb::plan> planned;
    eplb_plan_info info = EPLB_PLAN_INFO_INIT;
    uint64_t words[2] = {EPLB_PLAN_DISAGREE, EPLB_PLAN_DISAGREE};
    try {
        const timer timer(totals_.eplb_seconds);
        rebalancer_.observe(counts, 1, num_tokens);
        planned = rebalancer_.plan(limits_);
        info = planned->info();
        std::copy_n(info.agreement, 2, words);
    } catch (const eplb::error &error) { // The others must know, so this rank goes on to the words.
        std::fprintf(stderr, "rank %d: %s\n", engine_.ranks.rank(), error.what());
    }

    // 3. The same one? Nothing has moved yet.
    if (!agree(words[0], words[1])) {
        if (planned && info.decision == EPLB_DECISION_MOVE) {
            rebalancer_.abort(*planned);
        }
        start_again();
    } else if (info.decision == EPLB_DECISION_MOVE) {
        layers_left_.assign(info.layer_ids, info.layer_ids + info.num_layers);
        plan_ = std::move(planned);
        totals_.plans++;
    } else {
        totals_.kept[eplb_keep_reason_string(info.reason)]++;
    }
}

/// One word and its complement, reduced by maximum, are each other's complement if all ranks have the same.
bool rebalance::agree(uint64_t first, uint64_t second) const {
    const std::vector<uint64_t> most = engine_.ranks.max(std::vector<uint64_t>{first, second});
    return most[0] == ~most[1];
}

// ---- Before a step: one layer at a time, at the same step on all ranks ----

void rebalance::before_step(int64_t iteration) {
    if (iteration == options_.kill_iteration) {
        kill(options_.kill_rank);
    }
    if (plan_) {
        move_layer();
    }
}

void rebalance::move_layer() {
    const int32_t layer = layers_left_.front();
    routed_experts &experts = engine_.experts[index_of(layer)];
    eplb_planned_layer info;
    {
        const timer timer(totals_.eplb_seconds);
        info = plan_->layer_info(layer);
    }
    if (info.num_commits == 2) { // Drain: first a table without the slots that will be overwritten.
        commit(layer);
    }
    // 4. Every tensor of each expert travels, and nothing routes to it yet. One word of each rank says
    // whether
    //    the layer has arrived everywhere: the only point where ranks wait for each other.
    std::vector<eplb_transfer> transfers;
    {
        const timer timer(totals_.eplb_seconds);
        transfers = plan_->transfers(layer, engine_.ranks.rank());
    }
    const uint64_t arrived = transfers_.run(transfers, info, experts) ? 0 : 1;
    if (engine_.ranks.max(std::vector<uint64_t>{arrived})[0] != 0) {
        rebalancer_.abort(*plan_); // The layer stays as it is; the next plan starts from there.
        experts.forget_staged();
        plan_.reset();
        totals_.aborted++;
        return;
    }
    // 5. On the stream of the forward pass: staging to slots, then the table.
    experts.apply_staged();
    commit(layer);
    totals_.layers++;
    totals_.moves += info.num_moves;
    layers_left_.erase(layers_left_.begin());
    if (layers_left_.empty()) {
        plan_.reset();
    }
}

/// The flip: the next step routes by the new table. CUDA graphs that were captured before do, too.
void rebalance::commit(int32_t layer) {
    {
        const timer timer(totals_.eplb_seconds);
        eplb::update_layer(engine_.dispatch, *plan_, layer, engine_.forward.stream());
        rebalancer_.commit_layer(*plan_, layer);
    }
    totals_.commits++;
    engine_.on_commit(index_of(layer));
}

size_t rebalance::index_of(int32_t layer) const {
    return static_cast<size_t>(std::find(engine_.layers.begin(), engine_.layers.end(), layer) -
                               engine_.layers.begin());
}
