#include "routed_experts.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace {

/// FNV-1a over the bits of all tensors.
uint64_t checksum_of(const mlp &weights) {
    uint64_t hash = 0xcbf29ce484222325;
    for (const std::vector<float> *tensor : weights.tensors()) {
        for (const float value : *tensor) {
            uint32_t bits;
            std::memcpy(&bits, &value, sizeof bits);
            hash = (hash ^ bits) * 0x100000001b3;
        }
    }
    return hash;
}

/// What goes before the tensors of an expert.
struct header {
    int32_t layer, expert;
    uint64_t checksum;
};

} // namespace

routed_experts::routed_experts(const model &model, size_t layer, const int32_t *slot_experts,
                               size_t slots_per_rank)
    : hidden_(model.config().hidden_size), choices_(model.config().num_experts_per_tok), layer_(layer),
      slots_(slots_per_rank) {
    for (size_t slot = 0; slot < slots_per_rank; slot++) {
        load(model, slot, slot_experts[slot], false);
    }
}

size_t routed_experts::add(transport &transport, const float *h, const int32_t *slot_ids,
                           const float *weights, size_t num_tokens, float *x, int32_t *received) const {
    const size_t slots_per_rank = slots_.size(), num_ranks = transport.num_ranks();
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
    std::vector<std::vector<size_t>> rows_of(slots_.size());
    for (size_t row = 0; row < slots.size(); row++) {
        rows_of.at(static_cast<size_t>(slots[row])).push_back(row);
    }
    std::vector<float> outputs(h.size()), in, out;
    for (size_t slot = 0; slot < slots_.size(); slot++) {
        const std::vector<size_t> &rows = rows_of[slot];
        if (rows.empty()) {
            continue;
        }
        if (!slots_[slot].weights) {
            throw std::runtime_error("a token is routed to an empty slot, " + std::to_string(slot) +
                                     " of this rank");
        }
        in.resize(rows.size() * hidden_);
        out.resize(in.size());
        for (size_t i = 0; i < rows.size(); i++) {
            std::copy_n(&h[rows[i] * hidden_], hidden_, &in[i * hidden_]);
        }
        slots_[slot].weights->forward(in.data(), rows.size(), out.data());
        for (size_t i = 0; i < rows.size(); i++) {
            std::copy_n(&out[i * hidden_], hidden_, &outputs[rows[i] * hidden_]);
        }
    }
    return outputs;
}

// ---- For live rebalancing ----

routed_experts::held_expert &routed_experts::place(size_t slot, bool in_staging) {
    return in_staging ? staged_[slot] : slot == slots_.size() ? spare_ : slots_.at(slot);
}

size_t routed_experts::packed_bytes() const {
    size_t bytes = sizeof(header);
    for (const held_expert &held : slots_) {
        if (held.weights) { // All experts have tensors of the same sizes.
            for (const std::vector<float> *tensor : held.weights->tensors()) {
                bytes += tensor->size() * sizeof(float);
            }
            break;
        }
    }
    return bytes;
}

std::vector<char> routed_experts::pack(size_t slot, int32_t expert) const {
    const held_expert &held = slot == slots_.size() ? spare_ : slots_.at(slot);
    if (held.expert != expert) {
        throw std::logic_error("slot " + std::to_string(slot) + " of this rank holds expert " +
                               std::to_string(held.expert) + ", and a plan reads expert " +
                               std::to_string(expert));
    }
    const header header = {static_cast<int32_t>(layer_), expert, held.checksum};
    std::vector<char> bytes(sizeof header);
    std::memcpy(bytes.data(), &header, sizeof header);
    for (const std::vector<float> *tensor : held.weights->tensors()) {
        const auto *data = reinterpret_cast<const char *>(tensor->data());
        bytes.insert(bytes.end(), data, data + tensor->size() * sizeof(float));
    }
    return bytes;
}

bool routed_experts::unpack(const std::vector<char> &bytes, size_t slot, int32_t expert, bool to_staging) {
    header header;
    std::memcpy(&header, bytes.data(), sizeof header);
    const auto any = std::find_if(slots_.begin(), slots_.end(),
                                  [](const held_expert &held) { return held.weights.has_value(); });
    mlp weights = *any->weights; // Of the right sizes.
    const char *from = bytes.data() + sizeof header;
    for (std::vector<float> *tensor : weights.tensors()) {
        std::memcpy(tensor->data(), from, tensor->size() * sizeof(float));
        from += tensor->size() * sizeof(float);
    }
    if (header.layer != static_cast<int32_t>(layer_) || header.expert != expert ||
        header.checksum != checksum_of(weights)) {
        return false;
    }
    place(slot, to_staging) = {expert, header.checksum, std::move(weights)};
    return true;
}

void routed_experts::copy(size_t from, size_t slot, int32_t expert, bool to_staging) {
    const auto arrived = staged_.find(from);
    const bool is_staged = arrived != staged_.end() && arrived->second.expert == expert;
    const held_expert held = is_staged ? arrived->second : place(from, false);
    if (held.expert != expert) {
        throw std::logic_error("slot " + std::to_string(from) + " of this rank holds expert " +
                               std::to_string(held.expert) + ", and a plan copies expert " +
                               std::to_string(expert));
    }
    place(slot, to_staging) = held;
}

void routed_experts::load(const model &model, size_t slot, int32_t expert, bool to_staging) {
    mlp weights = model.load_expert(layer_, static_cast<size_t>(expert));
    const uint64_t checksum = checksum_of(weights);
    place(slot, to_staging) = {expert, checksum, std::move(weights)};
}

void routed_experts::apply_staged() {
    for (auto &[slot, held] : staged_) {
        slots_.at(slot) = std::move(held);
    }
    staged_.clear();
}

void routed_experts::clear() {
    for (held_expert &held : slots_) {
        held = {};
    }
}
