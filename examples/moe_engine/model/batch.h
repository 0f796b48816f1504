#ifndef MOE_ENGINE_BATCH_H
#define MOE_ENGINE_BATCH_H

#include <cstddef>
#include <cstdint>
#include <vector>

/// Sequences of tokens, one after the other: sequence s is tokens[starts[s]] to tokens[starts[s + 1]].
struct batch {
    std::vector<int32_t> tokens;
    std::vector<size_t> starts = {0};

    void add(const std::vector<int32_t> &sequence) {
        tokens.insert(tokens.end(), sequence.begin(), sequence.end());
        starts.push_back(tokens.size());
    }
    size_t num_tokens() const { return tokens.size(); }
    size_t num_sequences() const { return starts.size() - 1; }
};

#endif
