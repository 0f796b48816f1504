#include "self_attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "exp.h"

namespace {

/// The three projections as one, its outputs being q, k and v side by side.
matrix read_qkv(const safetensors &checkpoint, const std::string &prefix, size_t out, size_t in) {
    std::vector<float> weights;
    for (const char *name : {"q_proj.weight", "k_proj.weight", "v_proj.weight"}) {
        const std::vector<float> one = checkpoint.f32(prefix + name, {out, in});
        weights.insert(weights.end(), one.begin(), one.end());
    }
    return matrix(weights, 3 * out, in);
}

void softmax(float *scores, size_t count) {
    float highest = scores[0];
    for (size_t i = 1; i < count; ++i) {
        highest = std::max(highest, scores[i]);
    }
    for (size_t i = 0; i < count; ++i) {
        scores[i] = fast_exp(scores[i] - highest);
    }
    const float scale = 1 / std::accumulate(scores, scores + count, 0.0f);
    for (size_t i = 0; i < count; ++i) {
        scores[i] *= scale;
    }
}

} // namespace

self_attention::self_attention(const safetensors &checkpoint, const std::string &prefix,
                               const model_config &config)
    : num_heads_(config.num_attention_heads), head_dim_(config.head_dim), width_(num_heads_ * head_dim_),
      qkv_proj_(read_qkv(checkpoint, prefix, width_, config.hidden_size)),
      o_proj_(checkpoint.f32(prefix + "o_proj.weight", {config.hidden_size, width_}), config.hidden_size,
              width_) {
    for (size_t position = 0; position < config.max_position_embeddings; ++position) {
        for (size_t i = 0; i < head_dim_ / 2; ++i) {
            const double angle = position * std::pow(double{config.rope_theta}, -2.0 * i / head_dim_);
            cos_.push_back(static_cast<float>(std::cos(angle)));
            sin_.push_back(static_cast<float>(std::sin(angle)));
        }
    }
}

void self_attention::forward(const batch &sequences, const float *h, float *y) const {
    std::vector<float> qkv(sequences.num_tokens() * 3 * width_), attended(sequences.num_tokens() * width_);
    qkv_proj_.multiply(h, sequences.num_tokens(), qkv.data());
    for (size_t sequence = 0; sequence < sequences.num_sequences(); ++sequence) {
        const size_t start = sequences.starts[sequence];
        attend(qkv.data() + start * 3 * width_, sequences.starts[sequence + 1] - start,
               attended.data() + start * width_);
    }
    o_proj_.multiply(attended.data(), sequences.num_tokens(), y);
}

void self_attention::attend(float *qkv, size_t num_tokens, float *y) const {
    const size_t stride = 3 * width_;
    const size_t num_keys = (num_tokens + lanes - 1) / lanes * lanes;
    const float scale = 1 / std::sqrt(static_cast<float>(head_dim_));
    std::vector<float> keys(head_dim_ * num_keys), scores(lanes * num_keys);
    for (size_t head = 0; head < num_heads_; ++head) {
        float *q = qkv + head * head_dim_, *k = q + width_, *v = k + width_;
        for (size_t token = 0; token < num_tokens; ++token) {
            rotate(q + token * stride, token);
            rotate(k + token * stride, token);
            for (size_t i = 0; i < head_dim_; ++i) {
                q[token * stride + i] *= scale;
                keys[i * num_keys + token] = k[token * stride + i];
            }
        }
        for (size_t first = 0; first < num_tokens; first += lanes) {
            const size_t num_queries = std::min(lanes, num_tokens - first);
            multiply({q + first * stride, stride}, {keys.data(), num_keys}, {scores.data(), num_keys},
                     num_queries, head_dim_, first + lanes);
            for (size_t query = 0; query < num_queries; ++query) {
                float *row = &scores[query * num_keys];
                const size_t visible = first + query + 1;
                softmax(row, visible);
                std::fill(row + visible, row + first + lanes, 0.0f);
            }
            multiply({scores.data(), num_keys}, {v, stride}, {y + first * width_ + head * head_dim_, width_},
                     num_queries, first + num_queries, head_dim_);
        }
    }
}

/// Turns the pairs (head[i], head[half + i]) by the position's angles.
void self_attention::rotate(float *head, size_t position) const {
    const size_t half = head_dim_ / 2;
    const float *cos = &cos_[position * half], *sin = &sin_[position * half];
    for (size_t i = 0; i < half; ++i) {
        const float a = head[i], b = head[half + i];
        head[i] = a * cos[i] - b * sin[i];
        head[half + i] = b * cos[i] + a * sin[i];
    }
}
