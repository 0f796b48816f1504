#ifndef MOE_ENGINE_QUESTIONS_H
#define MOE_ENGINE_QUESTIONS_H

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

/// The questions of a GSM8K file with their answers, as sequences of at most `max_tokens` tokens. A token is
/// a byte. Throws std::runtime_error with file and line for a bad file.
std::vector<std::vector<int32_t>> read_questions(const std::string &path, size_t max_tokens);

/// A file of text, cut into sequences of `max_tokens` tokens; the last one may be shorter.
std::vector<std::vector<int32_t>> read_text(const std::string &path, size_t max_tokens);

#endif
