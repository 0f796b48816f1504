// All calls of eplb that the engine makes are in this file, but for those of live rebalancing: rebalance.cpp.
#include "engine.h"

#include <eplb_tools.hpp>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <stdexcept>

#include "timer.h"

namespace {

std::vector<int32_t> moe_layers_of(const model_config &config) {
    std::vector<int32_t> layers(config.num_hidden_layers - config.first_k_dense_replace);
    std::iota(layers.begin(), layers.end(), static_cast<int32_t>(config.first_k_dense_replace));
    return layers;
}

/// The experts or slots that ids name.
size_t num_ids_of(const engine_options &options, size_t num_slots, const model_config &config) {
    return options.id_kind == EPLB_ID_KIND_SLOT ? num_slots : config.n_routed_experts;
}

} // namespace

// ---- When the engine starts ----

engine::engine(const model &model, transport &transport, const engine_options &options)
    : model_(model), transport_(transport), moe_layers_(moe_layers_of(model.config())),
      placement_(load_placement(options)), num_slots_(placement_.info().num_slots),
      device_(options.device, transport.rank()), recorder_(create_recorder(options)),
      dispatch_(create_dispatch(options)), max_tokens_(static_cast<uint32_t>(options.max_tokens)),
      expert_ids_(device_, max_tokens_ * model.config().num_experts_per_tok), num_valid_(device_, 1),
      slot_ids_(device_, max_tokens_ * model.config().num_experts_per_tok), options_(options) {
    check_same_placement();
    if (device_.other() != nullptr) {
        prepare_other_device();
    } else if (options.added_counts != 0) {
        throw std::invalid_argument("--counters needs --device other; elsewhere eplb counts the ids");
    }
    for (const int32_t layer : moe_layers_) {
        const auto experts = placement_.rank_experts(layer, static_cast<uint32_t>(transport.rank()));
        experts_.emplace_back(model, static_cast<size_t>(layer), experts.data(), experts.size());
    }
    if (options.rebalance.every > 0) {
        const rebalance::engine_parts parts = {model_,
                                               transport_,
                                               device_,
                                               recorder_,
                                               dispatch_,
                                               placement_,
                                               moe_layers_,
                                               experts_,
                                               [this](size_t layer) {
                                                   if (device_.other() != nullptr) {
                                                       copy_tables(layer);
                                                   }
                                               }};
        rebalance_ = std::make_unique<rebalance>(options.rebalance, parts, options.ranks_per_node);
    }
}

/// Step 3: the expert of each slot.
eplb::placement engine::load_placement(const engine_options &options) const {
    const auto num_experts = static_cast<uint32_t>(model_.config().n_routed_experts);
    const auto num_ranks = static_cast<uint32_t>(transport_.num_ranks());
    if (options.moe_load_balancer.empty()) { // The experts in order, and again from the first in spare slots.
        const uint32_t num_slots = options.num_slots == 0 ? num_experts : options.num_slots;
        std::vector<int32_t> slot_experts;
        for (size_t layer = 0; layer < moe_layers_.size(); layer++) {
            for (uint32_t slot = 0; slot < num_slots; slot++) {
                slot_experts.push_back(static_cast<int32_t>(slot % num_experts));
            }
        }
        eplb::placement_config config;
        config.num_experts = num_experts;
        config.num_slots = num_slots;
        config.num_ranks = num_ranks;
        return eplb::placement::create(config, moe_layers_, slot_experts);
    }
    eplb::placement_load_options expected; // The file must match it.
    expected.num_experts = num_experts;
    expected.num_ranks = num_ranks;
    expected.layer_ids = moe_layers_;
    return eplb::placement::load(options.moe_load_balancer, expected);
}

/// Ranks with different placements would send tokens to ranks without their experts.
void engine::check_same_placement() {
    const uint64_t hash = placement_.hash();
    const std::vector<uint64_t> mine(static_cast<size_t>(transport_.num_ranks()), hash);
    if (transport_.all_to_all(mine) != mine) {
        throw std::runtime_error("the ranks have loaded different configuration files");
    }
}

/// Step 1: counts the iterations of EXPERT_STATISTIC_ITER_RANGE; without it, every call does nothing.
eplb::recorder engine::create_recorder(const engine_options &options) const {
    eplb::recorder_config config;
    config.rank = static_cast<uint32_t>(transport_.rank());
    config.num_ranks = static_cast<uint32_t>(transport_.num_ranks());
    config.id_kind = options.id_kind;
    config.added_counts = options.added_counts;
    config.num_experts = static_cast<uint32_t>(num_ids_of(options, num_slots_, model_.config()));
    config.experts_per_token = static_cast<uint32_t>(model_.config().num_experts_per_tok);
    config.layer_ids = moe_layers_;
    config.device = device_.ordinal();
    config.rolling_iterations = static_cast<uint64_t>(options.rebalance.every); // 0: no snapshots
    config.from_env();
    return eplb::recorder::create(config);
}

/// Step 3: the tables that turn expert ids into slot ids.
eplb::dispatch engine::create_dispatch(const engine_options &options) const {
    eplb::dispatch_config config;
    config.rank = static_cast<uint32_t>(transport_.rank());
    config.num_ranks = static_cast<uint32_t>(transport_.num_ranks());
    config.experts_per_token = static_cast<uint32_t>(model_.config().num_experts_per_tok);
    config.layer_ids = moe_layers_;
    config.device = device_.ordinal();
    config.rule = options.rule;
    config.offset_by_rank = true;
    config.live = options.rebalance.every > 0;
    for (int rank = 0; options.ranks_per_node > 0 && rank < transport_.num_ranks(); rank++) {
        config.rank_to_node.push_back(rank / options.ranks_per_node);
    }
    return eplb::dispatch::create(placement_, config);
}

// ---- In every iteration ----

step_result engine::step(int64_t iteration, const batch &sequences) {
    const size_t num_tokens = sequences.num_tokens();
    if (num_tokens > max_tokens_) {
        throw std::invalid_argument("a batch of " + std::to_string(num_tokens) + " tokens, " +
                                    std::to_string(max_tokens_) + " at most expected");
    }
    step_result result;
    const auto start = std::chrono::steady_clock::now();
    if (rebalance_) {
        const rebalance_totals before = rebalance_->totals();
        rebalance_->before_step(iteration);
        result.has_commit = rebalance_->totals().commits > before.commits;
        result.moves = rebalance_->totals().moves - before.moves;
    }
    {
        const timer timer(eplb_seconds_);
        recorder_.begin_iteration(iteration, device_.stream());
    }
    forward(sequences, result);
    if (device_.other() != nullptr) {
        add_counters();
    }
    if (rebalance_) {
        rebalance_->after_step(iteration, num_tokens);
    }
    result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return result;
}

void engine::forward(const batch &sequences, step_result &result) {
    const size_t num_tokens = sequences.num_tokens();
    const model_config &config = model_.config();
    std::vector<float> x(num_tokens * config.hidden_size), h(x.size());
    std::vector<float> weights(num_tokens * config.num_experts_per_tok);
    model_.embed(sequences, x.data());
    for (size_t layer = 0; layer < config.num_hidden_layers; layer++) {
        model_.attention(layer, sequences, x.data());
        if (!config.is_moe(layer)) {
            model_.dense(layer, num_tokens, x.data());
            continue;
        }
        std::vector<int32_t> expert_ids(weights.size());
        model_.moe_norm(layer, x.data(), num_tokens, h.data());
        model_.gate(layer, h.data(), num_tokens, expert_ids.data(), weights.data());
        const int32_t *slot_ids = route(static_cast<int32_t>(layer), expert_ids);
        const routed_experts &experts = experts_[layer - config.first_k_dense_replace];
        result.served.push_back(experts.add(transport_, h.data(), slot_ids, weights.data(), num_tokens,
                                            x.data(),
                                            received_counters(layer - config.first_k_dense_replace)));
        model_.shared_expert(layer, h.data(), num_tokens, x.data());
        result.topk_ids.push_back(std::move(expert_ids));
    }
    result.logits.resize(num_tokens * config.vocab_size);
    model_.logits(x.data(), num_tokens, result.logits.data());
}

/// Returns the slots for a layer's expert ids. The recorder counts in the same pass. On a GPU this is one
/// CUDA graph a layer, captured in the first iteration, whether iterations are counted or not.
const int32_t *engine::route(int32_t layer, const std::vector<int32_t> &expert_ids) {
    std::copy(expert_ids.begin(), expert_ids.end(), expert_ids_.host());
    *num_valid_.host() = static_cast<int32_t>(expert_ids.size() / model_.config().num_experts_per_tok);
    const timer timer(eplb_seconds_);
    if (device_.other() != nullptr) {
        route_on_other_device(static_cast<size_t>(layer) - model_.config().first_k_dense_replace);
        return slot_ids_.host();
    }
    device_.replay(static_cast<size_t>(layer), [&] {
        expert_ids_.upload();
        num_valid_.upload();
        dispatch_.route_and_count(recorder_, layer, expert_ids_.on_device(), max_tokens_,
                                  num_valid_.on_device(), slot_ids_.on_device(), device_.stream());
        slot_ids_.download();
    });
    device_.synchronize();
    return slot_ids_.host();
}

// ---- On a device that eplb does not know ----
//
// Recorder and dispatch are on the host. The device counts with its own kernels.

/// Copies the tables for the device's own kernel of round robin. Clears the counters: eplb's last values of
/// cumulative counters are 0 at first.
void engine::prepare_other_device() {
    for (size_t layer = 0; layer < moe_layers_.size(); layer++) {
        const eplb_dispatch_tables tables = dispatch_.tables(moe_layers_[layer]);
        const size_t size = 2 * size_t(tables.num_experts) + tables.num_slots;
        tables_memory_.push_back(std::make_unique<mirrored<int32_t>>(device_, size));
        const int32_t *memory = tables_memory_.back()->on_device();
        tables_.push_back({memory, memory + tables.num_experts, memory + 2 * tables.num_experts,
                           tables.num_experts, tables.num_slots});
        copy_tables(layer);
    }
    num_counters_ = num_ids_of(options_, num_slots_, model_.config());
    if ((options_.added_counts & EPLB_ADDED_COUNTS_BY_LOCAL_SLOT) != 0) {
        num_counters_ /= static_cast<size_t>(transport_.num_ranks());
    }
    counters_ = std::make_unique<mirrored<int32_t>>(device_, moe_layers_.size() * num_counters_);
    std::fill_n(counters_->host(), moe_layers_.size() * num_counters_, 0);
    counters_->upload();
    device_.synchronize();
}

/// When a layer's table is new or has changed.
void engine::copy_tables(size_t layer) {
    const eplb_dispatch_tables tables = dispatch_.tables(moe_layers_[layer]);
    const mirrored<int32_t> &memory = *tables_memory_[layer];
    int32_t *to = std::copy_n(tables.replica_count, tables.num_experts, memory.host());
    to = std::copy_n(tables.replica_start, tables.num_experts, to);
    std::copy_n(tables.slot_ids, tables.num_slots, to);
    memory.upload();
    device_.synchronize();
}

/// Round robin by the device's own kernel. Other rules on the host, between two copies.
void engine::route_on_other_device(size_t layer) {
    other_device &device = *device_.other();
    const size_t choices = model_.config().num_experts_per_tok;
    expert_ids_.upload();
    num_valid_.upload();
    const other_device::batch experts = {expert_ids_.on_device(), num_valid_.on_device(), max_tokens_,
                                         choices};
    if (options_.rule == EPLB_RULE_ROUND_ROBIN) {
        device.route_round_robin(experts, tables_[layer], static_cast<size_t>(transport_.rank()),
                                 slot_ids_.on_device());
    } else {
        expert_ids_.download();
        device_.synchronize();
        dispatch_.route(moe_layers_[layer], expert_ids_.host(), max_tokens_, num_valid_.host(),
                        slot_ids_.host());
        slot_ids_.upload();
    }
    other_device::batch counted = experts;
    if (options_.id_kind == EPLB_ID_KIND_SLOT) {
        counted.ids = slot_ids_.on_device();
    }
    if (received_counters(layer) == nullptr) {
        device.count(counted, counters_->on_device() + layer * num_counters_, num_counters_);
    }
    slot_ids_.download();
    device_.synchronize();
}

/// Once an iteration, whether it is counted or not: cumulative counters need every call. One copy has the
/// counters of all layers.
void engine::add_counters() {
    const timer timer(eplb_seconds_);
    if (received_counters(0) == nullptr) {
        counters_->download();
        if ((options_.added_counts & EPLB_ADDED_COUNTS_CUMULATIVE) == 0) {
            device_.other()->fill_with_zeros(counters_->on_device(),
                                             moe_layers_.size() * num_counters_ * sizeof(int32_t));
        }
        device_.synchronize();
    }
    for (size_t layer = 0; layer < moe_layers_.size(); layer++) {
        recorder_.add_counts(moe_layers_[layer], counters_->host() + layer * num_counters_, EPLB_DTYPE_INT32);
    }
}

/// The counters of a layer that the all-to-all adds to, in host memory like the all-to-all; NULL where the
/// device counts.
int32_t *engine::received_counters(size_t layer) const {
    const bool by_slot = (options_.added_counts & EPLB_ADDED_COUNTS_BY_LOCAL_SLOT) != 0;
    return by_slot ? counters_->host() + layer * num_counters_ : nullptr;
}

// ---- At any time ----

/// The text of a scrape. Every sample is labelled with its rank, since a process may have several.
std::string engine::metrics() const {
    const eplb::metrics_labels rank = {{"rank", std::to_string(transport_.rank())}};
    eplb::metrics metrics = eplb::metrics::create();
    metrics.add(recorder_, rank);
    metrics.add(placement_, rank);
    metrics.add(dispatch_, rank);
    if (rebalance_) {
        eplb::add(metrics, rebalance_->rebalancer(), rank);
    }
    return metrics.text();
}

// ---- When it ends ----

std::string engine::finish() {
    try {
        recorder_.dump(device_.stream());
        recorder_.flush();
        return "";
    } catch (const eplb::error &error) {
        return error.what();
    }
}
