#ifndef MOE_ENGINE_ROUTED_EXPERTS_H
#define MOE_ENGINE_ROUTED_EXPERTS_H

#include <cstdint>
#include <map>
#include <optional>
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

    // ---- For live rebalancing: slots are those of this rank, and its spare slot is the last. ----

    size_t num_slots() const { return slots_.size(); }

    /// The expert of a slot as bytes: what it is, a checksum from when it was loaded, and every tensor.
    std::vector<char> pack(size_t slot, int32_t expert) const;
    size_t packed_bytes() const;

    /// Takes an expert into a slot, or into staging for it. Returns false, and changes nothing, if the bytes
    /// are not of this expert or do not have its checksum.
    bool unpack(const std::vector<char> &bytes, size_t slot, int32_t expert, bool to_staging);
    /// The same from another slot of this rank; from staging where that slot receives this expert itself.
    void copy(size_t from, size_t slot, int32_t expert, bool to_staging);
    /// The same from the checkpoint.
    void load(const model &model, size_t slot, int32_t expert, bool to_staging);

    void apply_staged();
    void forget_staged() { staged_.clear(); }
    /// This rank is dead: no token may come any more.
    void clear();

  private:
    /// A slot's memory.
    struct held_expert {
        int32_t expert = -1; // -1: empty
        uint64_t checksum = 0;
        std::optional<mlp> weights;
    };
    held_expert &place(size_t slot, bool in_staging);

    std::vector<float> serve(const std::vector<int32_t> &slots, const std::vector<float> &h) const;

    size_t hidden_, choices_;
    size_t layer_;
    std::vector<held_expert> slots_;
    held_expert spare_;
    /// Experts that have arrived for slots that still serve others.
    std::map<size_t, held_expert> staged_;
};

#endif
