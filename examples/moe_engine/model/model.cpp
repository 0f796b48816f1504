#include "model.h"

#include <algorithm>
#include <stdexcept>

namespace {

std::string layer_prefix(size_t layer) { return "model.layers." + std::to_string(layer) + "."; }

void add(const std::vector<float> &y, float *x) {
    for (size_t i = 0; i < y.size(); ++i) {
        x[i] += y[i];
    }
}

} // namespace

model::model(const std::string &folder)
    : config_(read_model_config(folder + "/config.json")), checkpoint_(folder + "/model.safetensors"),
      embeddings_(checkpoint_.f32("model.embed_tokens.weight", {config_.vocab_size, config_.hidden_size})),
      norm_(load_norm("model.norm.weight")),
      lm_head_(checkpoint_.f32("lm_head.weight", {config_.vocab_size, config_.hidden_size}),
               config_.vocab_size, config_.hidden_size) {
    for (size_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
        layers_.push_back(load_layer(layer));
    }
}

void model::embed(const batch &sequences, float *x) const {
    for (size_t sequence = 0; sequence < sequences.num_sequences(); ++sequence) {
        const size_t length = sequences.starts[sequence + 1] - sequences.starts[sequence];
        if (length > config_.max_position_embeddings) {
            throw std::invalid_argument("sequence of " + std::to_string(length) + " tokens, at most " +
                                        std::to_string(config_.max_position_embeddings) + " expected");
        }
    }
    for (const int32_t token : sequences.tokens) {
        if (token < 0 || static_cast<size_t>(token) >= config_.vocab_size) {
            throw std::invalid_argument("token " + std::to_string(token) + ", one of a vocabulary of " +
                                        std::to_string(config_.vocab_size) + " expected");
        }
        x = std::copy_n(&embeddings_[token * config_.hidden_size], config_.hidden_size, x);
    }
}

void model::attention(size_t layer, const batch &sequences, float *x) const {
    std::vector<float> h(sequences.num_tokens() * config_.hidden_size), y(h.size());
    layers_[layer].attention_norm.apply(x, sequences.num_tokens(), h.data());
    layers_[layer].attention.forward(sequences, h.data(), y.data());
    add(y, x);
}

void model::dense(size_t layer, size_t num_tokens, float *x) const {
    std::vector<float> h(num_tokens * config_.hidden_size), y(h.size());
    layers_[layer].mlp_norm.apply(x, num_tokens, h.data());
    layers_[layer].replicated_mlp.forward(h.data(), num_tokens, y.data());
    add(y, x);
}

void model::moe_norm(size_t layer, const float *x, size_t num_tokens, float *h) const {
    layers_[layer].mlp_norm.apply(x, num_tokens, h);
}

void model::gate(size_t layer, const float *h, size_t num_tokens, int32_t *expert_ids, float *weights) const {
    layers_[layer].gate.value().choose(h, num_tokens, expert_ids, weights);
}

void model::shared_expert(size_t layer, const float *h, size_t num_tokens, float *x) const {
    std::vector<float> y(num_tokens * config_.hidden_size);
    layers_[layer].replicated_mlp.forward(h, num_tokens, y.data());
    add(y, x);
}

void model::logits(const float *x, size_t num_tokens, float *logits) const {
    std::vector<float> h(num_tokens * config_.hidden_size);
    norm_.apply(x, num_tokens, h.data());
    lm_head_.multiply(h.data(), num_tokens, logits);
}

mlp model::load_expert(size_t layer, size_t expert) const {
    const std::string prefix = layer_prefix(layer) + "mlp.experts.";
    const size_t num_experts = config_.n_routed_experts, hidden = config_.hidden_size,
                 intermediate = config_.moe_intermediate_size;
    return mlp(
        checkpoint_.f32_slice(prefix + "gate_proj.weight", {num_experts, intermediate, hidden}, expert),
        checkpoint_.f32_slice(prefix + "up_proj.weight", {num_experts, intermediate, hidden}, expert),
        checkpoint_.f32_slice(prefix + "down_proj.weight", {num_experts, hidden, intermediate}, expert),
        hidden, intermediate);
}

model::decoder_layer model::load_layer(size_t layer) const {
    const std::string prefix = layer_prefix(layer);
    const bool moe = config_.is_moe(layer);
    decoder_layer loaded = {
        load_norm(prefix + "input_layernorm.weight"),
        self_attention(checkpoint_, prefix + "self_attn.", config_),
        load_norm(prefix + "post_attention_layernorm.weight"),
        moe ? load_mlp(prefix + "mlp.shared_experts.",
                       config_.n_shared_experts * config_.moe_intermediate_size)
            : load_mlp(prefix + "mlp.", config_.intermediate_size),
        std::nullopt,
    };
    if (moe) {
        loaded.gate.emplace(
            checkpoint_.f32(prefix + "mlp.gate.weight", {config_.n_routed_experts, config_.hidden_size}),
            config_);
    }
    return loaded;
}

mlp model::load_mlp(const std::string &prefix, size_t intermediate) const {
    const size_t hidden = config_.hidden_size;
    return mlp(checkpoint_.f32(prefix + "gate_proj.weight", {intermediate, hidden}),
               checkpoint_.f32(prefix + "up_proj.weight", {intermediate, hidden}),
               checkpoint_.f32(prefix + "down_proj.weight", {hidden, intermediate}), hidden, intermediate);
}

rms_norm model::load_norm(const std::string &name) const {
    return rms_norm(checkpoint_.f32(name, {config_.hidden_size}), config_.rms_norm_eps);
}
