#ifndef MOE_ENGINE_OPTIONS_H
#define MOE_ENGINE_OPTIONS_H

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine.h"

/// The command line.
struct options {
    std::string model = "data/tiny-moe";
    std::string transport = "threads";
    std::optional<int> ep_size;
    /// First question, and the first after the last; 0: to the end.
    size_t first_question = 0, last_question = 0;
    /// Questions of a rank in an iteration.
    size_t batch = 4;
    /// None: each question once.
    std::optional<int64_t> iterations;
    /// Files that are read instead of the questions from an iteration on.
    std::vector<std::string> texts;
    int64_t shift = 0;
    std::string report, outputs, metrics, save_moe_load_balancer;
    engine_options engine;
};

/// Prints the help and exits if requested. Throws std::invalid_argument for unknown flags and bad values.
options parse_options(int argc, char **argv);

#endif
