// A DeepSeek-V3-shaped model: dense layers, then mixture-of-experts layers. Every rank has a copy of it,
// except for the routed experts.
#ifndef MOE_ENGINE_MODEL_H
#define MOE_ENGINE_MODEL_H

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "batch.h"
#include "expert_gate.h"
#include "matrix.h"
#include "mlp.h"
#include "model_config.h"
#include "rms_norm.h"
#include "safetensors.h"
#include "self_attention.h"

/// Immutable, so that ranks that are threads share one. x is the residual stream and h its norm, both
/// [num_tokens][hidden_size]. A forward pass is
///
///     embed, and for each layer: attention, then
///         dense layer:  dense
///         MoE layer:    moe_norm, gate, the chosen experts (the caller's work), shared_expert
///     logits
class model {
  public:
    /// Reads config.json and model.safetensors of a folder. Throws std::runtime_error for bad files.
    explicit model(const std::string &folder);

    const model_config &config() const { return config_; }

    /// x = the tokens' embeddings. Throws std::invalid_argument for a token out of the vocabulary and a
    /// sequence longer than max_position_embeddings.
    void embed(const batch &sequences, float *x) const;
    /// x += attention
    void attention(size_t layer, const batch &sequences, float *x) const;
    /// x += the feed-forward block of a dense layer
    void dense(size_t layer, size_t num_tokens, float *x) const;
    /// h = the input of the gate and the experts of a MoE layer
    void moe_norm(size_t layer, const float *x, size_t num_tokens, float *h) const;
    /// The experts that each token chose and the weights of their outputs, [num_tokens][num_experts_per_tok],
    /// highest score first.
    void gate(size_t layer, const float *h, size_t num_tokens, int32_t *expert_ids, float *weights) const;
    /// x += the shared expert
    void shared_expert(size_t layer, const float *h, size_t num_tokens, float *x) const;
    /// logits[num_tokens][vocab_size]
    void logits(const float *x, size_t num_tokens, float *logits) const;

    /// Reads one routed expert of a MoE layer from the checkpoint.
    mlp load_expert(size_t layer, size_t expert) const;

  private:
    struct decoder_layer {
        rms_norm attention_norm;
        self_attention attention;
        rms_norm mlp_norm;
        mlp replicated_mlp;              // a dense layer's block, a MoE layer's shared expert
        std::optional<expert_gate> gate; // of a MoE layer
    };

    decoder_layer load_layer(size_t layer) const;
    mlp load_mlp(const std::string &prefix, size_t intermediate) const;
    rms_norm load_norm(const std::string &name) const;

    model_config config_;
    safetensors checkpoint_;
    std::vector<float> embeddings_; // [vocab_size][hidden_size]
    std::vector<decoder_layer> layers_;
    rms_norm norm_;
    matrix lm_head_;
};

#endif
