#include "report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace {

/// -log of the probability that softmax(logits) gives a token.
double surprise(const float *logits, size_t vocab_size, int32_t token) {
    const double most = *std::max_element(logits, logits + vocab_size);
    double sum = 0;
    for (size_t i = 0; i < vocab_size; i++) {
        sum += std::exp(logits[i] - most);
    }
    return std::log(sum) + most - logits[token];
}

double median(std::vector<double> values) {
    if (values.empty()) {
        return 0;
    }
    std::nth_element(values.begin(), values.begin() + long(values.size() / 2), values.end());
    return values[values.size() / 2];
}

} // namespace

void report::add(const batch &sequences, const step_result &result, size_t vocab_size) {
    served_.insert(served_.end(), result.served.begin(), result.served.end());
    num_tokens_ += static_cast<int64_t>(sequences.num_tokens());
    (result.has_commit ? steps_with_commit_ : steps_).push_back(result.seconds);
    moves_.push_back(result.moves);
    for (size_t sequence = 0; sequence < sequences.num_sequences(); sequence++) {
        for (size_t t = sequences.starts[sequence]; t + 1 < sequences.starts[sequence + 1]; t++) {
            nats_ += surprise(&result.logits[t * vocab_size], vocab_size, sequences.tokens[t + 1]);
            num_predicted_++;
        }
    }
}

void report::add_times(double seconds, double eplb_seconds) {
    seconds_ += seconds;
    eplb_seconds_ += eplb_seconds;
}

void report::gather(transport &transport) {
    num_ranks_ = static_cast<size_t>(transport.num_ranks());
    served_ = transport.gather(served_);
    const auto sum = [&](auto &value) {
        const auto all = transport.gather(std::vector<std::decay_t<decltype(value)>>{value});
        value = std::accumulate(all.begin(), all.end(), std::decay_t<decltype(value)>());
    };
    sum(num_tokens_);
    sum(num_predicted_);
    sum(nats_);
    sum(seconds_);
    sum(eplb_seconds_);
    if (rebalancing_) {
        sum(bytes_moved_);
    }
}

void report::print_rebalancing() const {
    if (!rebalancing_) {
        return;
    }
    const rebalance_totals &totals = *rebalancing_;
    std::printf(
        "rebalancing: %lld plans moved %lld slots, %.1f MiB of weights%s; eplb's calls took %.2f %% of "
        "the time\n",
        static_cast<long long>(totals.plans), static_cast<long long>(totals.moves),
        double(bytes_moved_) / (1 << 20), totals.by_nccl ? " by NCCL" : "", 100 * eplb_seconds_ / seconds_);
    for (const auto &[reason, count] : totals.kept) {
        std::printf("             %lld plans kept the placement: %s\n", static_cast<long long>(count),
                    reason.c_str());
    }
    if (totals.aborted > 0) {
        std::printf("             %lld plans were aborted\n", static_cast<long long>(totals.aborted));
    }
    if (!steps_with_commit_.empty()) {
        std::printf(
            "             a step with a commit takes %.1f ms, one without %.1f ms (medians of rank 0)\n",
            1e3 * median(steps_with_commit_), 1e3 * median(steps_));
    }
}

double report::perplexity() const { return std::exp(nats_ / static_cast<double>(num_predicted_)); }

void report::save(const std::string &path, size_t num_slots) const {
    const size_t num_iterations = served_.size() / num_ranks_ / num_layers_;
    const auto served = [&](size_t rank, size_t iteration, size_t layer) {
        return served_[(rank * num_iterations + iteration) * num_layers_ + layer];
    };
    nlohmann::json layers;
    for (size_t layer = 0; layer < num_layers_; layer++) {
        std::vector<int64_t> rank_tokens(num_ranks_);
        int64_t hottest_tokens = 0;
        double ratios = 0;
        for (size_t iteration = 0; iteration < num_iterations; iteration++) {
            int64_t hottest = 0, all = 0;
            for (size_t rank = 0; rank < num_ranks_; rank++) {
                const int64_t tokens = served(rank, iteration, layer);
                rank_tokens[rank] += tokens;
                hottest = std::max(hottest, tokens);
                all += tokens;
            }
            hottest_tokens += hottest;
            ratios += double(hottest) * double(num_ranks_) / double(all) - 1;
        }
        layers.push_back({{"layer", first_layer_ + layer},
                          {"rank_tokens", rank_tokens},
                          // (max - mean) / mean of the ranks' tokens, averaged over iterations.
                          {"imbalance_ratio", ratios / double(num_iterations)},
                          // The hottest rank's tokens, added up over iterations: the step waits for it.
                          {"hottest_tokens", hottest_tokens}});
    }
    // The mean over layers, so that a run shows when it became even.
    std::vector<double> of_iterations(num_iterations);
    for (size_t iteration = 0; iteration < num_iterations; iteration++) {
        for (size_t layer = 0; layer < num_layers_; layer++) {
            int64_t hottest = 0, all = 0;
            for (size_t rank = 0; rank < num_ranks_; rank++) {
                hottest = std::max(hottest, served(rank, iteration, layer));
                all += served(rank, iteration, layer);
            }
            of_iterations[iteration] +=
                (double(hottest) * double(num_ranks_) / double(all) - 1) / double(num_layers_);
        }
    }
    nlohmann::json json = {{"ep_size", num_ranks_},
                           {"num_slots", num_slots},
                           {"iterations", num_iterations},
                           {"tokens", num_tokens_},
                           {"tokens_per_second", double(num_tokens_) * double(num_ranks_) / seconds_},
                           {"eplb_share_of_time", eplb_seconds_ / seconds_},
                           {"perplexity", perplexity()},
                           {"iteration_imbalance_ratios", of_iterations},
                           {"layers", layers}};
    if (rebalancing_) {
        json["rebalancing"] = {{"plans", rebalancing_->plans},
                               {"layers", rebalancing_->layers},
                               {"moves", rebalancing_->moves},
                               {"commits", rebalancing_->commits},
                               {"aborted", rebalancing_->aborted},
                               {"kept", rebalancing_->kept},
                               {"bytes_moved", bytes_moved_},
                               {"by_nccl", rebalancing_->by_nccl},
                               {"iteration_moves", moves_},
                               {"median_step_seconds", median(steps_)},
                               {"median_step_seconds_with_commit", median(steps_with_commit_)}};
    }
    std::ofstream file(path);
    file << json.dump(1) << '\n';
    if (!file.flush()) {
        throw std::runtime_error(path + " could not be written");
    }
}
