// The routing rules, written from docs/routing.md and slow: what the library and its kernels are compared
// with.
#ifndef EPLB_TESTS_ROUTE_REFERENCE_H
#define EPLB_TESTS_ROUTE_REFERENCE_H

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <vector>

/// One layer of a placement.
struct layer_placement {
    uint32_t num_experts;
    uint32_t num_ranks;
    /// The expert of each slot.
    std::vector<int32_t> experts;

    int64_t num_slots() const { return static_cast<int64_t>(experts.size()); }
    uint32_t rank_of(int64_t slot) const {
        return static_cast<uint32_t>(slot / (num_slots() / static_cast<int64_t>(num_ranks)));
    }
    /// The slots of an expert's replicas, ascending.
    std::vector<int64_t> slots_of(int64_t expert) const {
        std::vector<int64_t> slots;
        for (size_t slot = 0; slot < experts.size(); slot++) {
            if (experts[slot] == expert) {
                slots.push_back(static_cast<int64_t>(slot));
            }
        }
        return slots;
    }
    std::vector<std::vector<int64_t>> all_slots() const {
        std::vector<std::vector<int64_t>> all;
        for (uint32_t expert = 0; expert < num_experts; expert++) {
            all.push_back(slots_of(expert));
        }
        return all;
    }
};

/// The slot of every id. `pick(k, i, id, slots)` chooses among several replicas; k counts the equal ids
/// before i in its block of `block_size` ids.
template <class Id, class Pick>
std::vector<Id> route_by(const layer_placement &layer, const std::vector<Id> &ids, size_t valid,
                         size_t block_size, Pick pick) {
    const auto slots = layer.all_slots();
    std::vector<Id> routed;
    std::map<Id, uint32_t> seen;
    for (size_t i = 0; i < ids.size(); i++) {
        if (i % block_size == 0) {
            seen.clear();
        }
        const bool good = i < valid && ids[i] >= 0 && static_cast<uint64_t>(ids[i]) < layer.num_experts;
        if (!good) {
            routed.push_back(static_cast<Id>(layer.num_slots()));
            continue;
        }
        const auto &replicas = slots[static_cast<size_t>(ids[i])];
        const uint32_t k = seen[ids[i]]++;
        routed.push_back(static_cast<Id>(replicas.size() == 1 ? replicas[0] : pick(k, i, ids[i], replicas)));
    }
    return routed;
}

template <class Id>
std::vector<Id> round_robin(const layer_placement &layer, const std::vector<Id> &ids, size_t valid,
                            uint32_t offset) {
    return route_by(layer, ids, valid, 1024,
                    [&](uint32_t k, size_t i, Id, const std::vector<int64_t> &slots) {
                        return slots[(k + i / 1024 + offset) % slots.size()];
                    });
}

template <class Id>
std::vector<Id> token_hash(const layer_placement &layer, const std::vector<Id> &ids, size_t valid,
                           uint32_t choices) {
    return route_by(layer, ids, valid, ids.size() + 1,
                    [&](uint32_t, size_t i, Id, const std::vector<int64_t> &slots) {
                        const uint64_t token = i / choices;
                        return slots[((token * 2654435769u) & 0xffffffffu) % slots.size()];
                    });
}

/// Water-filling: what each column gets of `amount`. Columns are visited from `first` on for the rest.
inline std::vector<uint64_t> fill(uint64_t amount, const std::vector<uint64_t> &levels, size_t first) {
    const auto up_to = [&](uint64_t height) {
        uint64_t sum = 0;
        for (const uint64_t level : levels) {
            sum += height > level ? height - level : 0;
        }
        return sum;
    };
    // The greatest height for which the amount suffices.
    uint64_t height = 0, above = amount + *std::max_element(levels.begin(), levels.end()) + 1;
    while (above - height > 1) {
        const uint64_t middle = height + (above - height) / 2;
        (up_to(middle) <= amount ? height : above) = middle;
    }
    std::vector<uint64_t> got;
    for (const uint64_t level : levels) {
        got.push_back(height > level ? height - level : 0);
    }
    uint64_t rest = amount - up_to(height);
    for (size_t i = 0; i < levels.size() && rest > 0; i++) {
        const size_t column = (first + i) % levels.size();
        if (levels[column] <= height) {
            got[column]++;
            rest--;
        }
    }
    return got;
}

/// An edge of least loaded: numbers x and y of the ranks that hold an expert.
struct rank_edge {
    uint32_t expert;
    size_t x, y;
};

/// The edges of least loaded in steps. `ranks` are those of each expert on several.
inline std::vector<std::vector<rank_edge>>
edge_steps(const std::map<uint32_t, std::vector<uint32_t>> &ranks) {
    std::vector<uint32_t> order;
    for (const auto &one : ranks) {
        order.push_back(one.first);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](uint32_t a, uint32_t b) { return ranks.at(a).size() > ranks.at(b).size(); });
    std::vector<std::vector<rank_edge>> steps;
    std::vector<std::set<uint32_t>> busy;
    for (const uint32_t expert : order) {
        const auto &held_by = ranks.at(expert);
        for (size_t x = 0; x < (held_by.size() == 2 ? 1 : held_by.size()); x++) {
            const size_t y = (x + 1) % held_by.size();
            size_t step = 0;
            while (step < steps.size() && (busy[step].count(held_by[x]) || busy[step].count(held_by[y]))) {
                step++;
            }
            if (step == steps.size()) {
                steps.emplace_back();
                busy.emplace_back();
            }
            steps[step].push_back({expert, x, y});
            busy[step].insert({held_by[x], held_by[y]});
        }
    }
    return steps;
}

/// The sweeps of least loaded over the edges of `ranks` for the tokens of one rank.
inline uint32_t own_sweeps(const std::map<uint32_t, std::vector<uint32_t>> &ranks) {
    size_t edges = 0, holders = 0;
    std::set<uint32_t> held_by_any;
    for (const auto &[expert, held_by] : ranks) {
        edges += held_by.size() == 2 ? 1 : held_by.size();
        holders += held_by.size();
        held_by_any.insert(held_by.begin(), held_by.end());
    }
    if (edges >= 256) {
        return 1;
    }
    return edges >= 64 || held_by_any.size() == holders ? 2 : 4;
}

/// The quotas of least loaded: how many tokens of each expert each of its ranks serves. `is_own` tells that
/// the totals are of one rank.
inline std::vector<std::map<uint32_t, uint64_t>>
least_loaded_quotas(const layer_placement &layer, const std::vector<uint64_t> &totals, bool is_own) {
    std::vector<std::map<uint32_t, uint64_t>> quotas(layer.num_experts);
    uint64_t all = 0, products = 0;
    for (uint32_t expert = 0; expert < layer.num_experts; expert++) {
        all += totals[expert];
        products += expert * totals[expert];
        for (const int64_t slot : layer.slots_of(expert)) {
            quotas[expert][layer.rank_of(slot)] = totals[expert];
        }
    }
    const auto mix = static_cast<int64_t>(((products * 2654435769u) & 0xffffffffu) / 65536);
    int down = 0;
    while (all >> down >= uint64_t(1) << 31) {
        down++;
    }
    std::map<uint32_t, std::vector<uint32_t>> ranks;
    std::map<uint32_t, std::vector<int64_t>> units;
    std::vector<int64_t> loads(layer.num_ranks);
    for (uint32_t expert = 0; expert < layer.num_experts; expert++) {
        const auto t = static_cast<int64_t>(totals[expert] >> down),
                   g = static_cast<int64_t>(quotas[expert].size());
        for (const auto &one : quotas[expert]) {
            const auto x = static_cast<int64_t>(units[expert].size());
            units[expert].push_back(t / g + ((x + g - mix % g) % g < t % g ? 1 : 0));
            loads[one.first] += units[expert].back();
            if (g > 1) {
                ranks[expert].push_back(one.first);
            }
        }
    }
    const auto steps = edge_steps(ranks);
    const uint32_t sweeps = own_sweeps(ranks) * (is_own ? 1 : 2);
    for (uint32_t sweep = 0; sweep < sweeps; sweep++) {
        for (const auto &step : steps) {
            for (const auto &[expert, x, y] : step) {
                int64_t &one = units[expert][x], &other = units[expert][y];
                int64_t &load = loads[ranks[expert][x]], &other_load = loads[ranks[expert][y]];
                const int64_t twice = load - other_load + (one + other + sweep + mix) % 2;
                const int64_t half = twice >= 0 ? twice / 2 : -((1 - twice) / 2);
                const int64_t moved = std::max(-other, std::min(one, half));
                one -= moved;
                other += moved;
                load -= moved;
                other_load += moved;
            }
        }
    }
    for (const auto &[expert, held_by] : ranks) {
        uint64_t left = totals[expert];
        for (size_t x = 0; x < held_by.size(); x++) {
            const uint64_t tokens = static_cast<uint64_t>(units[expert][x]) << down;
            quotas[expert][held_by[x]] = x + 1 < held_by.size() ? tokens : left;
            left -= tokens;
        }
    }
    return quotas;
}

/// The slot of each of an expert's tokens, in order: each rank's quota split over its replicas.
inline std::vector<int64_t> split_quotas(const layer_placement &layer, const std::vector<int64_t> &slots,
                                         const std::map<uint32_t, uint64_t> &quotas) {
    std::vector<int64_t> slot_of_token;
    for (const auto &[rank, quota] : quotas) {
        std::vector<int64_t> here;
        for (const int64_t slot : slots) {
            if (layer.rank_of(slot) == rank) {
                here.push_back(slot);
            }
        }
        for (size_t j = 1; j <= here.size(); j++) {
            const auto up_to = [&](size_t n) { return (quota * n + here.size() - 1) / here.size(); };
            slot_of_token.insert(slot_of_token.end(), up_to(j) - up_to(j - 1), here[j - 1]);
        }
    }
    return slot_of_token;
}

/// With `rank_counts` [ranks][experts] the quotas are for the totals of all ranks, otherwise for the ids.
template <class Id>
std::vector<Id> least_loaded(const layer_placement &layer, const std::vector<Id> &ids, size_t valid,
                             uint32_t rank = 0, const std::vector<std::vector<uint64_t>> &rank_counts = {}) {
    std::vector<uint64_t> totals(layer.num_experts), before(layer.num_experts), own;
    if (rank_counts.empty()) {
        for (size_t i = 0; i < std::min(valid, ids.size()); i++) {
            if (ids[i] >= 0 && static_cast<uint64_t>(ids[i]) < layer.num_experts) {
                totals[static_cast<size_t>(ids[i])]++;
            }
        }
        own = totals;
    } else {
        for (size_t r = 0; r < rank_counts.size(); r++) {
            for (size_t expert = 0; expert < totals.size(); expert++) {
                totals[expert] += rank_counts[r][expert];
                before[expert] += r < rank ? rank_counts[r][expert] : 0;
            }
        }
        own = rank_counts[rank];
    }
    const auto quotas = least_loaded_quotas(layer, totals, rank_counts.empty());
    const auto slots = layer.all_slots();
    std::vector<std::vector<int64_t>> slot_of_token;
    for (uint32_t expert = 0; expert < layer.num_experts; expert++) {
        slot_of_token.push_back(split_quotas(layer, slots[expert], quotas[expert]));
    }
    return route_by(layer, ids, valid, ids.size() + 1,
                    [&](uint32_t k, size_t, Id id, const std::vector<int64_t> &replicas) {
                        const size_t expert = static_cast<size_t>(id);
                        return k < own[expert] ? slot_of_token[expert][before[expert] + k]
                                               : replicas[k % replicas.size()];
                    });
}

/// The units of `rank` on each of an expert's replicas.
inline std::vector<uint64_t> nearest_units(const layer_placement &layer, const std::vector<int64_t> &slots,
                                           uint32_t rank, const std::vector<int32_t> &nodes) {
    __extension__ using wide = unsigned __int128;
    const auto part = [](uint64_t of, uint64_t mine, uint64_t all) {
        return static_cast<uint64_t>(wide(of) * mine / all);
    };
    const uint64_t each = 4 * slots.size() << 20, most = uint64_t(5 * layer.num_ranks) << 20;
    std::vector<uint64_t> left(layer.num_ranks, each), used(slots.size()), units(slots.size());
    const auto replicas_where = [&](auto where) {
        std::vector<size_t> replicas;
        for (size_t replica = 0; replica < slots.size(); replica++) {
            if (where(layer.rank_of(slots[replica]))) {
                replicas.push_back(replica);
            }
        }
        return replicas;
    };
    // Places `amount` on `replicas` and returns what each replica of the expert got.
    const auto place = [&](uint64_t amount, const std::vector<size_t> &replicas) {
        std::vector<uint64_t> levels, got(slots.size());
        for (const size_t replica : replicas) {
            levels.push_back(used[replica]);
        }
        const auto filled = replicas.empty() ? levels : fill(amount, levels, 0);
        for (size_t i = 0; i < replicas.size(); i++) {
            got[replicas[i]] = filled[i];
            used[replicas[i]] += filled[i];
        }
        return got;
    };
    // The own rank.
    for (uint32_t r = 0; r < layer.num_ranks; r++) {
        const auto own = replicas_where([&](uint32_t of) { return of == r; });
        const uint64_t amount = std::min(each, own.size() * most);
        left[r] -= amount;
        const auto got = place(amount, own);
        for (size_t replica = 0; replica < slots.size(); replica++) {
            units[replica] += r == rank ? got[replica] : 0;
        }
    }
    // The own node.
    uint64_t remainder = left[rank], rest = 0;
    std::map<int32_t, uint64_t> wanted_of;
    for (uint32_t r = 0; r < layer.num_ranks; r++) {
        wanted_of[nodes[r]] += left[r];
    }
    for (const auto &[node, wanted] : wanted_of) {
        const auto here = replicas_where([&, node = node](uint32_t of) { return nodes[of] == node; });
        uint64_t room = 0;
        for (const size_t replica : here) {
            room += most - used[replica];
        }
        const uint64_t amount = std::min(wanted, room);
        rest += wanted - amount;
        if (amount == 0) {
            continue;
        }
        const auto got = place(amount, here);
        if (node == nodes[rank]) {
            for (size_t replica = 0; replica < slots.size(); replica++) {
                units[replica] += part(got[replica], left[rank], wanted);
            }
            remainder = part(left[rank], wanted - amount, wanted);
        }
    }
    // Any rank.
    if (rest > 0) {
        const auto got = place(rest, replicas_where([](uint32_t) { return true; }));
        for (size_t replica = 0; replica < slots.size(); replica++) {
            units[replica] += part(got[replica], remainder, rest);
        }
    }
    return units;
}

template <class Id>
std::vector<Id> nearest(const layer_placement &layer, const std::vector<Id> &ids, size_t valid, uint32_t rank,
                        const std::vector<int32_t> &nodes) {
    std::map<Id, std::vector<uint64_t>> units_of;
    return route_by(layer, ids, valid, 1024,
                    [&](uint32_t k, size_t i, Id id, const std::vector<int64_t> &slots) {
                        auto &units = units_of[id];
                        if (units.empty()) {
                            units = nearest_units(layer, slots, rank, nodes);
                        }
                        __extension__ using wide = unsigned __int128;
                        wide all = 0, sum = 0;
                        for (const uint64_t unit : units) {
                            all += unit;
                        }
                        const uint64_t point = (uint64_t(k + i / 1024 + rank) * 2654435769u) & 0xffffffffu;
                        for (size_t replica = 0; replica < slots.size(); replica++) {
                            sum += units[replica];
                            if (point < static_cast<uint64_t>((sum << 32) / all)) {
                                return slots[replica];
                            }
                        }
                        return slots.back();
                    });
}

#endif
