#ifndef MOE_ENGINE_OUTPUTS_H
#define MOE_ENGINE_OUTPUTS_H

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine.h"
#include "model/batch.h"

/// The model's outputs for each question, to compare runs.
class outputs {
  public:
    /// `questions` are the numbers of the batch's sequences. A question that is already there is unchanged.
    void add(const std::vector<size_t> &questions, const batch &sequences, const step_result &result,
             const model_config &config);

    /// Saves i.tokens, i.topk_ids and i.logits of each question i, as in golden.safetensors.
    void save(const std::string &path) const;

  private:
    struct tensor {
        std::string dtype;
        std::vector<size_t> shape;
        std::string bytes;
    };
    std::map<std::string, tensor> tensors_;
};

#endif
