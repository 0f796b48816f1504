// Two reports of moe_engine on the same text, over time: without rebalancing, and with it.
//
//   over_time WITHOUT LIVE EVERY [SHIFT]
//
// WITHOUT and LIVE are files of --report. A row has EVERY iterations. From iteration SHIFT on the text is
// another.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

nlohmann::json read(const std::string &path) {
    std::ifstream file(path);
    if (!file) {
        throw std::runtime_error(path + " could not be read");
    }
    return nlohmann::json::parse(file);
}

/// A character for each value, from 0 to `most`.
std::string line(const std::vector<double> &values, double most) {
    static const char *const levels[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    std::string text;
    for (const double value : values) {
        text += levels[std::min(7, static_cast<int>(8 * value / most))];
    }
    return text;
}

double mean(const std::vector<double> &values, size_t first, size_t last) {
    double sum = 0;
    for (size_t i = first; i < last; i++) {
        sum += values[i];
    }
    return sum / double(last - first);
}

void print(const nlohmann::json &without, const nlohmann::json &live, size_t every, size_t shift) {
    for (const char *what : {"ep_size", "iterations", "tokens", "num_slots"}) {
        if (without.at(what) != live.at(what)) {
            throw std::runtime_error(std::string("the runs differ in ") + what);
        }
    }
    const auto before = without.at("iteration_imbalance_ratios").get<std::vector<double>>(),
               after = live.at("iteration_imbalance_ratios").get<std::vector<double>>();
    const nlohmann::json &rebalancing = live.at("rebalancing");
    const auto moves = rebalancing.at("iteration_moves").get<std::vector<int64_t>>();
    const double mib = 1 << 20, bytes = rebalancing.at("bytes_moved").get<double>();
    std::printf("%d ranks, %d slots; imbalance ratio of the ranks, mean of the layers\n\n",
                live.at("ep_size").get<int>(), live.at("num_slots").get<int>());
    std::printf("   iterations   without     live   slots moved\n");
    for (size_t first = 0; first < before.size(); first += every) {
        const size_t last = std::min(first + every, before.size());
        int64_t moved = 0;
        for (size_t i = first; i < last; i++) {
            moved += moves[i];
        }
        std::printf("%6zu to %-4zu   %.4f   %.4f   %11lld%s\n", first, last - 1, mean(before, first, last),
                    mean(after, first, last), static_cast<long long>(moved),
                    shift > 0 && first <= shift && shift < last ? "   other text from here" : "");
    }
    const double most = std::max(*std::max_element(before.begin(), before.end()),
                                 *std::max_element(after.begin(), after.end()));
    std::printf("\nwithout %s\n   live %s\n\n", line(before, most).c_str(), line(after, most).c_str());
    const auto time = [&](const char *name) { return 1e3 * rebalancing.at(name).get<double>(); };
    std::printf("%d plans moved %d slots, %.1f MiB; eplb's calls took %.2f %% of the time\n",
                rebalancing.at("plans").get<int>(), rebalancing.at("moves").get<int>(), bytes / mib,
                100 * live.at("eplb_share_of_time").get<double>());
    std::printf("a step with a change of tables took %.0f ms, one without %.0f ms\n",
                time("median_step_seconds_with_commit"), time("median_step_seconds"));
    std::printf("perplexity %.4f without, %.4f live\n", without.at("perplexity").get<double>(),
                live.at("perplexity").get<double>());
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 4 && argc != 5) {
        std::fprintf(stderr, "usage: %s WITHOUT LIVE EVERY [SHIFT]\n", argv[0]);
        return 2;
    }
    try {
        print(read(argv[1]), read(argv[2]), std::max<size_t>(1, std::stoul(argv[3])),
              argc == 5 ? std::stoul(argv[4]) : 0);
        return 0;
    } catch (const std::exception &e) {
        std::fprintf(stderr, "error: %s\n", e.what());
        return 1;
    }
}
