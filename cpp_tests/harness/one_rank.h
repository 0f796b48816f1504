// The model on one rank without expert parallelism, and without eplb.
#ifndef EPLB_HARNESS_ONE_RANK_H
#define EPLB_HARNESS_ONE_RANK_H

#include <algorithm>
#include <vector>

#include "model/model.h"

class one_rank {
  public:
    explicit one_rank(const std::string &folder) : model_(folder) {
        const model_config &config = model_.config();
        for (size_t layer = config.first_k_dense_replace; layer < config.num_hidden_layers; layer++) {
            std::vector<mlp> &experts = experts_.emplace_back();
            for (size_t expert = 0; expert < config.n_routed_experts; expert++) {
                experts.push_back(model_.load_expert(layer, expert));
            }
        }
    }

    const model_config &config() const { return model_.config(); }

    struct result {
        std::vector<int32_t> topk_ids; // [MoE layers][num_tokens][num_experts_per_tok]
        std::vector<float> logits;     // [num_tokens][vocab_size]
    };

    result forward(const batch &sequences) const {
        const model_config &config = model_.config();
        const size_t num_tokens = sequences.num_tokens();
        std::vector<float> x(num_tokens * config.hidden_size), h(x.size());
        std::vector<int32_t> expert_ids(num_tokens * config.num_experts_per_tok);
        std::vector<float> weights(expert_ids.size());
        result result;
        model_.embed(sequences, x.data());
        for (size_t layer = 0; layer < config.num_hidden_layers; layer++) {
            model_.attention(layer, sequences, x.data());
            if (!config.is_moe(layer)) {
                model_.dense(layer, num_tokens, x.data());
                continue;
            }
            model_.moe_norm(layer, x.data(), num_tokens, h.data());
            model_.gate(layer, h.data(), num_tokens, expert_ids.data(), weights.data());
            for (size_t choice = 0; choice < expert_ids.size(); choice++) {
                const size_t token = choice / config.num_experts_per_tok;
                add(experts_[layer - config.first_k_dense_replace][static_cast<size_t>(expert_ids[choice])],
                    &h[token * config.hidden_size], weights[choice], &x[token * config.hidden_size]);
            }
            model_.shared_expert(layer, h.data(), num_tokens, x.data());
            result.topk_ids.insert(result.topk_ids.end(), expert_ids.begin(), expert_ids.end());
        }
        result.logits.resize(num_tokens * config.vocab_size);
        model_.logits(x.data(), num_tokens, result.logits.data());
        return result;
    }

  private:
    void add(const mlp &expert, const float *h, float weight, float *x) const {
        std::vector<float> output(model_.config().hidden_size);
        expert.forward(h, 1, output.data());
        for (size_t i = 0; i < output.size(); i++) {
            x[i] += weight * output[i];
        }
    }

    model model_;
    std::vector<std::vector<mlp>> experts_; // [MoE layers][experts]
};

#endif
