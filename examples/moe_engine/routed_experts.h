#ifndef MOE_ENGINE_ROUTED_EXPERTS_H
#define MOE_ENGINE_ROUTED_EXPERTS_H

#include <cstdint>
#include <vector>

#include "model/model.h"
#include "transport.h"

/// The routed experts of a MoE layer, spread over the ranks: this rank's slots and the expert in each.
class routed_experts {
  public:
    /// `slot_experts` are the experts of this rank's slots, in order. All ranks have equally many slots.
    routed_experts(const model &model, size_t layer, const int32_t *slot_experts, size_t slots_per_rank);

    /// x += the outputs of the experts in `slot_ids`, weighted, both [num_tokens][num_experts_per_tok]; h and
    /// x are [num_tokens][hidden_size]. Each token travels to the ranks of its slots and back. An output is
    /// added in the order of the token's choices, so that x does not depend on where the experts are.
    ///
    /// Returns the number of tokens that this rank served, those of other ranks included. Adds those of each
    /// of its slots to `received`, unless NULL, as the counters of an all-to-all library.
    size_t add(transport &transport, const float *h, const int32_t *slot_ids, const float *weights,
               size_t num_tokens, float *x, int32_t *received = nullptr) const;

  private:
    std::vector<float> serve(const std::vector<int32_t> &slots, const std::vector<float> &h) const;

    size_t hidden_, choices_;
    /// Slots that repeat an expert share its weights.
    std::vector<mlp> experts_;
    std::vector<size_t> expert_of_slot_;
};

#endif
