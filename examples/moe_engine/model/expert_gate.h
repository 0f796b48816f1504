#ifndef MOE_ENGINE_EXPERT_GATE_H
#define MOE_ENGINE_EXPERT_GATE_H

#include <cstddef>
#include <cstdint>
#include <vector>

#include "matrix.h"
#include "model_config.h"

/// Chooses each token's experts: the best of the best groups, by sigmoid scores.
class expert_gate {
  public:
    /// weight is [n_routed_experts][hidden_size].
    expert_gate(const std::vector<float> &weight, const model_config &config);

    /// For each row of h[num_tokens][hidden_size] the experts and the weights of their outputs, both
    /// [num_tokens][num_experts_per_tok]: highest score first, of equal scores the lower expert first.
    void choose(const float *h, size_t num_tokens, int32_t *expert_ids, float *weights) const;

  private:
    void choose_experts(const float *scores, int32_t *expert_ids) const;

    model_config config_;
    matrix weight_;
};

#endif
