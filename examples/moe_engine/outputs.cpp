#include "outputs.h"

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace {

template <class T> std::string bytes_of(const T *values, size_t count) {
    return {reinterpret_cast<const char *>(values), count * sizeof(T)};
}

} // namespace

void outputs::add(const std::vector<size_t> &questions, const batch &sequences, const step_result &result,
                  const model_config &config) {
    const size_t vocab = config.vocab_size, choices = config.num_experts_per_tok;
    for (size_t sequence = 0; sequence < questions.size(); sequence++) {
        const size_t first = sequences.starts[sequence];
        const size_t num_tokens = sequences.starts[sequence + 1] - first;
        std::string topk_ids;
        for (const std::vector<int32_t> &of_layer : result.topk_ids) {
            topk_ids += bytes_of(&of_layer[first * choices], num_tokens * choices);
        }
        const std::string question = std::to_string(questions[sequence]);
        tensors_.insert(
            {question + ".tokens", {"I32", {num_tokens}, bytes_of(&sequences.tokens[first], num_tokens)}});
        tensors_.insert(
            {question + ".topk_ids", {"I32", {result.topk_ids.size(), num_tokens, choices}, topk_ids}});
        tensors_.insert(
            {question + ".logits",
             {"F32", {num_tokens, vocab}, bytes_of(&result.logits[first * vocab], num_tokens * vocab)}});
    }
}

void outputs::save(const std::string &path) const {
    nlohmann::json header = nlohmann::json::object();
    size_t end = 0;
    for (const auto &[name, tensor] : tensors_) {
        const size_t begin = end;
        end += tensor.bytes.size();
        header[name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const uint64_t size = text.size();
    std::ofstream file(path, std::ios::binary);
    file << bytes_of(&size, 1) << text;
    for (const auto &[name, tensor] : tensors_) {
        file << tensor.bytes;
    }
    if (!file.flush()) {
        throw std::runtime_error(path + " could not be written");
    }
}
