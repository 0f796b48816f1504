#include "routed_experts.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>

routed_experts::routed_experts(const model &model, size_t layer, const int32_t *slot_experts,
                               size_t slots_per_rank)
    : hidden_(model.config().hidden_size), choices_(model.config().num_experts_per_tok) {
    std::map<int32_t, size_t> loaded;
    for (size_t slot = 0; slot < slots_per_rank; slot++) {
        const auto [place, is_new] = loaded.emplace(slot_experts[slot], experts_.size());
        if (is_new) {
            experts_.push_back(model.load_expert(layer, static_cast<size_t>(slot_experts[slot])));
        }
        expert_of_slot_.push_back(place->second);
    }
}

size_t routed_experts::add(transport &transport, const float *h, const int32_t *slot_ids,
                           const float *weights, size_t num_tokens, float *x, int32_t *received) const {
    const size_t slots_per_rank = expert_of_slot_.size(), num_ranks = transport.num_ranks();
    const size_t num_choices = num_tokens * choices_;

    // Sort the choices by rank.
    std::vector<size_t> send_counts(num_ranks);
    for (size_t choice = 0; choice < num_choices; choice++) {
        const auto slot = static_cast<size_t>(slot_ids[choice]);
        if (slot >= slots_per_rank * num_ranks) {
            throw std::runtime_error("a token is routed to slot " + std::to_string(slot_ids[choice]) +
                                     ", which no rank has");
        }
        send_counts[slot / slots_per_rank]++;
    }
    std::vector<size_t> next(num_ranks);
    for (size_t rank = 1; rank < num_ranks; rank++) {
        next[rank] = next[rank - 1] + send_counts[rank - 1];
    }
    std::vector<size_t> place_of(num_choices);
    std::vector<int32_t> slots(num_choices);
    std::vector<float> rows(num_choices * hidden_);
    for (size_t choice = 0; choice < num_choices; choice++) {
        const auto slot = static_cast<size_t>(slot_ids[choice]);
        const size_t place = place_of[choice] = next[slot / slots_per_rank]++;
        slots[place] = static_cast<int32_t>(slot % slots_per_rank);
        std::copy_n(h + choice / choices_ * hidden_, hidden_, &rows[place * hidden_]);
    }

    // Dispatch, compute, combine.
    const auto times_hidden = [this](std::vector<size_t> counts) {
        for (size_t &count : counts) {
            count *= hidden_;
        }
        return counts;
    };
    const std::vector<size_t> receive_counts = transport.all_to_all(send_counts);
    const std::vector<size_t> send_floats = times_hidden(send_counts),
                              receive_floats = times_hidden(receive_counts);
    const std::vector<int32_t> received_slots = transport.all_to_all(slots, send_counts, receive_counts);
    const std::vector<float> received_rows = transport.all_to_all(rows, send_floats, receive_floats);
    const std::vector<float> outputs =
        transport.all_to_all(serve(received_slots, received_rows), receive_floats, send_floats);

    for (size_t choice = 0; choice < num_choices; choice++) {
        const float *output = &outputs[place_of[choice] * hidden_];
        float *token = x + choice / choices_ * hidden_;
        for (size_t i = 0; i < hidden_; i++) {
            token[i] += weights[choice] * output[i];
        }
    }
    for (const int32_t slot : received_slots) {
        if (received != nullptr) {
            received[slot]++;
        }
    }
    return received_slots.size();
}

/// Returns the output for each row of h, from the expert in its slot.
std::vector<float> routed_experts::serve(const std::vector<int32_t> &slots,
                                         const std::vector<float> &h) const {
    std::vector<std::vector<size_t>> rows_of(experts_.size());
    for (size_t row = 0; row < slots.size(); row++) {
        rows_of[expert_of_slot_.at(static_cast<size_t>(slots[row]))].push_back(row);
    }
    std::vector<float> outputs(h.size()), in, out;
    for (size_t expert = 0; expert < experts_.size(); expert++) {
        const std::vector<size_t> &rows = rows_of[expert];
        in.resize(rows.size() * hidden_);
        out.resize(in.size());
        for (size_t i = 0; i < rows.size(); i++) {
            std::copy_n(&h[rows[i] * hidden_], hidden_, &in[i * hidden_]);
        }
        experts_[expert].forward(in.data(), rows.size(), out.data());
        for (size_t i = 0; i < rows.size(); i++) {
            std::copy_n(&out[i * hidden_], hidden_, &outputs[rows[i] * hidden_]);
        }
    }
    return outputs;
}
