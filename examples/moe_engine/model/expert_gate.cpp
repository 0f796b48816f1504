#include "expert_gate.h"

#include <algorithm>
#include <numeric>

#include "exp.h"

namespace {

/// The sum of the two highest.
float group_score(const float *scores, size_t num_experts) {
    float highest = std::max(scores[0], scores[1]), second = std::min(scores[0], scores[1]);
    for (size_t expert = 2; expert < num_experts; ++expert) {
        second = std::max(second, std::min(highest, scores[expert]));
        highest = std::max(highest, scores[expert]);
    }
    return highest + second;
}

/// Moves the `count` indices of highest score to the front, in order.
void sort_highest_first(std::vector<int32_t> &indices, size_t count, const float *scores) {
    std::partial_sort(indices.begin(), indices.begin() + static_cast<ptrdiff_t>(count), indices.end(),
                      [scores](int32_t a, int32_t b) {
                          return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
                      });
}

} // namespace

expert_gate::expert_gate(const std::vector<float> &weight, const model_config &config)
    : config_(config), weight_(weight, config.n_routed_experts, config.hidden_size) {}

void expert_gate::choose(const float *h, size_t num_tokens, int32_t *expert_ids, float *weights) const {
    std::vector<float> scores(num_tokens * config_.n_routed_experts);
    weight_.multiply(h, num_tokens, scores.data());
    for (float &score : scores) {
        score = 1 / (1 + fast_exp(-score));
    }
    for (size_t token = 0; token < num_tokens; ++token) {
        const float *of_token = &scores[token * config_.n_routed_experts];
        choose_experts(of_token, expert_ids);
        float sum = 1e-20f;
        for (size_t k = 0; k < config_.num_experts_per_tok; ++k) {
            sum += of_token[expert_ids[k]];
        }
        for (size_t k = 0; k < config_.num_experts_per_tok; ++k) {
            weights[k] = config_.routed_scaling_factor * of_token[expert_ids[k]] / sum;
        }
        expert_ids += config_.num_experts_per_tok;
        weights += config_.num_experts_per_tok;
    }
}

void expert_gate::choose_experts(const float *scores, int32_t *expert_ids) const {
    const size_t experts_per_group = config_.experts_per_group();
    std::vector<float> group_scores(config_.n_group);
    for (size_t group = 0; group < config_.n_group; ++group) {
        group_scores[group] = group_score(scores + group * experts_per_group, experts_per_group);
    }
    std::vector<int32_t> groups(config_.n_group);
    std::iota(groups.begin(), groups.end(), 0);
    sort_highest_first(groups, config_.topk_group, group_scores.data());

    std::vector<int32_t> experts(config_.topk_group * experts_per_group);
    for (size_t kept = 0; kept < config_.topk_group; ++kept) {
        const auto first = experts.begin() + static_cast<ptrdiff_t>(kept * experts_per_group);
        std::iota(first, first + static_cast<ptrdiff_t>(experts_per_group),
                  groups[kept] * static_cast<int32_t>(experts_per_group));
    }
    sort_highest_first(experts, config_.num_experts_per_tok, scores);
    std::copy_n(experts.begin(), config_.num_experts_per_tok, expert_ids);
}
