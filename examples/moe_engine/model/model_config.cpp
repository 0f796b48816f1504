#include "model_config.h"

#include <fstream>
#include <stdexcept>

#include <nlohmann/json.hpp>

#include "matrix.h"

namespace {

void expect(bool holds, const std::string &what) {
    if (!holds) {
        throw std::runtime_error(what + " expected");
    }
}

size_t count(const nlohmann::json &json, const std::string &name) {
    const nlohmann::json &value = json.at(name);
    expect(value.is_number_unsigned() && value > 0, name + " is " + value.dump() + ", a count");
    return value;
}

model_config parse(const nlohmann::json &json) {
    expect(json.at("model_type") == "deepseek_v3", "model_type deepseek_v3");
    expect(json.at("scoring_func") == "sigmoid", "scoring_func sigmoid");
    expect(json.at("norm_topk_prob") == true, "norm_topk_prob true");

    model_config config;
    config.hidden_size = count(json, "hidden_size");
    config.num_attention_heads = count(json, "num_attention_heads");
    config.head_dim = count(json, "head_dim");
    config.num_hidden_layers = count(json, "num_hidden_layers");
    config.first_k_dense_replace = count(json, "first_k_dense_replace");
    config.intermediate_size = count(json, "intermediate_size");
    config.moe_intermediate_size = count(json, "moe_intermediate_size");
    config.n_routed_experts = count(json, "n_routed_experts");
    config.n_shared_experts = count(json, "n_shared_experts");
    config.num_experts_per_tok = count(json, "num_experts_per_tok");
    config.n_group = count(json, "n_group");
    config.topk_group = count(json, "topk_group");
    config.routed_scaling_factor = json.at("routed_scaling_factor");
    config.rms_norm_eps = json.at("rms_norm_eps");
    config.rope_theta = json.at("rope_theta");
    config.max_position_embeddings = count(json, "max_position_embeddings");
    config.vocab_size = count(json, "vocab_size");

    for (const size_t width : {config.hidden_size, config.head_dim, config.intermediate_size,
                               config.moe_intermediate_size, config.n_routed_experts, config.vocab_size}) {
        expect(width % lanes == 0,
               "a width of " + std::to_string(width) + ", a multiple of " + std::to_string(lanes));
    }
    expect(config.n_routed_experts % config.n_group == 0 && config.experts_per_group() >= 2,
           "n_group " + std::to_string(config.n_group) + ", groups of two or more experts");
    expect(config.topk_group <= config.n_group, "topk_group at most n_group");
    expect(config.num_experts_per_tok <= config.topk_group * config.experts_per_group(),
           "num_experts_per_tok at most the experts of topk_group groups");
    return config;
}

} // namespace

model_config read_model_config(const std::string &path) {
    std::ifstream file(path);
    if (!file) {
        throw std::runtime_error(path + ": cannot be opened");
    }
    try {
        return parse(nlohmann::json::parse(file));
    } catch (const std::exception &e) {
        throw std::runtime_error(path + ": " + e.what());
    }
}
