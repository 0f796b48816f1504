#ifndef EPLB_HARNESS_GOLDEN_H
#define EPLB_HARNESS_GOLDEN_H

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "model/safetensors.h"

/// golden.safetensors: the outputs of another program for the first questions. Sums in another order may flip
/// a choice between two experts with nearly equal scores: one in a thousand may differ.
class golden {
  public:
    static constexpr size_t num_questions = 4;

    explicit golden(const std::string &model_folder) : file_(model_folder + "/golden.safetensors") {}

    void compare(size_t question, const std::vector<int32_t> &topk_ids, const std::vector<float> &logits) {
        const std::string prefix = std::to_string(question) + ".";
        const auto golden_ids = file_.i32(prefix + "topk_ids", file_.shape(prefix + "topk_ids"));
        const auto golden_logits = file_.f32(prefix + "logits", file_.shape(prefix + "logits"));
        ASSERT_EQ(topk_ids.size(), golden_ids.size());
        ASSERT_EQ(logits.size(), golden_logits.size());
        size_t flips = 0;
        for (size_t i = 0; i < topk_ids.size(); i++) {
            flips += topk_ids[i] != golden_ids[i];
        }
        float difference = 0;
        for (size_t i = 0; i < logits.size(); i++) {
            difference = std::max(difference, std::abs(logits[i] - golden_logits[i]));
        }
        if (flips == 0) {
            EXPECT_LT(difference, 1e-3f) << "question " << question;
            unflipped_++;
        }
        choices_ += topk_ids.size();
        flips_ += flips;
    }

    void expect_all_compared() const {
        EXPECT_GE(unflipped_, num_questions - 1);
        EXPECT_GT(choices_, 20000u);
        EXPECT_LE(flips_ * 1000, choices_);
    }

  private:
    safetensors file_;
    size_t choices_ = 0, flips_ = 0, unflipped_ = 0;
};

#endif
