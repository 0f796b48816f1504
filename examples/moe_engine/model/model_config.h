// The shape of the model, from its config.json.
#ifndef MOE_ENGINE_MODEL_CONFIG_H
#define MOE_ENGINE_MODEL_CONFIG_H

#include <cstddef>
#include <string>

struct model_config {
    size_t hidden_size;
    size_t num_attention_heads;
    size_t head_dim;
    size_t num_hidden_layers;
    size_t first_k_dense_replace; // the layers before this one are dense, the others MoE
    size_t intermediate_size;
    size_t moe_intermediate_size;
    size_t n_routed_experts;
    size_t n_shared_experts;
    size_t num_experts_per_tok;
    size_t n_group;
    size_t topk_group;
    float routed_scaling_factor;
    float rms_norm_eps;
    float rope_theta;
    size_t max_position_embeddings;
    size_t vocab_size;

    bool is_moe(size_t layer) const { return layer >= first_k_dense_replace; }
    size_t experts_per_group() const { return n_routed_experts / n_group; }
};

/// Throws std::runtime_error for a file that cannot be read, and for an unsupported model.
model_config read_model_config(const std::string &path);

#endif
