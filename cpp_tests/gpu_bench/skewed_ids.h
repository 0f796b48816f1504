// Ids of a router that prefers few experts: the n-th most popular of a layer gets 1/n of the first one's
// tokens. A token's choices differ, and layers prefer different experts.
#ifndef EPLB_GPU_BENCH_SKEWED_IDS_H
#define EPLB_GPU_BENCH_SKEWED_IDS_H

#include <numeric>
#include <random>

#include "bench.h"

/// A batch of `rank` for each layer, int32, on the host and on the device, and the counts of all ranks.
class skewed_ids {
  public:
    skewed_ids(size_t layers, uint32_t num_ids, const engine_stream &stream, uint32_t num_ranks = 1,
               uint32_t rank = 0)
        : num_ids_(num_ids), rank_(rank),
          rank_counts_(layers, {num_ranks, std::vector<uint64_t>(num_experts)}), device_(layers * num_ids) {
        std::mt19937_64 random(1);
        std::vector<std::vector<int32_t>> places;
        for (uint32_t of = 0; of < num_ranks; of++) {
            places.push_back(places_of_rank(random));
        }
        std::vector<int32_t> experts(num_experts);
        std::iota(experts.begin(), experts.end(), 0);
        for (size_t layer = 0; layer < layers; layer++) {
            std::shuffle(experts.begin(), experts.end(), random);
            for (uint32_t of = 0; of < num_ranks; of++) {
                for (const int32_t place : places[of]) {
                    const int32_t id = experts[size_t(place)];
                    rank_counts_[layer][of][size_t(id)]++;
                    if (of == rank) {
                        host_.push_back(id);
                    }
                }
            }
        }
        device_.upload(host_, stream);
        stream.synchronize();
    }

    size_t layers() const { return rank_counts_.size(); }
    uint32_t num_ids() const { return num_ids_; }
    uint32_t num_tokens() const { return num_ids_ / experts_per_token; }

    std::vector<int32_t> on_host(size_t layer) const {
        const auto first = host_.begin() + std::ptrdiff_t(layer * num_ids_);
        return {first, first + num_ids_};
    }
    const int32_t *on_device(size_t layer) const { return device_.data() + layer * num_ids_; }

    /// [ranks][experts].
    const std::vector<std::vector<uint64_t>> &rank_counts(size_t layer) const { return rank_counts_[layer]; }
    /// The expected counts of the batch.
    std::vector<double> counts(size_t layer) const {
        const auto &counts = rank_counts_[layer][rank_];
        return {counts.begin(), counts.end()};
    }

  private:
    /// The popularity rank of each id.
    std::vector<int32_t> places_of_rank(std::mt19937_64 &random) const {
        std::vector<double> weights(num_experts);
        for (size_t i = 0; i < weights.size(); i++) {
            weights[i] = 1.0 / double(i + 1);
        }
        std::discrete_distribution<int32_t> popular(weights.begin(), weights.end());
        std::vector<int32_t> places(num_ids_);
        for (size_t i = 0; i < places.size(); i++) {
            const auto token = places.begin() + std::ptrdiff_t(i - i % experts_per_token);
            const auto here = places.begin() + std::ptrdiff_t(i);
            do {
                *here = popular(random);
            } while (std::find(token, here, *here) != here);
        }
        return places;
    }

    uint32_t num_ids_, rank_;
    std::vector<std::vector<std::vector<uint64_t>>> rank_counts_;
    std::vector<int32_t> host_;
    engine_array<int32_t> device_;
};

#endif
