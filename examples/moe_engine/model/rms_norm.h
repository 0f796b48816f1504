#ifndef MOE_ENGINE_RMS_NORM_H
#define MOE_ENGINE_RMS_NORM_H

#include <cstddef>
#include <vector>

class rms_norm {
  public:
    rms_norm(std::vector<float> weight, float eps) : weight_(std::move(weight)), eps_(eps) {}

    /// h = x / sqrt(mean(x^2) + eps) * weight for each row of x[num_rows][hidden]
    void apply(const float *x, size_t num_rows, float *h) const;

  private:
    std::vector<float> weight_;
    float eps_;
};

#endif
