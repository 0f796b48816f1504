// Live rebalancing for C++17: RAII handles over eplb_live.h. See eplb.hpp.
#ifndef EPLB_LIVE_HPP
#define EPLB_LIVE_HPP

#include "eplb_live.h"
#include "eplb_tools.hpp"

namespace eplb {

/// eplb_plan_options.
struct plan_options {
    /// Empty, or one of each rank.
    std::vector<std::int32_t> rank_to_node = {};
    /// Empty, or one of each rank.
    std::vector<std::uint8_t> active = {};
    eplb_buffering buffering = EPLB_BUFFERING_STAGED;

    eplb_plan_options c() const {
        eplb_plan_options c = EPLB_PLAN_OPTIONS_INIT;
        c.rank_to_node = rank_to_node.empty() ? nullptr : rank_to_node.data();
        c.active = active.empty() ? nullptr : active.data();
        c.num_ranks = static_cast<std::uint32_t>(std::max(rank_to_node.size(), active.size()));
        c.buffering = buffering;
        return c;
    }

    /// Whether the arrays are of one length, or empty.
    bool fits() const {
        return rank_to_node.empty() || active.empty() || rank_to_node.size() == active.size();
    }
};

/// The moves from one placement to another.
class plan {
  public:
    /// Takes over a handle.
    explicit plan(eplb_plan *handle) : handle_(handle) {}

    static returns<plan> create(const placement &from, const placement &to,
                                const plan_options &options = {}) {
        if (!options.fits()) {
            return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, plan(nullptr),
                                  "rank_to_node and active are not both [num_ranks] long");
        }
        const eplb_plan_options c = options.c();
        return detail::make<plan, eplb_plan>(
            [&](eplb_plan **handle) { return eplb_plan_create(from.get(), to.get(), &c, handle); });
    }

    returns<eplb_plan_info> info() const {
        return detail::run([&](eplb_plan_info &info) { return eplb_plan_get_info(get(), &info); },
                           eplb_plan_info(EPLB_PLAN_INFO_INIT));
    }

    /// The layers that change, by falling gain a move.
    returns<view<std::int32_t>> layer_ids() const {
        return detail::run(
            [&](view<std::int32_t> &layers) {
                eplb_plan_info info = EPLB_PLAN_INFO_INIT;
                const eplb_status status = eplb_plan_get_info(get(), &info);
                layers = {info.layer_ids, info.num_layers};
                return status;
            },
            view<std::int32_t>());
    }

    returns<eplb_planned_layer> layer_info(std::int32_t layer) const {
        return detail::run(
            [&](eplb_planned_layer &info) { return eplb_plan_layer_info(get(), layer, &info); },
            eplb_planned_layer(EPLB_PLANNED_LAYER_INIT));
    }

    /// The expert of each slot after a commit of the layer.
    returns<view<std::int32_t>> layer_experts(std::int32_t layer, std::uint32_t commit = 0) const {
        return detail::run(
            [&](view<std::int32_t> &experts) {
                const std::int32_t *data = nullptr;
                std::size_t size = 0;
                const eplb_status status = eplb_plan_layer_experts(get(), layer, commit, &data, &size);
                experts = {data, size};
                return status;
            },
            view<std::int32_t>());
    }

    /// The transfers in which a rank takes part, in the order of all ranks; -1: all.
    returns<std::vector<eplb_transfer>> transfers(std::int32_t layer, std::int32_t rank = -1) const {
        return detail::run(
            [&](std::vector<eplb_transfer> &transfers) {
                std::size_t size = 0;
                const eplb_status status = eplb_plan_transfers(get(), layer, rank, nullptr, 0, &size);
                if (status != EPLB_STATUS_OK) {
                    return status;
                }
                transfers.resize(size);
                return eplb_plan_transfers(get(), layer, rank, transfers.data(), size, &size);
            },
            std::vector<eplb_transfer>());
    }

    returns<std::uint32_t> num_readers(std::int32_t layer, std::uint32_t slot) const {
        return detail::run(
            [&](std::uint32_t &readers) { return eplb_plan_num_readers(get(), layer, slot, &readers); },
            std::uint32_t(0));
    }

    const eplb_plan *get() const noexcept { return handle_.get(); }

  private:
    detail::owner<eplb_plan, eplb_plan_destroy>::type handle_;
};

/// eplb_plan_limits.
struct plan_limits {
    std::uint32_t max_layer_moves = 0;
    std::uint32_t max_moves = 0;
    std::uint32_t max_rank_moves = 0;
    std::uint32_t max_pair_moves = 0;
    std::uint32_t max_layers = 0;
    eplb_buffering buffering = EPLB_BUFFERING_STAGED;
    double node_price = 0;
    double remote_price = 0;
    double horizon = 0;

    eplb_plan_limits c() const {
        eplb_plan_limits c = EPLB_PLAN_LIMITS_INIT;
        c.max_layer_moves = max_layer_moves;
        c.max_moves = max_moves;
        c.max_rank_moves = max_rank_moves;
        c.max_pair_moves = max_pair_moves;
        c.max_layers = max_layers;
        c.buffering = buffering;
        c.node_price = node_price;
        c.remote_price = remote_price;
        c.horizon = horizon;
        return c;
    }
};

/// eplb_rebalancer_config.
struct rebalancer_config {
    std::uint32_t experts_per_token = 0;
    std::uint32_t num_windows = 0;
    std::uint32_t half_life = 0;
    std::uint32_t num_phases = 0;
    std::uint32_t max_replicas = 0;
    std::uint32_t num_threads = 0;
    eplb_objective objective = EPLB_OBJECTIVE_EVEN_SPLIT;
    /// Empty, or one of each rank.
    std::vector<std::int32_t> rank_to_node = {};
    /// Empty, or one of each slot.
    std::vector<std::uint8_t> pinned_slots = {};
    std::int64_t min_tokens = 0;
    std::int64_t cooldown = 0;
    double trigger = 0;
    double release = 0;
    double min_gain = 0;
    double min_relative_gain = 0;
    double noise = 0;

    eplb_rebalancer_config c() const {
        eplb_rebalancer_config c = EPLB_REBALANCER_CONFIG_INIT;
        c.experts_per_token = experts_per_token;
        c.num_windows = num_windows;
        c.half_life = half_life;
        c.num_phases = num_phases;
        c.max_replicas = max_replicas;
        c.num_threads = num_threads;
        c.objective = objective;
        c.rank_to_node = rank_to_node.empty() ? nullptr : rank_to_node.data();
        c.pinned_slots = pinned_slots.empty() ? nullptr : pinned_slots.data();
        c.min_tokens = min_tokens;
        c.cooldown = cooldown;
        c.trigger = trigger;
        c.release = release;
        c.min_gain = min_gain;
        c.min_relative_gain = min_relative_gain;
        c.noise = noise;
        return c;
    }

    /// Whether the arrays are of these lengths, or empty.
    bool fits(std::size_t num_ranks, std::size_t num_slots) const {
        return (rank_to_node.empty() || rank_to_node.size() == num_ranks) &&
               (pinned_slots.empty() || pinned_slots.size() == num_slots);
    }
};

/// Observes counts and plans. Holds the placement in force.
class rebalancer {
  public:
    /// Takes over a handle.
    explicit rebalancer(eplb_rebalancer *handle) : handle_(handle) {}

    static returns<rebalancer> create(const rebalancer_config &config, const eplb::placement &placement) {
        const eplb_rebalancer_config c = config.c();
        eplb_placement_info info = EPLB_PLACEMENT_INFO_INIT;
        eplb_status status = detail::abi();
        if (status != EPLB_STATUS_OK) {
            return detail::finish(status, rebalancer(nullptr), detail::abi_message());
        }
        status = eplb_placement_get_info(placement.get(), &info);
        if (status != EPLB_STATUS_OK) {
            return detail::finish(status, rebalancer(nullptr));
        }
        if (!config.fits(info.num_ranks, info.num_slots)) {
            return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, rebalancer(nullptr),
                                  "rank_to_node is not [num_ranks] long, or pinned_slots not [num_slots]");
        }
        return detail::make<rebalancer, eplb_rebalancer>(
            [&](eplb_rebalancer **handle) { return eplb_rebalancer_create(&c, placement.get(), handle); });
    }

    /// `counts` is [num_samples][num_layers][num_experts], empty for EPLB_PHASE_NOT_COUNTED.
    returns<done> observe(view<std::int64_t> counts, std::uint32_t num_samples, std::uint64_t num_tokens,
                          std::int32_t phase = 0) {
        return call(
            [&] { return eplb_rebalancer_observe(get(), counts.data(), num_samples, num_tokens, phase); });
    }

    returns<eplb::plan> plan(const plan_limits &limits = {}) {
        const eplb_plan_limits c = limits.c();
        return detail::make<eplb::plan, eplb_plan>(
            [&](eplb_plan **handle) { return eplb_rebalancer_plan(get(), &c, handle); });
    }

    returns<done> commit_layer(const eplb::plan &plan, std::int32_t layer) {
        return call([&] { return eplb_rebalancer_commit_layer(get(), plan.get(), layer); });
    }

    returns<done> abort(const eplb::plan &plan) {
        return call([&] { return eplb_rebalancer_abort(get(), plan.get()); });
    }

    /// Aborts the plan in flight, also one whose handle is destroyed.
    returns<done> abort() {
        return call([&] { return eplb_rebalancer_abort(get(), nullptr); });
    }

    /// What is in force.
    returns<eplb::placement> placement() const {
        return detail::make<eplb::placement, eplb_placement>(
            [&](eplb_placement **handle) { return eplb_rebalancer_placement(get(), handle); });
    }

    /// One of each rank, 0 for a dead one.
    returns<done> set_active_ranks(view<std::uint8_t> active) {
        return call([&] {
            return eplb_rebalancer_set_active_ranks(get(), active.data(),
                                                    static_cast<std::uint32_t>(active.size()));
        });
    }

    returns<done> reset(const eplb::placement &placement) {
        return call([&] { return eplb_rebalancer_reset(get(), placement.get()); });
    }

    returns<eplb_rebalancer_info> info() const {
        return detail::run([&](eplb_rebalancer_info &info) { return eplb_rebalancer_get_info(get(), &info); },
                           eplb_rebalancer_info(EPLB_REBALANCER_INFO_INIT));
    }

    eplb_rebalancer *get() noexcept { return handle_.get(); }
    const eplb_rebalancer *get() const noexcept { return handle_.get(); }

  private:
    template <class Call> returns<done> call(Call call) {
        return detail::run([&](done &) { return call(); }, done());
    }

    detail::owner<eplb_rebalancer, eplb_rebalancer_destroy>::type handle_;
};

/// eplb_metrics_add_rebalancer().
inline returns<done> add(metrics &metrics, const rebalancer &rebalancer, const metrics_labels &labels = {}) {
    std::vector<eplb_metrics_label> c;
    for (const auto &[name, value] : labels) {
        c.push_back({name.c_str(), value.c_str()});
    }
    return detail::run(
        [&](done &) {
            return eplb_metrics_add_rebalancer(metrics.get(), rebalancer.get(), c.data(), c.size());
        },
        done());
}

/// eplb_recorder_snapshot(): [num_samples][num_layers][num_experts] of the recorder's device, or page-locked.
inline returns<done> snapshot(recorder &recorder, std::int64_t *counts, std::uint32_t num_samples,
                              struct CUstream_st *stream = nullptr) {
    return detail::run(
        [&](done &) { return eplb_recorder_snapshot(recorder.get(), counts, num_samples, stream); }, done());
}

/// eplb_dispatch_host_memory_required(): page-locked bytes, beside dispatch::memory_required().
inline returns<std::size_t> host_memory_required(const placement &placement, const dispatch_config &config) {
    if (!config.fits()) {
        return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, std::size_t(0), detail::nodes_message());
    }
    const eplb_dispatch_config c = config.c();
    return detail::run(
        [&](std::size_t &bytes) { return eplb_dispatch_host_memory_required(placement.get(), &c, &bytes); },
        std::size_t(0));
}

/// eplb_dispatch_stage_layer().
inline returns<done> stage_layer(const dispatch &dispatch, const plan &plan, std::int32_t layer,
                                 struct CUstream_st *stream = nullptr) {
    return detail::run(
        [&](done &) { return eplb_dispatch_stage_layer(dispatch.get(), plan.get(), layer, stream); }, done());
}

/// eplb_dispatch_commit_layer().
inline returns<done> commit_layer(const dispatch &dispatch, std::int32_t layer,
                                  struct CUstream_st *stream = nullptr) {
    return detail::run([&](done &) { return eplb_dispatch_commit_layer(dispatch.get(), layer, stream); },
                       done());
}

/// eplb_dispatch_update_layer().
inline returns<done> update_layer(const dispatch &dispatch, const plan &plan, std::int32_t layer,
                                  struct CUstream_st *stream = nullptr) {
    return detail::run(
        [&](done &) { return eplb_dispatch_update_layer(dispatch.get(), plan.get(), layer, stream); },
        done());
}

/// eplb_dispatch_set_active_ranks().
inline returns<done> set_active_ranks(const dispatch &dispatch, view<std::uint8_t> active,
                                      struct CUstream_st *stream = nullptr) {
    return detail::run(
        [&](done &) {
            return eplb_dispatch_set_active_ranks(dispatch.get(), active.data(),
                                                  static_cast<std::uint32_t>(active.size()), stream);
        },
        done());
}

/// eplb_dispatch_get_generation().
inline returns<std::uint64_t> generation(const dispatch &dispatch, std::int32_t layer) {
    return detail::run(
        [&](std::uint64_t &generation) {
            return eplb_dispatch_get_generation(dispatch.get(), layer, &generation);
        },
        std::uint64_t(0));
}

} // namespace eplb

#endif // EPLB_LIVE_HPP
