#include "questions.h"

#include <fstream>
#include <stdexcept>

#include <nlohmann/json.hpp>

std::vector<std::vector<int32_t>> read_questions(const std::string &path, size_t max_tokens) {
    std::ifstream file(path);
    if (!file) {
        throw std::runtime_error(path + ": cannot be opened");
    }
    std::vector<std::vector<int32_t>> questions;
    for (std::string line; std::getline(file, line);) {
        try {
            const nlohmann::json json = nlohmann::json::parse(line);
            const std::string text = "Question: " + json.at("question").get<std::string>() +
                                     "\nAnswer: " + json.at("answer").get<std::string>();
            const std::string cut = text.substr(0, max_tokens);
            std::vector<int32_t> &tokens = questions.emplace_back();
            for (const char byte : cut) {
                tokens.push_back(static_cast<unsigned char>(byte));
            }
        } catch (const nlohmann::json::exception &e) {
            throw std::runtime_error(path + ":" + std::to_string(questions.size() + 1) + ": " + e.what());
        }
    }
    return questions;
}

std::vector<std::vector<int32_t>> read_text(const std::string &path, size_t max_tokens) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw std::runtime_error(path + ": cannot be opened");
    }
    std::vector<std::vector<int32_t>> sequences;
    for (char byte; file.get(byte);) {
        if (sequences.empty() || sequences.back().size() == max_tokens) {
            sequences.emplace_back();
        }
        sequences.back().push_back(static_cast<unsigned char>(byte));
    }
    return sequences;
}
