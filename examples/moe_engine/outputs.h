#ifndef MOE_ENGINE_OUTPUTS_H
#define MOE_ENGINE_OUTPUTS_H

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine.h"
#include "model/batch.h"

/// What the model made of each question, to be compared with another run's.
class outputs {
  public:
    /// `questions` are the numbers of the batch's sequences. A question that was there before is left as it
    /// is.
    void add(const std::vector<size_t> &questions, const batch &sequences, const step_result &result,
             const model_config &config);

    /// For each question i in safetensors, as golden.safetensors has them: i.tokens, i.topk_ids, i.logits.
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
