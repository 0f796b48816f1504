#include "mlp.h"

#include "exp.h"

namespace {

std::vector<float> concatenate(std::vector<float> first, const std::vector<float> &second) {
    first.insert(first.end(), second.begin(), second.end());
    return first;
}

} // namespace

mlp::mlp(std::vector<float> gate, const std::vector<float> &up, const std::vector<float> &down, size_t hidden,
         size_t intermediate)
    : intermediate_(intermediate), gate_up_(concatenate(std::move(gate), up), 2 * intermediate, hidden),
      down_(down, hidden, intermediate) {}

void mlp::forward(const float *h, size_t num_tokens, float *y) const {
    std::vector<float> gate_up(num_tokens * 2 * intermediate_), activation(num_tokens * intermediate_);
    gate_up_.multiply(h, num_tokens, gate_up.data());
    for (size_t token = 0; token < num_tokens; ++token) {
        const float *gate = &gate_up[token * 2 * intermediate_];
        const float *up = gate + intermediate_;
        float *active = &activation[token * intermediate_];
        for (size_t i = 0; i < intermediate_; ++i) {
            active[i] = gate[i] / (1 + fast_exp(-gate[i])) * up[i];
        }
    }
    down_.multiply(activation.data(), num_tokens, y);
}
