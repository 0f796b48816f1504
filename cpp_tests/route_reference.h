// The routing rules, written from docs/routing.md and slow: what the library and its kernels are compared
// with.
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

/// Of each sweep of least loaded.
constexpr int64_t step_factors[] = {30504029, 45850777, 40756421, 39289238, 38886078, 38776741};
constexpr uint32_t step_momenta[] = {0, 8440711, 5638815, 4831865, 4610127, 4549992};

/// The number of binary digits.
inline int bits_of(uint64_t n) {
    int bits = 0;
    for (; n != 0; n >>= 1) {
        bits++;
    }
    return bits;
}

__extension__ using int128 = __int128;

/// Division that rounds down, also negative numbers.
inline int64_t floor_div(int128 a, int128 b) {
    return static_cast<int64_t>(a >= 0 ? a / b : -((-a + b - 1) / b));
}

/// Of least loaded, the largest eigenvalue times 2^16, and a bit more. `ranks` are those of each expert.
inline int64_t step_bound(const std::map<uint32_t, std::vector<uint32_t>> &ranks, uint32_t num_ranks) {
    std::vector<int64_t> v(num_ranks), w;
    for (uint32_t r = 0; r < num_ranks; r++) {
        v[r] = int64_t(((uint64_t(r) + 1) * 2654435769u % (uint64_t(1) << 32)) / 256) - 8388608;
    }
    for (int time = 1;; time++) {
        w.assign(num_ranks, 0);
        for (const auto &[expert, held_by] : ranks) {
            int64_t sum = 0;
            for (const uint32_t r : held_by) {
                sum += v[r];
            }
            for (const uint32_t r : held_by) {
                w[r] += v[r] - floor_div(sum, static_cast<int64_t>(held_by.size()));
            }
        }
        if (time == 16) {
            break;
        }
        int64_t largest = 0;
        for (const int64_t value : w) {
            largest = std::max(largest, std::abs(value));
        }
        for (uint32_t r = 0; r < num_ranks; r++) {
            v[r] = floor_div(int128(w[r]) * (1 << 24), int64_t(1) << bits_of(static_cast<uint64_t>(largest)));
        }
    }
    int128 along = 0, length = 0;
    for (uint32_t r = 0; r < num_ranks; r++) {
        along += int128(v[r]) * w[r];
        length += int128(v[r]) * v[r];
    }
    const int64_t a = length == 0 ? 0 : floor_div(along * 65536, length);
    return std::max<int64_t>(a, 65536) + std::max<int64_t>(a, 65536) / 32;
}

/// The quotas of least loaded: how many tokens of each expert each of its ranks serves. `is_own` tells that
/// the totals are of one rank.
inline std::vector<std::map<uint32_t, uint64_t>> least_loaded_quotas(const layer_placement &layer,
                                                                     const std::vector<uint64_t> &totals,
                                                                     bool is_own) {
    std::vector<std::map<uint32_t, uint64_t>> quotas(layer.num_experts);
    uint64_t all = 0;
    for (uint32_t expert = 0; expert < layer.num_experts; expert++) {
        all += totals[expert];
        for (const int64_t slot : layer.slots_of(expert)) {
            quotas[expert][layer.rank_of(slot)] = totals[expert];
        }
    }
    const int up = std::max(0, 28 - bits_of(all)), down = std::max(0, bits_of(all) - 28);
    const auto fixed = [&](uint64_t tokens) { return static_cast<int64_t>((tokens << up) >> down); };
    const int64_t token = int64_t(1) << up;

    // The experts on several ranks: their ranks, and p, c and u of each.
    std::map<uint32_t, std::vector<uint32_t>> ranks;
    std::map<uint32_t, std::vector<int64_t>> p, c, u;
    std::vector<int64_t> base(layer.num_ranks);
    for (uint32_t expert = 0; expert < layer.num_experts; expert++) {
        if (quotas[expert].size() == 1) {
            base[quotas[expert].begin()->first] += fixed(totals[expert]);
            continue;
        }
        for (const auto &[rank, quota] : quotas[expert]) {
            ranks[expert].push_back(rank);
        }
    }
    const int64_t a = step_bound(ranks, layer.num_ranks);
    const auto total_of = [&](const std::vector<int64_t> &values) {
        int64_t sum = 0;
        for (const int64_t value : values) {
            sum += value;
        }
        return sum;
    };
    const auto loads_of = [&](const std::map<uint32_t, std::vector<int64_t>> &tokens, int64_t unit) {
        std::vector<int64_t> loads;
        for (const int64_t tokens_of_base : base) {
            loads.push_back(floor_div(tokens_of_base, unit));
        }
        for (const auto &[expert, values] : tokens) {
            for (size_t x = 0; x < values.size(); x++) {
                loads[ranks[expert][x]] += values[x];
            }
        }
        return loads;
    };
    for (const auto &[expert, held_by] : ranks) {
        if (totals[expert] != 0) {
            const auto g = static_cast<int64_t>(held_by.size());
            p[expert].assign(held_by.size(), fixed(totals[expert]) / g);
            p[expert].back() = fixed(totals[expert]) - (g - 1) * (fixed(totals[expert]) / g);
            c[expert].assign(held_by.size(), 0);
        }
    }
    const int sweeps = !is_own ? 6 : all >= 1024 ? 3 : 2, rounds = is_own && all < 1024 ? 4 : 8;
    for (int s = 0; s < sweeps; s++) {
        const auto loads = loads_of(p, 1);
        const int64_t step = step_factors[s] * 65536 / a;
        for (auto &[expert, tokens] : p) {
            const int64_t t = fixed(totals[expert]), g = static_cast<int64_t>(tokens.size());
            int64_t mean = 0;
            for (const uint32_t rank : ranks[expert]) {
                mean += loads[rank] * ((int64_t(1) << 32) / g) / (int64_t(1) << 32);
            }
            std::vector<int64_t> n;
            for (size_t x = 0; x < tokens.size(); x++) {
                const int64_t moved = floor_div(step * (mean - loads[ranks[expert][x]]), 1 << 24);
                n.push_back(std::max<int64_t>(
                    0, tokens[x] + moved + floor_div(step_momenta[s] * c[expert][x], 1 << 24)));
            }
            if (g == 2) {
                n = {std::min(n[0], t), t - std::min(n[0], t)};
            } else {
                const int64_t excess = total_of(n) - t;
                if (excess > 0) {
                    const int64_t positive =
                        std::count_if(n.begin(), n.end(), [](int64_t value) { return value > 0; });
                    for (int64_t &value : n) {
                        value = std::max<int64_t>(0, value - excess / positive);
                    }
                }
                int64_t left = total_of(n) - t;
                for (auto value = n.rbegin(); value != n.rend(); ++value) {
                    const int64_t less = std::min(left, *value);
                    *value -= less;
                    left -= less;
                }
            }
            for (size_t x = 0; x < n.size(); x++) {
                c[expert][x] = n[x] - tokens[x];
            }
            tokens = n;
        }
    }
    for (const auto &[expert, tokens] : p) {
        const auto g = tokens.size();
        u[expert].resize(g);
        int64_t sum = 0, before = 0;
        for (size_t i = 0; i < g; i++) {
            const size_t x = (static_cast<size_t>(fixed(totals[expert]) / token) + i) % g;
            sum += tokens[x];
            const int64_t up_to = (sum + token / 2) / token;
            u[expert][x] = up_to - before;
            before = up_to;
        }
    }
    auto loads = loads_of(u, token);
    const auto num_ranks = static_cast<int64_t>(layer.num_ranks);
    const int64_t most = (static_cast<int64_t>(all >> down) + num_ranks - 1) / num_ranks;
    for (int round = 1; round <= rounds; round++) {
        struct proposal {
            uint32_t expert;
            size_t from, to;
            int64_t apart;
            uint64_t key;
        };
        std::vector<proposal> proposals;
        for (const auto &[expert, tokens] : u) {
            const auto load = [&, expert = expert](size_t x) { return loads[ranks[expert][x]]; };
            size_t from = tokens.size(), to = 0;
            for (size_t x = 0; x < tokens.size(); x++) {
                if (tokens[x] > 0 && (from == tokens.size() || load(x) > load(from))) {
                    from = x;
                }
                to = load(x) < load(to) ? x : to;
            }
            if (from == tokens.size()) {
                continue;
            }
            const int64_t apart = load(from) - load(to);
            if (apart >= 2 || (apart == 1 && load(from) > most)) {
                const uint64_t place = (uint64_t(expert) * 2654435769u * (2 * uint64_t(round) - 1)) % (1 << 20);
                proposals.push_back({expert, from, to, apart,
                                     static_cast<uint64_t>(std::min<int64_t>(apart, 255)) * (1 << 20) + place});
            }
        }
        if (proposals.empty()) {
            break;
        }
        std::map<uint32_t, uint64_t> largest;
        for (const auto &one : proposals) {
            for (const size_t x : {one.from, one.to}) {
                largest[ranks[one.expert][x]] = std::max(largest[ranks[one.expert][x]], one.key);
            }
        }
        for (const auto &one : proposals) {
            const uint32_t giver = ranks[one.expert][one.from], taker = ranks[one.expert][one.to];
            if (largest[giver] == one.key && largest[taker] == one.key) {
                const int64_t amount =
                    std::min(std::max<int64_t>(one.apart / 2, 1), u[one.expert][one.from]);
                u[one.expert][one.from] -= amount;
                u[one.expert][one.to] += amount;
                loads[giver] -= amount;
                loads[taker] += amount;
            }
        }
    }
    for (const auto &[expert, held_by] : ranks) {
        uint64_t left = totals[expert];
        for (size_t x = 0; x < held_by.size(); x++) {
            const uint64_t tokens = u[expert].empty() ? 0 : static_cast<uint64_t>(u[expert][x]) << down;
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
