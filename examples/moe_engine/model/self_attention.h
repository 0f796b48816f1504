#ifndef MOE_ENGINE_SELF_ATTENTION_H
#define MOE_ENGINE_SELF_ATTENTION_H

#include <string>
#include <vector>

#include "batch.h"
#include "matrix.h"
#include "model_config.h"
#include "safetensors.h"

/// Causal self-attention with rotary position embeddings.
class self_attention {
  public:
    /// `prefix` starts the names of its tensors: "model.layers.0.self_attn."
    self_attention(const safetensors &checkpoint, const std::string &prefix, const model_config &config);

    /// y = o_proj(softmax(q k^T / sqrt(head_dim)) v), h and y being [num_tokens][hidden_size]; a token
    /// attends to its own sequence, up to itself.
    void forward(const batch &sequences, const float *h, float *y) const;

  private:
    void rotate(float *head, size_t position) const;
    void attend(float *qkv, size_t num_tokens, float *y) const;

    size_t num_heads_, head_dim_, width_; // width_: of all heads side by side
    matrix qkv_proj_, o_proj_;
    std::vector<float> cos_, sin_; // [max_position_embeddings][head_dim / 2]
};

#endif
