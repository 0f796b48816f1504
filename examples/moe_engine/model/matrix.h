// Matrix products, in an order of sums that does not depend on how many rows are multiplied at once: a
// token's result is the same, bit for bit, whichever tokens it is computed with. Expert parallelism relies on
// it.
#ifndef MOE_ENGINE_MATRIX_H
#define MOE_ENGINE_MATRIX_H

#include <cstddef>
#include <vector>

/// How many outputs are summed side by side, in vector registers; every matrix has a multiple of this many.
constexpr size_t lanes = 16;

/// Rows of floats that lie `stride` apart.
struct const_rows {
    const float *data;
    size_t stride;
};
struct rows {
    float *data;
    size_t stride;
};

/// y[num_rows][out] = x[num_rows][in] w[in][out]; each y is summed over the inputs from first to last.
void multiply(const_rows x, const_rows w, rows y, size_t num_rows, size_t in, size_t out);

/// The weights of a projection.
class matrix {
  public:
    /// `weights` is [out][in], as in a checkpoint; kept as [in][out], so that outputs lie side by side.
    matrix(const std::vector<float> &weights, size_t out, size_t in);

    /// y[num_rows][out] = x[num_rows][in] W^T
    void multiply(const float *x, size_t num_rows, float *y) const;

    /// [in][out]
    std::vector<float> &weights() { return weights_; }
    const std::vector<float> &weights() const { return weights_; }

  private:
    size_t out_, in_;
    std::vector<float> weights_;
};

#endif
