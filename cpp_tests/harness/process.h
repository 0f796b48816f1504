// Runs the programs of the harness.
#ifndef EPLB_HARNESS_PROCESS_H
#define EPLB_HARNESS_PROCESS_H

#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

struct outcome {
    /// 0, or the shell's status.
    int status;
    /// Everything that it printed, errors included.
    std::string output;
};

/// Runs a program with NAME=VALUE pairs added to its environment, and waits for it. The caller's
/// EXPERT_STATISTIC_* variables are removed.
inline outcome run(const std::vector<std::string> &environment, const std::vector<std::string> &command) {
    std::string line =
        "env -u EXPERT_STATISTIC_PATH -u EXPERT_STATISTIC_ITER_RANGE -u EXPERT_STATISTIC_RUN_ID";
    for (const std::vector<std::string> *words : {&environment, &command}) {
        for (const std::string &word : *words) {
            line += " '" + word + "'";
        }
    }
    FILE *pipe = popen((line + " 2>&1").c_str(), "r");
    if (pipe == nullptr) {
        throw std::runtime_error("no shell for " + line);
    }
    outcome outcome;
    char buffer[4096];
    for (size_t size; (size = fread(buffer, 1, sizeof buffer, pipe)) != 0;) {
        outcome.output.append(buffer, size);
    }
    outcome.status = pclose(pipe);
    return outcome;
}

#endif
