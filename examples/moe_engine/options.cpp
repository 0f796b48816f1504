#include "options.h"

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <stdexcept>

namespace {

constexpr const char help[] =
    R"(moe_engine: reads GSM8K's questions with a mixture-of-experts model, in expert parallel.

The three steps of expert parallelism load balancing:

  EXPERT_STATISTIC_PATH=dump EXPERT_STATISTIC_ITER_RANGE=100-200 moe_engine --ep_size 8 --iterations 200
  eplb generate --expert_statistic_path dump --ep_size 8 --num_slots 320 --output_path config.yaml
  moe_engine --ep_size 8 --moe_load_balancer config.yaml

  --model DIR               folder of the model and the questions [data/tiny-moe]
  --ep_size N               ranks of the expert-parallel group [1; with mpi, the processes]
  --transport NAME          threads of one process, or mpi: mpirun -n 8 moe_engine --transport mpi [threads]
  --moe_load_balancer FILE  the configuration file: the expert of each slot [the experts in order]
  --route RULE              which replica serves a token: round-robin, token-hash, nearest or least-loaded
                            [least-loaded]
  --ranks_per_node N        ranks that share a node, for nearest [all]
  --device NAME             where expert ids are counted and routed: host, cuda, or other, a device that eplb
                            does not know [host]
  --counters WHAT           what the device's own kernels count for eplb, with --device other: deltas of an
                            iteration, cumulative counters, or received tokens by slot [deltas]
  --questions FIRST-LAST    questions to read, FIRST included, LAST excluded [all]
  --batch N                 questions of a rank in an iteration [4]
  --iterations N            iterations; after the last question the first comes again [each question once]
  --count WHAT              ids that EXPERT_STATISTIC_ITER_RANGE counts: experts or slots [experts]
  --report FILE             tokens that the ranks served, and the perplexity, as JSON
  --outputs DIR             each rank's logits and chosen experts of each question, as DIR/rank<R>.safetensors
  --metrics DIR             the metrics of each rank at the end, for Prometheus, as DIR/rank<R>.prom; - prints those
                            of rank 0
)";

uint64_t number(const std::string &flag, const std::string &text) {
    size_t used = 0;
    uint64_t value = 0;
    try {
        value = std::stoull(text, &used);
    } catch (const std::exception &) {
        used = 0;
    }
    if (used == 0 || used != text.size() || text[0] == '-') {
        throw std::invalid_argument(flag + " " + text + ": a number expected");
    }
    return value;
}

int positive(const std::string &flag, const std::string &text) {
    const uint64_t value = number(flag, text);
    if (value == 0 || value > 1000000) {
        throw std::invalid_argument(flag + " " + text + ": 1 to 1000000 expected");
    }
    return static_cast<int>(value);
}

template <class T>
T one_of(const std::string &flag, const std::string &text, const std::map<std::string, T> &values) {
    const auto found = values.find(text);
    if (found == values.end()) {
        std::string names;
        for (const auto &[name, value] : values) {
            names += (names.empty() ? "" : ", ") + name;
        }
        throw std::invalid_argument(flag + " " + text + ": one of " + names + " expected");
    }
    return found->second;
}

void parse_range(const std::string &flag, const std::string &text, options &options) {
    const size_t dash = text.find('-');
    if (dash == std::string::npos) {
        throw std::invalid_argument(flag + " " + text + ": FIRST-LAST expected");
    }
    options.first_question = number(flag, text.substr(0, dash));
    options.last_question = number(flag, text.substr(dash + 1));
    if (options.first_question >= options.last_question) {
        throw std::invalid_argument(flag + " " + text + ": no question is in this range");
    }
}

} // namespace

options parse_options(int argc, char **argv) {
    options options;
    using setter = std::function<void(const std::string &flag, const std::string &text)>;
    const auto text = [](std::string &to) {
        return [&to](const std::string &, const std::string &text) { to = text; };
    };
    const std::map<std::string, setter> flags = {
        {"--model", text(options.model)},
        {"--transport",
         [&](const auto &flag, const auto &text) {
             options.transport = one_of<std::string>(flag, text, {{"threads", "threads"}, {"mpi", "mpi"}});
         }},
        {"--ep_size", [&](const auto &flag, const auto &text) { options.ep_size = positive(flag, text); }},
        {"--moe_load_balancer", text(options.engine.moe_load_balancer)},
        {"--route",
         [&](const auto &flag, const auto &text) {
             options.engine.rule = one_of<eplb_rule>(flag, text,
                                                     {{"round-robin", EPLB_RULE_ROUND_ROBIN},
                                                      {"token-hash", EPLB_RULE_TOKEN_HASH},
                                                      {"nearest", EPLB_RULE_NEAREST},
                                                      {"least-loaded", EPLB_RULE_LEAST_LOADED}});
         }},
        {"--ranks_per_node",
         [&](const auto &flag, const auto &text) { options.engine.ranks_per_node = positive(flag, text); }},
        {"--device", text(options.engine.device)},
        {"--counters",
         [&](const auto &flag, const auto &text) {
             options.engine.added_counts = one_of<uint32_t>(
                 flag, text,
                 {{"deltas", 0},
                  {"cumulative", EPLB_ADDED_COUNTS_CUMULATIVE},
                  {"received", EPLB_ADDED_COUNTS_CUMULATIVE | EPLB_ADDED_COUNTS_BY_LOCAL_SLOT}});
         }},
        {"--questions", [&](const auto &flag, const auto &text) { parse_range(flag, text, options); }},
        {"--batch",
         [&](const auto &flag, const auto &text) { options.batch = size_t(positive(flag, text)); }},
        {"--iterations",
         [&](const auto &flag, const auto &text) { options.iterations = positive(flag, text); }},
        {"--count",
         [&](const auto &flag, const auto &text) {
             options.engine.id_kind = one_of<eplb_id_kind>(
                 flag, text, {{"experts", EPLB_ID_KIND_EXPERT}, {"slots", EPLB_ID_KIND_SLOT}});
         }},
        {"--report", text(options.report)},
        {"--outputs", text(options.outputs)},
        {"--metrics", text(options.metrics)},
    };
    for (int i = 1; i < argc; i += 2) {
        const std::string flag = argv[i];
        if (flag == "--help" || flag == "-h") {
            std::fputs(help, stdout);
            std::exit(0);
        }
        const auto found = flags.find(flag);
        if (found == flags.end()) {
            throw std::invalid_argument(flag + " is unknown; see --help");
        }
        if (i + 1 == argc) {
            throw std::invalid_argument(flag + " needs a value; see --help");
        }
        found->second(flag, argv[i + 1]);
    }
    return options;
}
