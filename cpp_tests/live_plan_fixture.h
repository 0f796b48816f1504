// What the tests of plans and rebalancers share: a placement of two layers, and calls that are refused.
#ifndef EPLB_TESTS_LIVE_PLAN_FIXTURE_H
#define EPLB_TESTS_LIVE_PLAN_FIXTURE_H

#include <eplb_live.hpp>
#include <string>
#include <utility>
#include <vector>

using slots = std::vector<int32_t>;
using counts = std::vector<int64_t>;

/// 4 experts on 2 ranks, layers 3 and 5 of the same slots.
inline eplb::placement a_placement(const slots &experts = {0, 1, 2, 3}, bool allow_empty_slots = false) {
    eplb::placement_config config;
    config.num_experts = 4;
    config.num_ranks = 2;
    config.num_slots = static_cast<uint32_t>(experts.size());
    config.allow_empty_slots = allow_empty_slots;
    slots both = experts;
    both.insert(both.end(), experts.begin(), experts.end());
    return eplb::placement::create(config, slots{3, 5}, both);
}

/// No gate holds its plans back.
inline eplb::rebalancer_config without_gates() {
    eplb::rebalancer_config config;
    config.experts_per_token = 1;
    config.min_tokens = config.cooldown = -1;
    config.trigger = config.release = config.min_gain = config.min_relative_gain = config.noise = -1;
    return config;
}

/// In layer 3 rank 0 has 180 of 200 tokens; layer 5 is even.
inline const counts uneven = {90, 90, 10, 10, 50, 50, 50, 50};

inline slots values(eplb::view<int32_t> view) { return {view.begin(), view.end()}; }

/// The status and the message of a call that is refused.
template <class Call> std::pair<eplb_status, std::string> refused(const Call &call) {
    try {
        call();
    } catch (const eplb::error &error) {
        return {error.status(), error.what()};
    }
    return {EPLB_STATUS_OK, ""};
}

using refusal = std::pair<eplb_status, std::string>;

#endif
