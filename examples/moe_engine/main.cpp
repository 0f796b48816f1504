// The engine's program: passes questions to the ranks and prints the results. The calls of eplb are in
// engine.cpp.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>

#include <unistd.h>

#include "engine.h"
#include "model/questions.h"
#include "options.h"
#include "outputs.h"
#include "report.h"
#include "thread_transport.h"
#ifdef MOE_ENGINE_HAS_MPI
#include "mpi_transport.h"
#endif

namespace {

using clock_type = std::chrono::steady_clock;

double seconds_since(clock_type::time_point start) {
    return std::chrono::duration<double>(clock_type::now() - start).count();
}

/// The progress of the run by rank 0's tokens, redrawn a few times a second on a terminal.
class progress {
  public:
    progress(int64_t iterations, int num_ranks) : iterations_(iterations), num_ranks_(num_ranks) {}

    void show(int64_t done, int64_t tokens_of_rank) {
        const bool is_last = done == iterations_;
        if (is_last || (isatty(STDERR_FILENO) && seconds_since(shown_) > 0.2)) {
            shown_ = clock_type::now();
            std::fprintf(stderr, "\riteration %lld of %lld, %d ranks, %.0f tokens/s%s",
                         static_cast<long long>(done), static_cast<long long>(iterations_), num_ranks_,
                         double(tokens_of_rank) * num_ranks_ / seconds_since(start_), is_last ? "\n" : "");
        }
    }

  private:
    int64_t iterations_;
    int num_ranks_;
    clock_type::time_point start_ = clock_type::now(), shown_ = start_;
};

/// The questions of the run. They go to the ranks in turn.
class requests {
  public:
    requests(const options &options, size_t max_tokens, int num_ranks)
        : sequences_(read_questions(options.model + "/gsm8k-test.jsonl", max_tokens)),
          first_(options.first_question),
          last_(options.last_question == 0 ? sequences_.size() : options.last_question),
          batch_(options.batch), num_ranks_(static_cast<size_t>(num_ranks)),
          num_questions_(sequences_.size()), shift_(options.shift) {
        if (last_ > sequences_.size() || first_ >= last_) {
            throw std::invalid_argument("--questions " + std::to_string(first_) + "-" +
                                        std::to_string(last_) + ": there are " +
                                        std::to_string(sequences_.size()));
        }
        const size_t of_iteration = batch_ * num_ranks_, count = last_ - first_;
        iterations_ = options.iterations.value_or(int64_t((count + of_iteration - 1) / of_iteration));
        repeats_ = options.iterations.has_value();
        for (const std::string &text : options.texts) {
            for (std::vector<int32_t> &sequence : read_text(text, max_tokens)) {
                sequences_.push_back(std::move(sequence));
            }
        }
        if (!options.texts.empty() && sequences_.size() == num_questions_) {
            throw std::invalid_argument("--texts: the files are empty");
        }
    }

    int64_t iterations() const { return iterations_; }

    /// The numbers of a rank's questions in an iteration. Pieces of other texts follow all questions.
    std::vector<size_t> of(int64_t iteration, int rank) const {
        std::vector<size_t> numbers;
        if (sequences_.size() > num_questions_ && iteration >= shift_) {
            for (size_t i = 0; i < batch_; i++) {
                const size_t place = (size_t(iteration - shift_) * batch_ + i) * num_ranks_ + size_t(rank);
                numbers.push_back(num_questions_ + place % (sequences_.size() - num_questions_));
            }
            return numbers;
        }
        for (size_t i = 0; i < batch_; i++) {
            const size_t place = (size_t(iteration) * batch_ + i) * num_ranks_ + size_t(rank);
            if (repeats_ || place < last_ - first_) {
                numbers.push_back(first_ + place % (last_ - first_));
            }
        }
        return numbers;
    }

    const std::vector<int32_t> &sequence(size_t number) const { return sequences_[number]; }

  private:
    std::vector<std::vector<int32_t>> sequences_;
    size_t first_, last_, batch_, num_ranks_, num_questions_;
    int64_t shift_, iterations_;
    bool repeats_;
};

/// Fails at the start of a long run, instead of at its end.
void check_writable(const std::string &path) {
    if (!std::ofstream(path, std::ios::app)) {
        throw std::runtime_error(path + " cannot be written");
    }
}

/// For the textfile collector of Prometheus' node exporter, which needs complete files at any time.
void write_metrics(const std::string &directory, int rank, const std::string &text) {
    if (directory == "-") {
        if (rank == 0) {
            std::fputs(text.c_str(), stdout);
        }
        return;
    }
    const std::string path = directory + "/rank" + std::to_string(rank) + ".prom",
                      partial = path + ".partial";
    std::ofstream file(partial, std::ios::binary);
    file << text;
    file.close();
    if (!file) {
        throw std::runtime_error(partial + " could not be written");
    }
    std::filesystem::rename(partial, path);
}

void run_rank(const options &options, const model &model, transport &transport) {
    const model_config &config = model.config();
    const requests requests(options, config.max_position_embeddings, transport.num_ranks());
    engine_options engine_options = options.engine;
    engine_options.max_tokens = options.batch * config.max_position_embeddings;
    engine engine(model, transport, engine_options);
    const std::string outputs_file =
        options.outputs.empty()
            ? ""
            : options.outputs + "/rank" + std::to_string(transport.rank()) + ".safetensors";
    if (!outputs_file.empty()) {
        std::filesystem::create_directories(options.outputs);
        check_writable(outputs_file);
    }
    if (!options.report.empty() && transport.rank() == 0) {
        check_writable(options.report);
    }
    if (!options.metrics.empty() && options.metrics != "-") {
        std::filesystem::create_directories(options.metrics);
    }

    report report(config.first_k_dense_replace, config.num_hidden_layers - config.first_k_dense_replace);
    outputs outputs;
    progress progress(requests.iterations(), transport.num_ranks());
    const auto start = clock_type::now();
    for (int64_t iteration = 0; iteration < requests.iterations(); iteration++) {
        std::vector<size_t> questions = requests.of(iteration, transport.rank());
        if (engine.is_dead()) {
            questions.clear();
        }
        batch sequences;
        for (const size_t question : questions) {
            sequences.add(requests.sequence(question));
        }
        const step_result result = engine.step(iteration, sequences);
        report.add(sequences, result, config.vocab_size);
        if (!options.outputs.empty()) {
            outputs.add(questions, sequences, result, config);
        }
        if (transport.rank() == 0) {
            progress.show(iteration + 1, report.num_tokens());
        }
    }
    report.add_times(seconds_since(start), engine.eplb_seconds());
    if (engine.rebalancing() != nullptr) {
        report.add_rebalancing(engine.rebalancing()->totals(), engine.rebalancing()->bytes_received());
        if (!options.save_moe_load_balancer.empty() && transport.rank() == 0) {
            engine.rebalancing()->placement().save(options.save_moe_load_balancer);
        }
    }
    const std::string lost_dump = engine.finish();
    if (!options.metrics.empty()) {
        write_metrics(options.metrics, transport.rank(), engine.metrics());
    }
    if (!outputs_file.empty()) {
        outputs.save(outputs_file);
    }
    report.gather(transport);
    if (transport.rank() == 0) {
        std::printf("%lld tokens, perplexity %.4f\n", static_cast<long long>(report.num_tokens()),
                    report.perplexity());
        report.print_rebalancing();
        if (!options.report.empty()) {
            report.save(options.report, engine.num_slots());
        }
    }
    // Waits until all ranks are done: a rank that fails ends the others.
    const std::vector<int> is_lost(static_cast<size_t>(transport.num_ranks()), lost_dump.empty() ? 0 : 1);
    transport.all_to_all(is_lost);
    if (!lost_dump.empty()) {
        throw std::runtime_error(lost_dump);
    }
}

void run(const options &options) {
    if (options.transport == "threads") {
        for (const char *name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}) {
            if (const char *size = std::getenv(name); size != nullptr && std::string(size) != "1") {
                throw std::invalid_argument(std::string("started ") + size +
                                            " times by mpirun: --transport mpi makes one run of them");
            }
        }
        const model model(options.model);
        run_on_threads(options.ep_size.value_or(1),
                       [&](transport &transport) { run_rank(options, model, transport); });
        return;
    }
#ifdef MOE_ENGINE_HAS_MPI
    run_on_mpi([&](transport &transport) {
        if (options.ep_size.value_or(transport.num_ranks()) != transport.num_ranks()) {
            throw std::invalid_argument("--ep_size " + std::to_string(*options.ep_size) +
                                        ", and mpirun started " + std::to_string(transport.num_ranks()) +
                                        " processes");
        }
        run_rank(options, model(options.model), transport);
    });
#else
    throw std::invalid_argument(
        "--transport mpi: built without MPI; cmake -DMOE_ENGINE_MPI=ON builds with it");
#endif
}

} // namespace

int main(int argc, char **argv) {
    try {
        run(parse_options(argc, argv));
        return 0;
    } catch (const std::exception &e) {
        std::fprintf(stderr, "error: %s\n", e.what());
        return exit_code(e);
    }
}
