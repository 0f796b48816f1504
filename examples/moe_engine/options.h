#ifndef MOE_ENGINE_OPTIONS_H
#define MOE_ENGINE_OPTIONS_H

#include <cstdint>
#include <optional>
#include <string>

#include "engine.h"

/// What the command line asks for.
struct options {
    std::string model = "data/tiny-moe";
    std::string transport = "threads";
    std::optional<int> ep_size;
    /// First question, and the first after the last; 0: to the end.
    size_t first_question = 0, last_question = 0;
    /// Requests of a rank in an iteration.
    size_t batch = 4;
    /// None: until each question was asked once.
    std::optional<int64_t> iterations;
    std::string report, outputs, metrics;
    engine_options engine;
};

/// Prints the help and ends where it is asked for. Throws std::invalid_argument for what is not understood.
options parse_options(int argc, char **argv);

#endif
