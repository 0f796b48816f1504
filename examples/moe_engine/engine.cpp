// All calls of eplb that the engine makes are in this file.
#include "engine.h"

#include <eplb_tools.hpp>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <stdexcept>

namespace {

std::vector<int32_t> moe_layers_of(const model_config &config) {
    std::vector<int32_t> layers(config.num_hidden_layers - config.first_k_dense_replace);
    std::iota(layers.begin(), layers.end(), static_cast<int32_t>(config.first_k_dense_replace));
    return layers;
}

/// Adds its lifetime to a sum. The share of eplb's calls is reported, and must stay below 1 %.
class timer {
  public:
    explicit timer(double &sum) : sum_(sum) {}
    ~timer() { sum_ += std::chrono::duration<double>(clock::now() - start_).count(); }
    timer(const timer &) = delete;
    timer &operator=(const timer &) = delete;

  private:
    using clock = std::chrono::steady_clock;
    double &sum_;
    clock::time_point start_ = clock::now();
};

} // namespace

// ---- When the engine starts ----

engine::engine(const model &model, transport &transport, const engine_options &options)
    : model_(model), transport_(transport), moe_layers_(moe_layers_of(model.config())),
      placement_(load_placement(options.moe_load_balancer)), num_slots_(placement_.info().num_slots),
      device_(options.device, transport.rank()), recorder_(create_recorder(options.id_kind)),
      dispatch_(create_dispatch(options)), max_tokens_(static_cast<uint32_t>(options.max_tokens)),
      expert_ids_(device_, max_tokens_ * model.config().num_experts_per_tok), num_valid_(device_, 1),
      slot_ids_(device_, max_tokens_ * model.config().num_experts_per_tok) {
    check_same_placement();
    for (const int32_t layer : moe_layers_) {
        const auto experts = placement_.rank_experts(layer, static_cast<uint32_t>(transport.rank()));
        experts_.emplace_back(model, static_cast<size_t>(layer), experts.data(), experts.size());
    }
}

/// Step 3: the expert of each slot.
eplb::placement engine::load_placement(const std::string &path) const {
    const auto num_experts = static_cast<uint32_t>(model_.config().n_routed_experts);
    const auto num_ranks = static_cast<uint32_t>(transport_.num_ranks());
    if (path.empty()) {
        std::vector<int32_t> slot_experts;
        for (size_t layer = 0; layer < moe_layers_.size(); layer++) {
            for (uint32_t expert = 0; expert < num_experts; expert++) {
                slot_experts.push_back(static_cast<int32_t>(expert));
            }
        }
        eplb::placement_config config;
        config.num_experts = num_experts;
        config.num_ranks = num_ranks;
        return eplb::placement::create(config, moe_layers_, slot_experts);
    }
    eplb::placement_load_options expected; // The file must match it.
    expected.num_experts = num_experts;
    expected.num_ranks = num_ranks;
    expected.layer_ids = moe_layers_;
    return eplb::placement::load(path, expected);
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
eplb::recorder engine::create_recorder(eplb_id_kind id_kind) const {
    eplb::recorder_config config;
    config.rank = static_cast<uint32_t>(transport_.rank());
    config.num_ranks = static_cast<uint32_t>(transport_.num_ranks());
    config.id_kind = id_kind;
    config.num_experts =
        id_kind == EPLB_ID_KIND_SLOT ? num_slots_ : static_cast<uint32_t>(model_.config().n_routed_experts);
    config.experts_per_token = static_cast<uint32_t>(model_.config().num_experts_per_tok);
    config.layer_ids = moe_layers_;
    config.device = device_.ordinal();
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
    {
        const timer timer(eplb_seconds_);
        recorder_.begin_iteration(iteration, device_.stream());
    }
    const model_config &config = model_.config();
    step_result result;
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
        result.served.push_back(
            experts.add(transport_, h.data(), slot_ids, weights.data(), num_tokens, x.data()));
        model_.shared_expert(layer, h.data(), num_tokens, x.data());
        result.topk_ids.push_back(std::move(expert_ids));
    }
    result.logits.resize(num_tokens * config.vocab_size);
    model_.logits(x.data(), num_tokens, result.logits.data());
    return result;
}

/// Returns the slots for a layer's expert ids. The recorder counts in the same pass. On a GPU this is one
/// CUDA graph a layer, captured in the first iteration, whether iterations are counted or not.
const int32_t *engine::route(int32_t layer, const std::vector<int32_t> &expert_ids) {
    std::copy(expert_ids.begin(), expert_ids.end(), expert_ids_.host());
    *num_valid_.host() = static_cast<int32_t>(expert_ids.size() / model_.config().num_experts_per_tok);
    const timer timer(eplb_seconds_);
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

// ---- At any time ----

/// The text of a scrape. Every sample is labelled with its rank, since a process may have several.
std::string engine::metrics() const {
    const eplb::metrics_labels rank = {{"rank", std::to_string(transport_.rank())}};
    eplb::metrics metrics = eplb::metrics::create();
    metrics.add(recorder_, rank);
    metrics.add(placement_, rank);
    metrics.add(dispatch_, rank);
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
