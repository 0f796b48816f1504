// The gain of balancing: two reports of moe_engine on the same questions, side by side, and the projection
// for the configuration file.
//
//   before_after BEFORE AFTER DUMP CONFIG
//
// BEFORE and AFTER are files of --report, DUMP is the dump of the run before, and CONFIG is the configuration
// file of the run after.
#include <algorithm>
#include <cstdio>
#include <eplb_tools.hpp>
#include <exception>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

namespace {

nlohmann::json read(const std::string &path) {
    std::ifstream file(path);
    if (!file) {
        throw std::runtime_error(path + " could not be read");
    }
    return nlohmann::json::parse(file);
}

/// The imbalance ratio of a layer with the placement, under an even split. It is averaged over iterations,
/// like the measured ratio.
class projection {
  public:
    projection(const std::string &dump, const std::string &config, uint32_t num_ranks, int64_t num_iterations)
        : placement_(load(config, num_ranks)) {
        for (int64_t iteration = 0; iteration < num_iterations; iteration++) {
            eplb::stats_options of_iteration;
            of_iteration.iter_start = iteration;
            of_iteration.iter_stop = iteration + 1;
            iterations_.push_back(eplb::stats::load(dump, of_iteration));
        }
    }

    double imbalance_ratio(int32_t layer) const {
        std::vector<double> loads; // [iterations][experts]
        for (const eplb::stats &iteration : iterations_) {
            const std::vector<double> of_iteration = iteration.layer_loads(layer);
            loads.insert(loads.end(), of_iteration.begin(), of_iteration.end());
        }
        return eplb::evaluate(placement_, layer, loads, iterations_.size()).imbalance_ratio;
    }

  private:
    static eplb::placement load(const std::string &config, uint32_t num_ranks) {
        eplb::placement_load_options expected;
        expected.num_ranks = num_ranks;
        return eplb::placement::load(config, expected);
    }

    eplb::placement placement_;
    std::vector<eplb::stats> iterations_;
};

std::string with_commas(int64_t number) {
    std::string text = std::to_string(number);
    for (int place = int(text.size()) - 3; place > 0; place -= 3) {
        text.insert(size_t(place), ",");
    }
    return text;
}

/// Runs on different questions cannot be compared.
void check_same_run(const nlohmann::json &before, const nlohmann::json &after) {
    for (const char *what : {"ep_size", "iterations", "tokens"}) {
        if (before.at(what) != after.at(what)) {
            throw std::runtime_error(std::string("the runs differ in ") + what + ": " +
                                     before.at(what).dump() + " before, " + after.at(what).dump() + " after");
        }
    }
}

void print(const nlohmann::json &before, const nlohmann::json &after, const projection &projection) {
    const auto worst = [](const nlohmann::json &layer) {
        const auto tokens = layer.at("rank_tokens").get<std::vector<int64_t>>();
        return with_commas(*std::max_element(tokens.begin(), tokens.end()));
    };
    std::printf("%d ranks; %d slots before, %d after; the same %s tokens\n\n",
                before.at("ep_size").get<int>(), before.at("num_slots").get<int>(),
                after.at("num_slots").get<int>(), with_commas(after.at("tokens").get<int64_t>()).c_str());
    std::printf("         imbalance ratio of the ranks      worst rank's tokens\n");
    std::printf("   layer   before  projected    after       before      after\n");
    double ratios[3] = {}, hottest[2] = {};
    const size_t num_layers = after.at("layers").size();
    for (size_t i = 0; i < num_layers; i++) {
        const nlohmann::json &was = before.at("layers").at(i), &is = after.at("layers").at(i);
        const int layer = is.at("layer");
        const double of_layer[3] = {was.at("imbalance_ratio"), projection.imbalance_ratio(layer),
                                    is.at("imbalance_ratio")};
        std::printf("%8d   %.4f     %.4f   %.4f   %10s %10s\n", layer, of_layer[0], of_layer[1], of_layer[2],
                    worst(was).c_str(), worst(is).c_str());
        for (size_t column = 0; column < 3; column++) {
            ratios[column] += of_layer[column] / double(num_layers);
        }
        hottest[0] += was.at("hottest_tokens").get<double>();
        hottest[1] += is.at("hottest_tokens").get<double>();
    }
    std::printf(" average   %.4f     %.4f   %.4f\n\n", ratios[0], ratios[1], ratios[2]);
    std::printf("critical path, the hottest rank's tokens of each step and layer:\n");
    std::printf("           %s before, %s after: the experts' work is done %.2f times as fast\n",
                with_commas(int64_t(hottest[0])).c_str(), with_commas(int64_t(hottest[1])).c_str(),
                hottest[0] / hottest[1]);
    std::printf("perplexity %.4f before, %.4f after\n", before.at("perplexity").get<double>(),
                after.at("perplexity").get<double>());
    std::printf("eplb's calls took %.2f %% of the time before, %.2f %% after\n",
                100 * before.at("eplb_share_of_time").get<double>(),
                100 * after.at("eplb_share_of_time").get<double>());
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 5) {
        std::fprintf(stderr, "usage: %s BEFORE AFTER DUMP CONFIG\n", argv[0]);
        return 2;
    }
    try {
        const nlohmann::json before = read(argv[1]), after = read(argv[2]);
        check_same_run(before, after);
        const projection projection(argv[3], argv[4], after.at("ep_size").get<uint32_t>(),
                                    before.at("iterations").get<int64_t>());
        print(before, after, projection);
        return 0;
    } catch (const std::exception &e) {
        std::fprintf(stderr, "error: %s\n", e.what());
        return 1;
    }
}
