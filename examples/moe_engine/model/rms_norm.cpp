#include "rms_norm.h"

#include <cmath>

void rms_norm::apply(const float *x, size_t num_rows, float *h) const {
    const size_t width = weight_.size();
    for (size_t row = 0; row < num_rows; ++row, x += width, h += width) {
        float squares = 0;
        for (size_t i = 0; i < width; ++i) {
            squares += x[i] * x[i];
        }
        const float scale = 1 / std::sqrt(squares / width + eps_);
        for (size_t i = 0; i < width; ++i) {
            h[i] = x[i] * scale * weight_[i];
        }
    }
}
