// The three steps as an operator runs them: a program for each, and files between them.
#ifndef EPLB_HARNESS_FLOW_H
#define EPLB_HARNESS_FLOW_H

#include <gtest/gtest.h>

#include <eplb_tools.hpp>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "dump_file.h"
#include "files.h"
#include "model/questions.h"
#include "model/safetensors.h"
#include "process.h"

constexpr size_t num_layers = 3, num_experts = 256, choices = 8, vocab_size = 256;
constexpr int32_t layers[num_layers] = {1, 2, 3};

inline std::string model_folder() { return data("tiny-moe"); }

/// Which engine runs, and where.
struct engine_run {
    std::vector<std::string> environment = {};
    std::vector<std::string> program = {MOE_ENGINE};
    std::vector<std::string> flags = {};

    engine_run with(std::vector<std::string> more) const {
        engine_run run = *this;
        run.flags.insert(run.flags.end(), more.begin(), more.end());
        return run;
    }
    engine_run counting(const std::string &dump, const std::string &range) const {
        engine_run run = *this;
        run.environment.push_back("EXPERT_STATISTIC_PATH=" + dump);
        run.environment.push_back("EXPERT_STATISTIC_ITER_RANGE=" + range);
        // Dumps of two runs are compared, and mpirun names each run.
        run.environment.push_back("EXPERT_STATISTIC_RUN_ID=harness");
        return run;
    }
    outcome try_out() const {
        std::vector<std::string> command = program;
        command.insert(command.end(), {"--model", model_folder()});
        command.insert(command.end(), flags.begin(), flags.end());
        return run(environment, command);
    }
    void succeed() const {
        const outcome outcome = try_out();
        ASSERT_EQ(outcome.status, 0) << outcome.output;
    }
};

/// Eight ranks that are threads, or as many as there are.
inline engine_run threads(int ranks = 8) {
    engine_run run;
    run.flags = {"--ep_size", std::to_string(ranks)};
    return run;
}

/// Ranks that are processes.
inline engine_run mpi(int ranks = 8) {
    engine_run run;
    // As root and with more ranks than cores, as in CI.
    run.environment = {"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
                       "OMPI_MCA_rmaps_base_oversubscribe=1", "OMPI_MCA_mpi_yield_when_idle=1"};
    run.program = {MPIRUN, std::to_string(ranks), MOE_ENGINE, "--transport", "mpi"};
    return run;
}

inline nlohmann::json report_of(const std::string &path) { return nlohmann::json::parse(read_file(path)); }

/// The outputs of a run: name as in golden.safetensors -> the file of the rank that has it.
inline std::map<std::string, std::string> outputs_of(const std::string &folder) {
    std::map<std::string, std::string> file_of;
    for (const auto &file : std::filesystem::directory_iterator(folder)) {
        for (const std::string &name : safetensors(file.path()).names()) {
            file_of[name] = file.path();
        }
    }
    return file_of;
}

/// Runs and returns the folder of its outputs.
inline std::string outputs_of_run(const engine_run &run, const std::string &folder) {
    std::filesystem::create_directories(folder);
    run.with({"--outputs", folder}).succeed();
    return folder;
}

/// The largest difference of logits of two runs on the same questions; infinity if their chosen experts
/// differ.
inline float difference(const std::string &one, const std::string &other) {
    const auto files = outputs_of(one), other_files = outputs_of(other);
    EXPECT_FALSE(files.empty());
    EXPECT_EQ(files.size(), other_files.size());
    float most = 0;
    for (const auto &[name, path] : files) {
        const safetensors tensors(path), other_tensors(other_files.at(name));
        const auto shape = tensors.shape(name);
        if (name.find(".logits") == std::string::npos) {
            if (tensors.i32(name, shape) != other_tensors.i32(name, shape)) {
                return std::numeric_limits<float>::infinity();
            }
            continue;
        }
        const auto logits = tensors.f32(name, shape), other_logits = other_tensors.f32(name, shape);
        for (size_t i = 0; i < logits.size(); i++) {
            most = std::max(most, std::abs(logits[i] - other_logits[i]));
        }
    }
    return most;
}

/// Compares each rank's file of two dumps; empty files fail.
inline void expect_same_dumps(const std::string &one, const std::string &other, int but_rank = -1) {
    for (int rank = 0; rank < 8; rank++) {
        const std::string file = "/rank" + std::to_string(rank) + ".safetensors";
        if (rank != but_rank) {
            EXPECT_EQ(undated_file(one + file), undated_file(other + file))
                << one << " and " << other << file;
        }
    }
}

/// The sum of loads.
inline double sum(const std::vector<double> &loads) {
    double sum = 0;
    for (const double load : loads) {
        sum += load;
    }
    return sum;
}

inline void generate(const std::string &dump, uint32_t num_ranks, uint32_t num_slots,
                     const std::string &output, int64_t iter_start = 0) {
    eplb::generate_config config;
    config.expert_statistic_path = dump;
    config.num_ranks = num_ranks;
    config.num_slots = num_slots;
    config.output_path = output;
    config.stats.iter_start = iter_start;
    eplb::generate(config);
}

#endif
