#ifndef MOE_ENGINE_MLP_H
#define MOE_ENGINE_MLP_H

#include <array>
#include <cstddef>
#include <vector>

#include "matrix.h"

/// A feed-forward block: of a dense layer, a shared expert or a routed expert. May be shared by threads.
class mlp {
  public:
    /// gate and up are [intermediate][hidden], down is [hidden][intermediate].
    mlp(std::vector<float> gate, const std::vector<float> &up, const std::vector<float> &down, size_t hidden,
        size_t intermediate);

    /// y = (silu(h gate^T) * (h up^T)) down^T for each row of h[num_tokens][hidden]
    void forward(const float *h, size_t num_tokens, float *y) const;

    /// All its tensors, which move together.
    std::array<std::vector<float> *, 2> tensors() { return {&gate_up_.weights(), &down_.weights()}; }
    std::array<const std::vector<float> *, 2> tensors() const {
        return {&gate_up_.weights(), &down_.weights()};
    }

  private:
    size_t intermediate_;
    matrix gate_up_, down_;
};

#endif
