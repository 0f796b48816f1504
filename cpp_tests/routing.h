// Random expert ids like a router's, and the counts expected of them.
#ifndef EPLB_TESTS_ROUTING_H
#define EPLB_TESTS_ROUTING_H

#include <cstdint>
#include <limits>
#include <random>
#include <vector>

struct routing {
    uint32_t num_experts;
    uint32_t experts_per_token;
    std::mt19937_64 random;

    routing(uint32_t num_experts, uint32_t experts_per_token, uint64_t seed)
        : num_experts(num_experts), experts_per_token(experts_per_token), random(seed) {}

    uint64_t below(uint64_t limit) { return random() % limit; }

    /// Skewed towards low experts. One in `bad_every` ids is out of range, like the marks that engines write.
    template <class Id> std::vector<Id> ids(size_t num_tokens, uint64_t bad_every = 20) {
        std::vector<Id> ids(num_tokens * experts_per_token);
        for (Id &id : ids) {
            const uint64_t expert = below(below(num_experts) + 1);
            switch (below(bad_every)) {
            case 0: {
                const Id bad[] = {-1, static_cast<Id>(num_experts), std::numeric_limits<Id>::max(),
                                  std::numeric_limits<Id>::min()};
                id = bad[below(4)];
                break;
            }
            default:
                id = static_cast<Id>(expert);
            }
        }
        return ids;
    }
};

/// The expected counts of one layer, and the ids that are not counted.
struct counts {
    std::vector<double> experts;
    uint64_t counted = 0, out_of_range = 0, padding = 0;

    explicit counts(uint32_t num_experts) : experts(num_experts) {}

    /// `valid` is what the device reads as num_valid: any number.
    template <class Id> void add(const std::vector<Id> &ids, uint32_t experts_per_token, int64_t valid) {
        const int64_t all = static_cast<int64_t>(ids.size() / experts_per_token);
        valid = valid < 0 ? 0 : valid > all ? all : valid;
        for (size_t i = 0; i < ids.size(); i++) {
            if (i / experts_per_token >= static_cast<size_t>(valid)) {
                padding++;
            } else if (ids[i] == -1) {
                padding++;
            } else if (ids[i] < 0 || static_cast<uint64_t>(ids[i]) >= experts.size()) {
                out_of_range++;
            } else {
                experts[static_cast<size_t>(ids[i])]++;
                counted++;
            }
        }
    }

    /// The tokens that the ids which are not padding fill.
    uint64_t tokens(uint32_t experts_per_token) const {
        return (counted + out_of_range + experts_per_token - 1) / experts_per_token;
    }
};

#endif
