// eplb for C++17: RAII handles and exceptions over eplb.h, header-only, no behaviour of its own.
//
// Each class owns one C handle, moves and does not copy; `get()` lends the handle to C calls. What fails
// throws eplb::error. Views into a handle live as long as it does. Threading is as eplb.h says.
#ifndef EPLB_HPP
#define EPLB_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "eplb.h"

namespace eplb {

/// A status other than EPLB_STATUS_OK, with its message.
class error : public std::runtime_error {
  public:
    error(eplb_status status, const char *message) : std::runtime_error(message), status_(status) {}

    eplb_status status() const noexcept { return status_; }

  private:
    eplb_status status_;
};

/// Throws unless `status` is EPLB_STATUS_OK.
inline void check(eplb_status status) {
    if (status != EPLB_STATUS_OK) {
        throw error(status, eplb_last_error_message());
    }
}

/// Throws unless the loaded library has the interface of this header. Called where handles are made.
inline void check_abi() {
    static const bool fits = eplb_abi_version() == EPLB_ABI_VERSION;
    if (!fits) {
        throw std::runtime_error("libeplb has another ABI version than the header eplb.h");
    }
}

/// Consecutive values that belong to somebody else.
template <class T> class view {
  public:
    view() = default;
    view(const T *data, std::size_t size) : data_(data), size_(size) {}
    view(const std::vector<T> &values) : data_(values.data()), size_(values.size()) {}

    const T *data() const noexcept { return data_; }
    std::size_t size() const noexcept { return size_; }
    bool empty() const noexcept { return size_ == 0; }
    const T *begin() const noexcept { return data_; }
    const T *end() const noexcept { return data_ + size_; }
    const T &operator[](std::size_t i) const { return data_[i]; }

  private:
    const T *data_ = nullptr;
    std::size_t size_ = 0;
};

/// The counts of a dump.
class stats {
  public:
    static stats load(const std::string &path, eplb_stats_options options = EPLB_STATS_OPTIONS_INIT) {
        check_abi();
        eplb_stats *handle = nullptr;
        check(eplb_stats_load(path.c_str(), &options, &handle));
        return stats(handle);
    }

    eplb_stats_info info() const {
        eplb_stats_info info = EPLB_STATS_INFO_INIT;
        check(eplb_stats_get_info(get(), &info));
        return info;
    }

    view<std::int32_t> layer_ids() const {
        const eplb_stats_info held = info();
        return {held.layer_ids, held.num_layers};
    }

    /// The loads of a layer, [num_samples][num_experts]; 1 sample is the sum over the iterations.
    std::vector<double> layer_loads(std::int32_t layer, std::size_t num_samples = 1) const {
        const std::size_t num_experts = info().num_experts;
        std::vector<double> loads(num_samples * num_experts);
        check(eplb_stats_layer_loads(get(), layer, num_samples, num_experts, loads.data()));
        return loads;
    }

    const eplb_stats *get() const noexcept { return handle_.get(); }

  private:
    struct destroy {
        void operator()(eplb_stats *handle) const noexcept { eplb_stats_destroy(handle); }
    };

    explicit stats(eplb_stats *handle) : handle_(handle) {}

    std::unique_ptr<eplb_stats, destroy> handle_;
};

/// Which expert each slot holds.
class placement {
  public:
    /// Takes over a handle.
    explicit placement(eplb_placement *handle) : handle_(handle) {}

    /// From arrays: `slot_experts` is [layers][slots].
    static placement create(const eplb_placement_config &config, view<std::int32_t> layer_ids,
                            view<std::int32_t> slot_experts) {
        check_abi();
        const std::size_t num_slots = config.num_slots != 0 ? config.num_slots : config.num_experts;
        if (slot_experts.size() != layer_ids.size() * num_slots) {
            throw error(EPLB_STATUS_INVALID_ARGUMENT, "slot_experts is not [layers][slots] long");
        }
        eplb_placement *handle = nullptr;
        check(
            eplb_placement_create(&config, layer_ids.data(), layer_ids.size(), slot_experts.data(), &handle));
        return placement(handle);
    }

    static placement load(const std::string &path,
                          eplb_placement_load_options options = EPLB_PLACEMENT_LOAD_OPTIONS_INIT) {
        check_abi();
        eplb_placement *handle = nullptr;
        check(eplb_placement_load(path.c_str(), &options, &handle));
        return placement(handle);
    }

    void save(const std::string &path) const { check(eplb_placement_save(get(), path.c_str())); }

    eplb_placement_info info() const {
        eplb_placement_info info = EPLB_PLACEMENT_INFO_INIT;
        check(eplb_placement_get_info(get(), &info));
        return info;
    }

    view<std::int32_t> layer_ids() const {
        const eplb_placement_info held = info();
        return {held.layer_ids, held.num_layers};
    }

    /// The expert of each slot of a layer.
    view<std::int32_t> layer_experts(std::int32_t layer) const {
        const std::int32_t *experts = nullptr;
        std::size_t size = 0;
        check(eplb_placement_layer_experts(get(), layer, &experts, &size));
        return {experts, size};
    }

    /// The experts that a rank must hold in a layer, in the order of its slots.
    view<std::int32_t> rank_experts(std::int32_t layer, std::uint32_t rank) const {
        const std::int32_t *experts = nullptr;
        std::size_t size = 0;
        check(eplb_placement_rank_experts(get(), layer, rank, &experts, &size));
        return {experts, size};
    }

    /// Everything that eplb_placement_validate() lists.
    std::vector<eplb_placement_issue> issues() const {
        std::size_t size = 0;
        check(eplb_placement_validate(get(), nullptr, 0, &size));
        std::vector<eplb_placement_issue> issues(size);
        check(eplb_placement_validate(get(), issues.data(), issues.size(), &size));
        return issues;
    }

    /// How evenly the ranks would be loaded; `loads` is [samples][experts].
    eplb_placement_evaluation evaluate(std::int32_t layer, view<double> loads) const {
        const std::size_t num_experts = info().num_experts;
        eplb_placement_evaluation evaluation = EPLB_PLACEMENT_EVALUATION_INIT;
        if (loads.size() % num_experts != 0) {
            throw error(EPLB_STATUS_INVALID_ARGUMENT, "loads is not [samples][experts] long");
        }
        check(eplb_placement_evaluate(get(), loads.data(), layer, loads.size() / num_experts, num_experts,
                                      &evaluation));
        return evaluation;
    }

    std::uint64_t hash() const {
        std::uint64_t hash = 0;
        check(eplb_placement_hash(get(), &hash));
        return hash;
    }

    const eplb_placement *get() const noexcept { return handle_.get(); }

  private:
    struct destroy {
        void operator()(eplb_placement *handle) const noexcept { eplb_placement_destroy(handle); }
    };

    std::unique_ptr<eplb_placement, destroy> handle_;
};

/// eplb_solve(): `loads` is [layers][samples][experts].
inline placement solve(const eplb_solve_config &config, view<double> loads, view<std::int32_t> layer_ids,
                       std::size_t num_samples, std::size_t num_experts) {
    check_abi();
    if (loads.size() != layer_ids.size() * num_samples * num_experts) {
        throw error(EPLB_STATUS_INVALID_ARGUMENT, "loads is not [layers][samples][experts] long");
    }
    eplb_placement *handle = nullptr;
    check(eplb_solve(&config, loads.data(), layer_ids.data(), layer_ids.size(), num_samples, num_experts,
                     &handle));
    return placement(handle);
}

/// eplb_generate() without a progress callback other than the config's own.
inline eplb_generate_report generate(const eplb_generate_config &config) {
    check_abi();
    eplb_generate_report report = EPLB_GENERATE_REPORT_INIT;
    check(eplb_generate(&config, &report));
    return report;
}

/// eplb_generate() with `progress(phase, done, total)`, which returns whether to go on. It may throw: the
/// work is cancelled and the exception comes out here.
template <class Progress> eplb_generate_report generate(eplb_generate_config config, Progress &&progress) {
    struct call {
        std::remove_reference_t<Progress> &progress;
        std::exception_ptr thrown;
    } state{progress, nullptr};
    config.user_data = &state;
    config.progress = [](void *user_data, eplb_phase phase, std::uint64_t done,
                         std::uint64_t total) -> std::int32_t {
        call &self = *static_cast<call *>(user_data);
        try {
            return self.progress(phase, done, total) ? 0 : 1;
        } catch (...) {
            self.thrown = std::current_exception();
            return 1;
        }
    };
    try {
        return generate(std::as_const(config));
    } catch (const error &) {
        if (state.thrown) {
            std::rethrow_exception(state.thrown);
        }
        throw;
    }
}

/// The valid numbers of slots nearest to a wanted one, below and above; 0 where there is none.
inline std::pair<std::uint32_t, std::uint32_t>
suggest_num_slots(std::uint32_t num_experts, std::uint32_t num_ranks, std::uint32_t num_slots) {
    check_abi();
    std::pair<std::uint32_t, std::uint32_t> nearest;
    check(eplb_suggest_num_slots(num_experts, num_ranks, num_slots, &nearest.first, &nearest.second));
    return nearest;
}

} // namespace eplb

#endif // EPLB_HPP
