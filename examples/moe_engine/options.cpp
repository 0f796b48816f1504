#include "options.h"

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <sstream>
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
  --num_slots N             slots of all ranks without a configuration file; spare slots repeat the first
                            experts [one an expert]
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
  --texts FILE,...@ITER     reads these files instead of the questions from an iteration on, again and again
  --count WHAT              ids that EXPERT_STATISTIC_ITER_RANGE counts: experts or slots [experts]
Live rebalancing, with or without a configuration file:

  --rebalance N             every N iterations: counts, plans, and moves experts while the engine answers [never]
  --max_moves N             slots of a layer that receive an expert by a plan, at most [any]
  --window N                snapshots of N iterations that a plan is made from [8]
  --move_price TOKENS       what a move must take off the hottest rank until the next plan [0]
  --buffering HOW           where experts arrive: staged, in-place, or drain [staged]
  --save_moe_load_balancer FILE
                            writes the placement in force at the end, for --moe_load_balancer
  --kill_rank R@ITER        rank R dies before an iteration: the others go on, or the program ends with exit code 3
                            where an expert has no other replica
  --spoil_transfer N        flips a bit of the expert that each rank sends after N others, to see that it is noticed

Results:

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

/// FILE,...@ITER
void parse_texts(const std::string &flag, const std::string &text, options &options) {
    const size_t at = text.rfind('@');
    if (at == std::string::npos) {
        throw std::invalid_argument(flag + " " + text + ": FILE,...@ITER expected, such as LICENSE@20");
    }
    options.shift = static_cast<int64_t>(number(flag, text.substr(at + 1)));
    std::istringstream files(text.substr(0, at));
    for (std::string file; std::getline(files, file, ',');) {
        options.texts.push_back(file);
    }
}

/// R@ITER
void parse_kill(const std::string &flag, const std::string &text, rebalance_options &options) {
    const size_t at = text.find('@');
    if (at == std::string::npos) {
        throw std::invalid_argument(flag + " " + text + ": R@ITER expected, such as 3@20");
    }
    options.kill_rank = static_cast<int>(number(flag, text.substr(0, at)));
    options.kill_iteration = static_cast<int64_t>(number(flag, text.substr(at + 1)));
}

/// Flags that do nothing without another one are mistakes.
void check(const options &options) {
    const rebalance_options &live = options.engine.rebalance;
    const bool has_live_flag = live.max_moves != 0 || live.move_price != 0 || live.kill_rank >= 0 ||
                               live.spoil_transfer >= 0 || !options.save_moe_load_balancer.empty();
    if (live.every == 0 && has_live_flag) {
        throw std::invalid_argument("flags of live rebalancing need --rebalance N; see --help");
    }
    if (!options.texts.empty() && !options.iterations) {
        throw std::invalid_argument("--texts needs --iterations: the files are read again and again");
    }
    if (options.engine.num_slots != 0 && !options.engine.moe_load_balancer.empty()) {
        throw std::invalid_argument("--num_slots: the configuration file has the number of slots");
    }
}

} // namespace

options parse_options(int argc, char **argv) {
    options options;
    rebalance_options &rebalance = options.engine.rebalance;
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
        {"--num_slots",
         [&](const auto &flag, const auto &text) {
             options.engine.num_slots = static_cast<uint32_t>(positive(flag, text));
         }},
        {"--rebalance", [&](const auto &flag, const auto &text) { rebalance.every = positive(flag, text); }},
        {"--max_moves",
         [&](const auto &flag, const auto &text) {
             rebalance.max_moves = static_cast<uint32_t>(positive(flag, text));
         }},
        {"--window",
         [&](const auto &flag, const auto &text) {
             rebalance.window = static_cast<uint32_t>(positive(flag, text));
         }},
        {"--move_price",
         [&](const auto &flag, const auto &text) {
             rebalance.move_price = static_cast<double>(number(flag, text));
         }},
        {"--buffering",
         [&](const auto &flag, const auto &text) {
             rebalance.buffering = one_of<eplb_buffering>(flag, text,
                                                          {{"staged", EPLB_BUFFERING_STAGED},
                                                           {"in-place", EPLB_BUFFERING_IN_PLACE},
                                                           {"drain", EPLB_BUFFERING_DRAIN}});
         }},
        {"--save_moe_load_balancer", text(options.save_moe_load_balancer)},
        {"--kill_rank", [&](const auto &flag, const auto &text) { parse_kill(flag, text, rebalance); }},
        {"--spoil_transfer",
         [&](const auto &flag, const auto &text) {
             rebalance.spoil_transfer = static_cast<int64_t>(number(flag, text));
         }},
        {"--texts", [&](const auto &flag, const auto &text) { parse_texts(flag, text, options); }},
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
    check(options);
    return options;
}
