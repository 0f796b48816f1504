// The rules of routing as include/eplb.h defines them, written down a second time and slowly.
#ifndef EPLB_TESTS_ROUTE_REFERENCE_H
#define EPLB_TESTS_ROUTE_REFERENCE_H

#include <algorithm>
#include <cstdint>
#include <map>
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

/// The slot of every id: `pick(k, i, slots)` chooses among several. `count_in` is the block within which k is
/// counted.
template <class Id, class Pick>
std::vector<Id> route_by(const layer_placement &layer, const std::vector<Id> &ids, size_t valid,
                         size_t count_in, Pick pick) {
    const auto slots = layer.all_slots();
    std::vector<Id> routed;
    std::map<Id, uint32_t> seen;
    for (size_t i = 0; i < ids.size(); i++) {
        if (i % count_in == 0) {
            seen.clear();
        }
        const bool good = i < valid && ids[i] >= 0 && static_cast<uint64_t>(ids[i]) < layer.num_experts;
        if (!good) {
            routed.push_back(static_cast<Id>(layer.num_slots()));
            continue;
        }
        const auto &mine = slots[static_cast<size_t>(ids[i])];
        const uint32_t k = seen[ids[i]]++;
        routed.push_back(static_cast<Id>(mine.size() == 1 ? mine[0] : pick(k, i, ids[i], mine)));
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

/// How many tokens of each expert each rank gets.
inline std::vector<std::map<uint32_t, uint64_t>> level(const layer_placement &layer,
                                                       const std::vector<uint64_t> &tokens) {
    std::vector<std::map<uint32_t, uint64_t>> quotas(layer.num_experts);
    std::vector<uint64_t> load(layer.num_ranks);
    std::vector<std::pair<size_t, uint32_t>> order;
    const auto slots = layer.all_slots();
    for (uint32_t expert = 0; expert < layer.num_experts; expert++) {
        for (const int64_t slot : slots[expert]) {
            quotas[expert][layer.rank_of(slot)] = 0;
        }
        if (slots[expert].size() == 1) {
            load[layer.rank_of(slots[expert][0])] += tokens[expert];
        } else {
            order.emplace_back(quotas[expert].size(), expert);
        }
    }
    std::sort(order.begin(), order.end());
    for (int sweep = 0; sweep < 4; sweep++) {
        for (const auto &[groups, expert] : order) {
            auto &mine = quotas[expert];
            for (const auto &[rank, quota] : mine) {
                load[rank] -= quota;
            }
            const auto poured = [&, &mine = mine](uint64_t height) {
                uint64_t sum = 0;
                for (const auto &[rank, quota] : mine) {
                    sum += height > load[rank] ? height - load[rank] : 0;
                }
                return sum;
            };
            uint64_t low = 0, high = tokens[expert] + *std::max_element(load.begin(), load.end()) + 1;
            while (high - low > 1) {
                const uint64_t middle = (low + high) / 2;
                (poured(middle) <= tokens[expert] ? low : high) = middle;
            }
            uint64_t left = tokens[expert] - poured(low);
            std::vector<uint32_t> ranks;
            for (auto &[rank, quota] : mine) {
                ranks.push_back(rank);
                quota = low > load[rank] ? low - load[rank] : 0;
            }
            for (size_t g = 0; g < ranks.size() && left > 0; g++) {
                const uint32_t rank = ranks[(tokens[expert] % ranks.size() + g) % ranks.size()];
                if (load[rank] <= low) {
                    mine[rank]++;
                    left--;
                }
            }
            for (const auto &[rank, quota] : mine) {
                load[rank] += quota;
            }
        }
    }
    return quotas;
}

/// The slots of an expert's tokens one after the other.
inline std::vector<int64_t> deal(const layer_placement &layer, const std::vector<int64_t> &slots,
                                 const std::map<uint32_t, uint64_t> &quotas) {
    std::vector<int64_t> dealt;
    for (const auto &[rank, quota] : quotas) {
        std::vector<int64_t> here;
        for (const int64_t slot : slots) {
            if (layer.rank_of(slot) == rank) {
                here.push_back(slot);
            }
        }
        for (size_t j = 1; j <= here.size(); j++) {
            const auto up_to = [&](size_t n) { return (quota * n + here.size() - 1) / here.size(); };
            dealt.insert(dealt.end(), up_to(j) - up_to(j - 1), here[j - 1]);
        }
    }
    return dealt;
}

/// With `rank_counts` [ranks][experts] the totals of all, otherwise those of the ids.
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
    const auto quotas = level(layer, totals);
    const auto slots = layer.all_slots();
    std::vector<std::vector<int64_t>> dealt;
    for (uint32_t expert = 0; expert < layer.num_experts; expert++) {
        dealt.push_back(deal(layer, slots[expert], quotas[expert]));
    }
    return route_by(layer, ids, valid, ids.size() + 1,
                    [&](uint32_t k, size_t, Id id, const std::vector<int64_t> &mine) {
                        const size_t expert = static_cast<size_t>(id);
                        return k < own[expert] ? dealt[expert][before[expert] + k] : mine[k % mine.size()];
                    });
}

/// Pours `amount` onto the columns named; returns what each got.
inline std::map<size_t, uint64_t> pour(uint64_t amount, const std::vector<size_t> &columns,
                                       std::vector<uint64_t> &heights) {
    uint64_t low = 0, high = uint64_t(1) << 60;
    const auto needed = [&](uint64_t height) {
        uint64_t sum = 0;
        for (const size_t column : columns) {
            sum += height > heights[column] ? std::min(height - heights[column], amount + 1) : 0;
        }
        return sum;
    };
    while (high - low > 1) {
        const uint64_t middle = (low + high) / 2;
        (needed(middle) <= amount ? low : high) = middle;
    }
    uint64_t left = amount - needed(low);
    std::map<size_t, uint64_t> got;
    for (const size_t column : columns) {
        if (heights[column] <= low) {
            got[column] = low - heights[column] + (left > 0 ? 1 : 0);
            left -= left > 0 ? 1 : 0;
            heights[column] += got[column];
        }
    }
    return got;
}

/// What of an expert's slots this rank uses, in units.
inline std::vector<uint64_t> nearest_units(const layer_placement &layer, const std::vector<int64_t> &slots,
                                           uint32_t rank, const std::vector<int32_t> &nodes) {
    __extension__ using wide = unsigned __int128;
    const auto part = [](uint64_t of, uint64_t mine, uint64_t all) {
        return static_cast<uint64_t>(wide(of) * mine / all);
    };
    const uint64_t each = 4 * slots.size() << 20, most = uint64_t(5 * layer.num_ranks) << 20;
    std::vector<uint64_t> left(layer.num_ranks, each), heights(slots.size()), units(slots.size());
    const auto replicas_where = [&](auto where) {
        std::vector<size_t> replicas;
        for (size_t replica = 0; replica < slots.size(); replica++) {
            if (where(layer.rank_of(slots[replica]))) {
                replicas.push_back(replica);
            }
        }
        return replicas;
    };
    for (uint32_t r = 0; r < layer.num_ranks; r++) {
        const auto own = replicas_where([&](uint32_t of) { return of == r; });
        const uint64_t amount = std::min(each, own.size() * most);
        left[r] -= amount;
        for (const auto &[replica, got] : pour(amount, own, heights)) {
            units[replica] += r == rank ? got : 0;
        }
    }
    uint64_t mine = left[rank], rest = 0;
    std::map<int32_t, uint64_t> wanted;
    for (uint32_t r = 0; r < layer.num_ranks; r++) {
        wanted[nodes[r]] += left[r];
    }
    for (const auto &[node, want] : wanted) {
        const auto here = replicas_where([&, node = node](uint32_t of) { return nodes[of] == node; });
        uint64_t room = 0;
        for (const size_t replica : here) {
            room += most - heights[replica];
        }
        const uint64_t amount = std::min(want, room);
        rest += want - amount;
        if (amount == 0) {
            continue;
        }
        for (const auto &[replica, got] : pour(amount, here, heights)) {
            units[replica] += node == nodes[rank] ? part(got, left[rank], want) : 0;
        }
        if (node == nodes[rank]) {
            mine = part(mine, want - amount, want);
        }
    }
    if (rest > 0) {
        for (const auto &[replica, got] :
             pour(rest, replicas_where([](uint32_t) { return true; }), heights)) {
            units[replica] += part(got, mine, rest);
        }
    }
    return units;
}

template <class Id>
std::vector<Id> nearest(const layer_placement &layer, const std::vector<Id> &ids, size_t valid, uint32_t rank,
                        const std::vector<int32_t> &nodes) {
    std::map<Id, std::vector<uint64_t>> units;
    return route_by(layer, ids, valid, 1024,
                    [&](uint32_t k, size_t i, Id id, const std::vector<int64_t> &slots) {
                        auto &mine = units[id];
                        if (mine.empty()) {
                            mine = nearest_units(layer, slots, rank, nodes);
                        }
                        __extension__ using wide = unsigned __int128;
                        wide all = 0, sum = 0;
                        for (const uint64_t unit : mine) {
                            all += unit;
                        }
                        const uint64_t point = (uint64_t(k + i / 1024 + rank) * 2654435769u) & 0xffffffffu;
                        for (size_t replica = 0; replica < slots.size(); replica++) {
                            sum += mine[replica];
                            if (point < static_cast<uint64_t>((sum << 32) / all)) {
                                return slots[replica];
                            }
                        }
                        return slots.back();
                    });
}

#endif
