// Times of counting and routing on the host, compared with plain C loops. 256 experts, 8 choices a token, ids
// with a 1/n distribution. Writes each batch to the given folder, for scripts/bench_numpy.py. Routing is to
// 320 slots on 8 ranks and to 640 on 320, and the plain loops are of round robin and token hash.
#include <eplb_tools.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <limits>
#include <random>

#include "../files.h"
#include "plain_count.h"
#include "plain_route.h"

namespace {

constexpr uint32_t experts = 256, choices = 8;

template <class Id> std::vector<Id> batch(size_t num_ids) {
    std::vector<double> weights(experts);
    for (size_t expert = 0; expert < experts; expert++) {
        weights[expert] = 1.0 / static_cast<double>(1 + expert * 37 % experts);
    }
    std::mt19937 random(1);
    std::discrete_distribution<int> route(weights.begin(), weights.end());
    std::vector<Id> ids(num_ids);
    for (Id &id : ids) {
        id = static_cast<Id>(route(random));
    }
    return ids;
}

/// Seconds of each call: the fastest of 151 runs of at least 0.5 ms. Others may have been interrupted. The
/// calls run in turns, so that all see the same machine.
std::vector<double> times_of(const std::vector<std::function<void()>> &calls) {
    const auto seconds_of = [](const std::function<void()> &call, size_t times) {
        using clock = std::chrono::steady_clock;
        const auto start = clock::now();
        for (size_t i = 0; i < times; i++) {
            call();
        }
        return std::chrono::duration<double>(clock::now() - start).count();
    };
    std::vector<size_t> times(calls.size(), 1);
    for (size_t i = 0; i < calls.size(); i++) {
        while (seconds_of(calls[i], times[i]) < 5e-4) {
            times[i] *= 2;
        }
    }
    std::vector<double> fastest(calls.size(), std::numeric_limits<double>::infinity());
    for (size_t run = 0; run < 151; run++) {
        for (size_t i = 0; i < calls.size(); i++) {
            fastest[i] = std::min(fastest[i], seconds_of(calls[i], times[i]) / static_cast<double>(times[i]));
        }
    }
    return fastest;
}

template <class Id> void compare(const char *name, size_t num_ids, const std::string &folder) {
    const auto ids = batch<Id>(num_ids);
    std::ofstream(folder + "/" + name + "-" + std::to_string(num_ids), std::ios::binary)
        .write(reinterpret_cast<const char *>(ids.data()),
               static_cast<std::streamsize>(ids.size() * sizeof(Id)));

    temporary_directory dir;
    eplb::recorder_config config;
    config.path = dir / "dump";
    config.iter_stop = 2;
    config.num_ranks = 1;
    config.num_experts = experts;
    config.experts_per_token = choices;
    config.layer_ids = {0};
    auto recorder = eplb::recorder::create(config);
    recorder.begin_iteration(0);
    const auto num_tokens = static_cast<uint32_t>(num_ids / choices);
    std::vector<uint32_t> counts(experts);
    size_t ignored = 0;
    const auto plain = [&] {
        if constexpr (sizeof(Id) == 4) {
            ignored += plain_count_int32(ids.data(), num_ids, counts.data(), experts);
        } else {
            ignored += plain_count_int64(ids.data(), num_ids, counts.data(), experts);
        }
    };
    const auto times = times_of({[&] { recorder.count_ids(0, ids.data(), num_tokens); }, plain});
    const auto rate = [&](size_t call) { return static_cast<double>(num_ids) / times[call] / 1e6; };
    std::printf("| %s | %zu | %.0f | %.0f | %.2f |\n", name, num_ids, rate(0), rate(1), times[1] / times[0]);
    if (ignored != 0) {
        std::printf("%zu ids were ignored\n", ignored);
    }
}

/// Successive batches of 2^20 ids, so that no branch predictor learns a single batch.
class batches {
  public:
    explicit batches(size_t num_ids) : ids_(batch<int32_t>(1 << 20)), num_ids_(num_ids) {}

    const int32_t *next() {
        const int32_t *ids = &ids_[at_];
        at_ = (at_ + num_ids_) % ids_.size();
        return ids;
    }
    void restart() { at_ = 0; }

  private:
    std::vector<int32_t> ids_;
    size_t num_ids_, at_ = 0;
};

void compare_routing(uint32_t num_slots, uint32_t ranks, size_t num_ids) {
    batches batches(num_ids);
    std::vector<double> loads(experts);
    for (const int32_t id : batch<int32_t>(1 << 20)) {
        loads[static_cast<size_t>(id)]++;
    }
    eplb::placement_config shape;
    shape.num_experts = experts;
    shape.num_ranks = ranks;
    shape.num_slots = num_slots;
    const std::vector<int32_t> layers = {0};
    const auto placement = eplb::solve(shape, layers, loads);
    const eplb_rule rules[] = {EPLB_RULE_ROUND_ROBIN, EPLB_RULE_TOKEN_HASH, EPLB_RULE_NEAREST,
                               EPLB_RULE_LEAST_LOADED};
    std::vector<eplb::dispatch> dispatches;
    for (const eplb_rule rule : rules) {
        eplb::dispatch_config config;
        config.num_ranks = ranks;
        config.experts_per_token = choices;
        config.rule = rule;
        dispatches.push_back(eplb::dispatch::create(placement, config));
    }
    const eplb_dispatch_tables layer = dispatches[0].tables(0);
    const plain_tables tables = {layer.replica_count, layer.replica_start, layer.slot_ids, int32_t(experts),
                                 static_cast<int32_t>(num_slots)};
    std::vector<int32_t> slots(num_ids), same(num_ids);
    std::vector<uint32_t> seen(experts);
    // The rules, then the loops of the first two.
    std::vector<std::function<void()>> calls;
    for (const eplb::dispatch &dispatch : dispatches) {
        calls.push_back([&, num_tokens = static_cast<uint32_t>(num_ids / choices)] {
            dispatch.route(0, batches.next(), num_tokens, nullptr, slots.data());
        });
    }
    calls.push_back([&] { plain_round_robin(&tables, batches.next(), num_ids, same.data(), seen.data()); });
    calls.push_back([&] { plain_token_hash(&tables, batches.next(), num_ids, choices, same.data()); });
    const auto times = times_of(calls);
    for (const size_t rule : {0, 1}) {
        for (const size_t call : {rule, rule + 4}) {
            batches.restart();
            calls[call]();
        }
        if (same != slots) {
            std::printf("error: the plain loop returns different slots\n");
        }
    }
    const char *names[] = {"round robin", "token hash", "nearest", "least loaded"};
    for (size_t rule = 0; rule < 4; rule++) {
        const double loop = times[rule == 1 ? 5 : 4];
        const auto rate = [&](double seconds) { return static_cast<double>(num_ids) / seconds / 1e6; };
        std::printf("| %u / %u | %s | %zu | %.0f | %.0f | %.2f | %.2f |\n", num_slots, ranks, names[rule],
                    num_ids, rate(times[rule]), rate(loop), loop / times[rule], times[rule] / times[0]);
    }
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    const std::string folder = argv[1];
    std::printf("| ids | batch | eplb, million ids/s | plain C loop | ratio |\n|---|---|---|---|---|\n");
    for (const size_t num_ids : {512, 2048, 65536, 1 << 20}) {
        compare<int32_t>("int32", num_ids, folder);
        compare<int64_t>("int64", num_ids, folder);
    }
    std::printf("\n| slots / ranks | rule | ids | eplb, million ids/s | plain C loop (round robin's but for "
                "token hash) "
                "| ratio | time, round robin's = 1 |\n|---|---|---|---|---|---|---|\n");
    for (const size_t num_ids : {64, 512, 2048, 65536, 1 << 20}) {
        compare_routing(320, 8, num_ids);
    }
    compare_routing(640, 320, 512);
}
