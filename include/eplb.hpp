// eplb for C++17: RAII handles over eplb.h, header-only, no behaviour of its own.
//
// Each class owns one C handle, moves and does not copy; get() lends the handle to C calls. Views into a
// handle live as long as it does. Configs are plain structs: set what differs from the default, in C++20 in
// place:
//
//     eplb::generate({.expert_statistic_path = "dump", .output_path = "moe_load_balancer.yaml", .num_ranks =
//     8});
//
// What fails throws eplb::error. With EPLB_NO_EXCEPTIONS, which -fno-exceptions implies, nothing throws, and
// each call that can fail returns an eplb::result: look before you take the value. Threading is as eplb.h
// says.
#ifndef EPLB_HPP
#define EPLB_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "eplb.h"

#if !defined(EPLB_NO_EXCEPTIONS) && !defined(__cpp_exceptions)
#define EPLB_NO_EXCEPTIONS
#endif

#ifdef EPLB_NO_EXCEPTIONS
#include <cassert>
#include <optional>
#else
#include <exception>
#include <stdexcept>
#endif

namespace eplb {

#ifdef EPLB_NO_EXCEPTIONS

/// A value, or the status and message of why there is none.
template <class T> class [[nodiscard]] result {
  public:
    result(T &&value) : value_(std::move(value)) {}
    result(eplb_status status, const char *message) : status_(status), message_(message) {}

    explicit operator bool() const noexcept { return value_.has_value(); }
    eplb_status status() const noexcept { return status_; }
    const std::string &message() const noexcept { return message_; }

    /// The value; only where there is one.
    T &operator*() {
        assert(value_);
        return *value_;
    }
    T *operator->() { return &**this; }

  private:
    eplb_status status_ = EPLB_STATUS_OK;
    std::string message_;
    std::optional<T> value_;
};

/// What a call that succeeds without a value returns.
struct done {};

template <class T> using returns = result<T>;

#else

/// A status other than EPLB_STATUS_OK, with its message.
class error : public std::runtime_error {
  public:
    error(eplb_status status, const char *message) : std::runtime_error(message), status_(status) {}

    eplb_status status() const noexcept { return status_; }

  private:
    eplb_status status_;
};

struct done {};

template <class T> using returns = T;

#endif

namespace detail {

/// Ends a call: throws, or returns the status, unless it is EPLB_STATUS_OK.
template <class T> returns<T> finish(eplb_status status, T &&value, const char *message = nullptr) {
    if (status != EPLB_STATUS_OK) {
        message = message != nullptr ? message : eplb_last_error_message();
#ifdef EPLB_NO_EXCEPTIONS
        return {status, message};
#else
        throw error(status, message);
#endif
    }
    return std::forward<T>(value);
}

/// EPLB_STATUS_OK if the loaded library has the interface of this header.
inline eplb_status abi() {
    static const bool fits = eplb_abi_version() == EPLB_ABI_VERSION;
    return fits ? EPLB_STATUS_OK : EPLB_STATUS_INVALID_ARGUMENT;
}

inline const char *abi_message() { return "libeplb has another ABI version than the header eplb.h"; }

/// Runs a C call, but not in a library with another interface.
template <class T, class Call> returns<T> run(Call call, T &&value) {
    if (abi() != EPLB_STATUS_OK) {
        return finish(abi(), std::forward<T>(value), abi_message());
    }
    const eplb_status status = call(value);
    return finish(status, std::forward<T>(value));
}

/// An owned handle.
template <class Handle, void (*Destroy)(Handle *)> struct owner {
    struct destroy {
        void operator()(Handle *handle) const noexcept { Destroy(handle); }
    };
    using type = std::unique_ptr<Handle, destroy>;
};

/// As run(), for a call that makes the handle of an `Object`.
template <class Object, class Handle, class Call> returns<Object> make(Call call) {
    Handle *handle = nullptr;
    const eplb_status fits = abi();
    const eplb_status status = fits == EPLB_STATUS_OK ? call(&handle) : fits;
    return finish(status, Object(handle), fits == EPLB_STATUS_OK ? nullptr : abi_message());
}

} // namespace detail

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

/// eplb_recorder_config.
struct recorder_config {
    std::string path = {};
    std::int64_t iter_start = 0;
    std::int64_t iter_stop = 0;
    std::uint32_t rank = 0;
    std::uint32_t num_ranks = 0;
    std::uint32_t num_experts = 0;
    std::uint32_t experts_per_token = 0;
    std::vector<std::int32_t> layer_ids = {};
    std::int32_t device = EPLB_DEVICE_HOST;
    eplb_counted counted = EPLB_COUNTED_EXPERTS;
    std::uint64_t max_tokens_per_iteration = 0;
    std::string run_id = {};
    void *workspace = nullptr;
    std::size_t workspace_bytes = 0;

    /// Takes iterations and path from the environment: eplb_recorder_config_from_env().
    returns<done> from_env() {
        return detail::run(
            [&](done &) {
                eplb_recorder_config filled = c();
                const eplb_status status = eplb_recorder_config_from_env(&filled);
                if (status == EPLB_STATUS_OK) {
                    iter_start = filled.iter_start;
                    iter_stop = filled.iter_stop;
                    // A copy before it is assigned: filled.path may be path's own characters.
                    path = filled.path != nullptr ? std::string(filled.path) : std::string();
                }
                return status;
            },
            done());
    }

    eplb_recorder_config c() const {
        eplb_recorder_config c = EPLB_RECORDER_CONFIG_INIT;
        c.path = path.empty() ? nullptr : path.c_str();
        c.iter_start = iter_start;
        c.iter_stop = iter_stop;
        c.rank = rank;
        c.num_ranks = num_ranks;
        c.num_experts = num_experts;
        c.experts_per_token = experts_per_token;
        c.layer_ids = layer_ids.data();
        c.num_layers = layer_ids.size();
        c.device = device;
        c.counted = counted;
        c.max_tokens_per_iteration = max_tokens_per_iteration;
        c.run_id = run_id.empty() ? nullptr : run_id.c_str();
        c.workspace = workspace;
        c.workspace_bytes = workspace_bytes;
        return c;
    }
};

/// What eplb_recorder_memory_required() tells.
struct recorder_memory {
    std::size_t workspace_bytes = 0;
    std::size_t host_bytes = 0;
};

/// Counts which experts the router chose. Calls take turns, so that a const recorder counts too.
class recorder {
  public:
    /// CUDA's streams convert to it.
    using stream = struct CUstream_st *;

    /// Takes over a handle.
    explicit recorder(eplb_recorder *handle) : handle_(handle) {}

    static returns<recorder> create(const recorder_config &config) {
        const eplb_recorder_config c = config.c();
        return detail::make<recorder, eplb_recorder>(
            [&](eplb_recorder **handle) { return eplb_recorder_create(&c, handle); });
    }

    static returns<recorder_memory> memory_required(const recorder_config &config) {
        const eplb_recorder_config c = config.c();
        return detail::run(
            [&](recorder_memory &memory) {
                return eplb_recorder_memory_required(&c, &memory.workspace_bytes, &memory.host_bytes);
            },
            recorder_memory());
    }

    returns<done> register_buffer(std::int32_t layer, const void *expert_ids, eplb_dtype dtype,
                                  std::uint32_t max_tokens, const std::int32_t *num_valid = nullptr,
                                  stream on = nullptr) const {
        return call([&] {
            return eplb_recorder_register_buffer(get(), layer, expert_ids, dtype, max_tokens, num_valid, on);
        });
    }

    returns<done> begin_iteration(std::int64_t iteration, stream on = nullptr) const {
        return call([&] { return eplb_recorder_begin_iteration(get(), iteration, on); });
    }

    returns<done> count(std::int32_t layer, std::uint32_t num_tokens, stream on = nullptr) const {
        return call([&] { return eplb_recorder_count(get(), layer, num_tokens, on); });
    }

    returns<done> count_ids(std::int32_t layer, const void *expert_ids, eplb_dtype dtype,
                            std::uint32_t num_tokens, const std::int32_t *num_valid = nullptr,
                            stream on = nullptr) const {
        return call([&] {
            return eplb_recorder_count_ids(get(), layer, expert_ids, dtype, num_tokens, num_valid, on);
        });
    }

    returns<done> dump(stream on = nullptr) const {
        return call([&] { return eplb_recorder_dump(get(), on); });
    }

    /// Waits as long as it takes unless a timeout is given.
    returns<done> flush(std::int64_t timeout_ms = -1) const {
        return call([&] { return eplb_recorder_flush(get(), timeout_ms); });
    }

    returns<done> reset(stream on = nullptr) const {
        return call([&] { return eplb_recorder_reset(get(), on); });
    }

    returns<eplb_recorder_info> info() const {
        return detail::run(
            [&](eplb_recorder_info &info) { return eplb_recorder_get_info(get(), &info, nullptr, 0); },
            eplb_recorder_info(EPLB_RECORDER_INFO_INIT));
    }

    /// The valid tokens counted of each layer; `num_layers` is that of the config.
    returns<std::vector<std::uint64_t>> layer_tokens(std::size_t num_layers) const {
        return detail::run(
            [&](std::vector<std::uint64_t> &tokens) {
                eplb_recorder_info info = EPLB_RECORDER_INFO_INIT;
                tokens.resize(num_layers);
                return eplb_recorder_get_info(get(), &info, tokens.data(), num_layers);
            },
            std::vector<std::uint64_t>());
    }

    eplb_recorder *get() const noexcept { return handle_.get(); }

  private:
    template <class Call> static returns<done> call(Call call) {
        return detail::run([&](done &) { return call(); }, done());
    }

    detail::owner<eplb_recorder, eplb_recorder_destroy>::type handle_;
};

/// eplb_file_options.
struct file_options {
    eplb_file_format format = EPLB_FILE_FORMAT_DETECT;
    std::vector<std::int32_t> layer_ids = {};
    std::uint32_t num_model_layers = 0;
    std::uint32_t num_experts = 0;
    std::uint32_t num_ranks = 0;
    std::uint32_t num_slots = 0;
    std::uint32_t experts_per_token = 0;

    eplb_file_options c() const {
        eplb_file_options c = EPLB_FILE_OPTIONS_INIT;
        c.layer_ids = layer_ids.data();
        c.num_layers = layer_ids.size();
        c.format = format;
        c.num_model_layers = num_model_layers;
        c.num_experts = num_experts;
        c.num_ranks = num_ranks;
        c.num_slots = num_slots;
        c.experts_per_token = experts_per_token;
        return c;
    }
};

/// eplb_stats_options.
struct stats_options {
    std::int64_t iter_start = 0;
    std::int64_t iter_stop = 0;
    bool allow_missing_ranks = false;
    std::uint32_t num_threads = 0;
    std::size_t expected_ranks = 0;

    eplb_stats_options c() const {
        eplb_stats_options c = EPLB_STATS_OPTIONS_INIT;
        c.iter_start = iter_start;
        c.iter_stop = iter_stop;
        c.allow_missing_ranks = allow_missing_ranks;
        c.num_threads = num_threads;
        c.expected_ranks = expected_ranks;
        return c;
    }
};

/// The counts of a dump.
class stats {
  public:
    /// Takes over a handle.
    explicit stats(eplb_stats *handle) : handle_(handle) {}

    static returns<stats> load(const std::string &path, const stats_options &options = {}) {
        const eplb_stats_options c = options.c();
        return detail::make<stats, eplb_stats>(
            [&](eplb_stats **handle) { return eplb_stats_load(path.c_str(), &c, handle); });
    }

    /// From a file of another system.
    static returns<stats> load_file(const std::string &path, const file_options &options = {}) {
        const eplb_file_options c = options.c();
        return detail::make<stats, eplb_stats>(
            [&](eplb_stats **handle) { return eplb_stats_load_file(path.c_str(), &c, handle); });
    }

    /// To a file of another system, whose format the options say.
    returns<done> save_file(const std::string &path, const file_options &options) const {
        const eplb_file_options c = options.c();
        return detail::run([&](done &) { return eplb_stats_save_file(get(), path.c_str(), &c); }, done());
    }

    returns<eplb_stats_info> info() const {
        return detail::run([&](eplb_stats_info &info) { return eplb_stats_get_info(get(), &info); },
                           eplb_stats_info(EPLB_STATS_INFO_INIT));
    }

    returns<view<std::int32_t>> layer_ids() const {
        return detail::run(
            [&](view<std::int32_t> &layers) {
                eplb_stats_info info = EPLB_STATS_INFO_INIT;
                const eplb_status status = eplb_stats_get_info(get(), &info);
                layers = {info.layer_ids, info.num_layers};
                return status;
            },
            view<std::int32_t>());
    }

    /// The loads of a layer, [num_samples][num_experts]; 1 sample is the sum over the iterations.
    returns<std::vector<double>> layer_loads(std::int32_t layer, std::size_t num_samples = 1) const {
        return detail::run(
            [&](std::vector<double> &loads) {
                eplb_stats_info info = EPLB_STATS_INFO_INIT;
                const eplb_status status = eplb_stats_get_info(get(), &info);
                if (status != EPLB_STATUS_OK) {
                    return status;
                }
                // Another number of samples is the library's to refuse, before memory is taken for it.
                const bool possible =
                    num_samples <= static_cast<std::size_t>(info.iter_stop - info.iter_start);
                loads.resize(possible ? num_samples * info.num_experts : 0);
                return eplb_stats_layer_loads(get(), layer, num_samples, info.num_experts, loads.data());
            },
            std::vector<double>());
    }

    const eplb_stats *get() const noexcept { return handle_.get(); }

  private:
    detail::owner<eplb_stats, eplb_stats_destroy>::type handle_;
};

/// eplb_placement_config.
struct placement_config {
    std::uint32_t num_experts = 0;
    std::uint32_t num_ranks = 0;
    std::uint32_t num_slots = 0;
    std::uint32_t layer_updates_per_iter = 0;
    /// Empty, or one of each rank.
    std::vector<std::int32_t> slots_per_rank = {};

    eplb_placement_config c() const {
        eplb_placement_config c = EPLB_PLACEMENT_CONFIG_INIT;
        c.num_experts = num_experts;
        c.num_ranks = num_ranks;
        c.num_slots = num_slots;
        c.layer_updates_per_iter = layer_updates_per_iter;
        c.slots_per_rank = slots_per_rank.empty() ? nullptr : slots_per_rank.data();
        return c;
    }
};

/// eplb_placement_load_options.
struct placement_load_options {
    std::uint32_t num_experts = 0;
    std::uint32_t num_ranks = 0;
    std::vector<std::int32_t> layer_ids = {};
    std::uint32_t num_slots = 0;
    eplb_missing_layers missing_layers = EPLB_MISSING_LAYERS_REFUSED;

    eplb_placement_load_options c() const {
        eplb_placement_load_options c = EPLB_PLACEMENT_LOAD_OPTIONS_INIT;
        c.num_experts = num_experts;
        c.num_ranks = num_ranks;
        c.layer_ids = layer_ids.data();
        c.num_layers = layer_ids.size();
        c.num_slots = num_slots;
        c.missing_layers = missing_layers;
        return c;
    }
};

/// Which expert each slot holds.
class placement {
  public:
    /// Takes over a handle.
    explicit placement(eplb_placement *handle) : handle_(handle) {}

    /// From arrays: `slot_experts` is [layers][slots].
    static returns<placement> create(const placement_config &config, view<std::int32_t> layer_ids,
                                     view<std::int32_t> slot_experts) {
        const eplb_placement_config c = config.c();
        const std::vector<std::int32_t> &slots = config.slots_per_rank;
        std::size_t num_slots = config.num_slots != 0 ? config.num_slots : config.num_experts;
        if (config.num_slots == 0 && !slots.empty()) {
            num_slots =
                static_cast<std::size_t>(*std::max_element(slots.begin(), slots.end())) * slots.size();
        }
        if ((!slots.empty() && slots.size() != config.num_ranks) ||
            slot_experts.size() != layer_ids.size() * num_slots) {
            return detail::finish(
                EPLB_STATUS_INVALID_ARGUMENT, placement(nullptr),
                "slot_experts is not [layers][slots] long, or slots_per_rank not [num_ranks]");
        }
        return detail::make<placement, eplb_placement>([&](eplb_placement **handle) {
            return eplb_placement_create(&c, layer_ids.data(), layer_ids.size(), slot_experts.data(), handle);
        });
    }

    static returns<placement> load(const std::string &path, const placement_load_options &options = {}) {
        const eplb_placement_load_options c = options.c();
        return detail::make<placement, eplb_placement>(
            [&](eplb_placement **handle) { return eplb_placement_load(path.c_str(), &c, handle); });
    }

    returns<done> save(const std::string &path) const {
        return detail::run([&](done &) { return eplb_placement_save(get(), path.c_str()); }, done());
    }

    /// From a file of another system.
    static returns<placement> load_file(const std::string &path, const file_options &options = {}) {
        const eplb_file_options c = options.c();
        return detail::make<placement, eplb_placement>(
            [&](eplb_placement **handle) { return eplb_placement_load_file(path.c_str(), &c, handle); });
    }

    /// To a file of another system, whose format the options say.
    returns<done> save_file(const std::string &path, const file_options &options) const {
        const eplb_file_options c = options.c();
        return detail::run([&](done &) { return eplb_placement_save_file(get(), path.c_str(), &c); }, done());
    }

    returns<eplb_placement_info> info() const {
        return detail::run([&](eplb_placement_info &info) { return eplb_placement_get_info(get(), &info); },
                           eplb_placement_info(EPLB_PLACEMENT_INFO_INIT));
    }

    returns<view<std::int32_t>> layer_ids() const {
        return detail::run(
            [&](view<std::int32_t> &layers) {
                eplb_placement_info info = EPLB_PLACEMENT_INFO_INIT;
                const eplb_status status = eplb_placement_get_info(get(), &info);
                layers = {info.layer_ids, info.num_layers};
                return status;
            },
            view<std::int32_t>());
    }

    /// The expert of each slot of a layer.
    returns<view<std::int32_t>> layer_experts(std::int32_t layer) const {
        return lend([&](const std::int32_t **experts, std::size_t *size) {
            return eplb_placement_layer_experts(get(), layer, experts, size);
        });
    }

    /// The experts that a rank must hold in a layer, in the order of its slots.
    returns<view<std::int32_t>> rank_experts(std::int32_t layer, std::uint32_t rank) const {
        return lend([&](const std::int32_t **experts, std::size_t *size) {
            return eplb_placement_rank_experts(get(), layer, rank, experts, size);
        });
    }

    /// The experts whose weights a rank must load for a layer, each once.
    returns<std::vector<std::int32_t>> distinct_experts(std::int32_t layer, std::uint32_t rank) const {
        return detail::run(
            [&](std::vector<std::int32_t> &experts) {
                std::size_t size = 0;
                const eplb_status status =
                    eplb_placement_distinct_experts(get(), layer, rank, nullptr, 0, &size);
                experts.resize(size);
                return status == EPLB_STATUS_OK
                           ? eplb_placement_distinct_experts(get(), layer, rank, experts.data(), size, &size)
                           : status;
            },
            std::vector<std::int32_t>());
    }

    /// Everything that eplb_placement_validate() lists.
    returns<std::vector<eplb_placement_issue>> issues() const {
        return detail::run(
            [&](std::vector<eplb_placement_issue> &issues) {
                std::size_t size = 0;
                const eplb_status status = eplb_placement_validate(get(), nullptr, 0, &size);
                issues.resize(size);
                return status == EPLB_STATUS_OK ? eplb_placement_validate(get(), issues.data(), size, &size)
                                                : status;
            },
            std::vector<eplb_placement_issue>());
    }

    /// How evenly the ranks would be loaded; `loads` is [num_samples][experts].
    returns<eplb_placement_evaluation> evaluate(std::int32_t layer, view<double> loads,
                                                std::size_t num_samples = 1) const {
        const std::size_t num_experts = num_samples != 0 ? loads.size() / num_samples : 0;
        if (num_experts * num_samples != loads.size()) {
            return detail::finish(EPLB_STATUS_INVALID_ARGUMENT,
                                  eplb_placement_evaluation(EPLB_PLACEMENT_EVALUATION_INIT),
                                  "loads is not [num_samples][experts] long");
        }
        return detail::run(
            [&](eplb_placement_evaluation &evaluation) {
                return eplb_placement_evaluate(get(), loads.data(), layer, num_samples, num_experts,
                                               &evaluation);
            },
            eplb_placement_evaluation(EPLB_PLACEMENT_EVALUATION_INIT));
    }

    /// eplb_placement_off_node_share(): `loads` is [num_samples][experts], `rank_to_node` one of each rank.
    returns<double> off_node_share(std::int32_t layer, view<double> loads, std::uint32_t num_groups,
                                   view<std::int32_t> rank_to_node, std::size_t num_samples = 1) const {
        const std::size_t num_experts = num_samples != 0 ? loads.size() / num_samples : 0;
        eplb_placement_info info = EPLB_PLACEMENT_INFO_INIT;
        eplb_placement_get_info(get(), &info);
        if (num_experts * num_samples != loads.size() || rank_to_node.size() != info.num_ranks) {
            return detail::finish(
                EPLB_STATUS_INVALID_ARGUMENT, 0.0,
                "loads is not [num_samples][experts] long, or rank_to_node not [num_ranks]");
        }
        return detail::run(
            [&](double &share) {
                return eplb_placement_off_node_share(get(), loads.data(), layer, num_samples, num_experts,
                                                     num_groups, rank_to_node.data(), &share);
            },
            0.0);
    }

    returns<std::uint64_t> hash() const {
        return detail::run([&](std::uint64_t &hash) { return eplb_placement_hash(get(), &hash); },
                           std::uint64_t(0));
    }

    const eplb_placement *get() const noexcept { return handle_.get(); }

  private:
    template <class Call> static returns<view<std::int32_t>> lend(Call call) {
        return detail::run(
            [&](view<std::int32_t> &lent) {
                const std::int32_t *experts = nullptr;
                std::size_t size = 0;
                const eplb_status status = call(&experts, &size);
                lent = {experts, size};
                return status;
            },
            view<std::int32_t>());
    }

    detail::owner<eplb_placement, eplb_placement_destroy>::type handle_;
};

/// eplb_solve_config.
struct solve_config {
    eplb_policy policy = EPLB_POLICY_DEFAULT;
    std::uint32_t num_ranks = 0;
    std::uint32_t num_slots = 0;
    std::uint32_t num_threads = 0;
    std::uint32_t num_groups = 0;
    std::uint32_t num_nodes = 0;
    std::size_t effort = 0;
    /// Empty, or one of each rank.
    std::vector<std::int32_t> rank_to_node = {};
    double off_node_price = 0;
    /// Empty, or one of each sample.
    std::vector<double> sample_weights = {};
    double quantile = 0;
    double drift = 0;
    eplb_objective objective = EPLB_OBJECTIVE_EVEN_SPLIT;
    /// Empty, or one of each rank.
    std::vector<std::int32_t> slots_per_rank = {};

    eplb_solve_config c() const {
        eplb_solve_config c = EPLB_SOLVE_CONFIG_INIT;
        c.policy = policy;
        c.num_ranks = num_ranks;
        c.num_slots = num_slots;
        c.num_threads = num_threads;
        c.num_groups = num_groups;
        c.num_nodes = num_nodes;
        c.effort = effort;
        c.rank_to_node = rank_to_node.empty() ? nullptr : rank_to_node.data();
        c.off_node_price = off_node_price;
        c.sample_weights = sample_weights.empty() ? nullptr : sample_weights.data();
        c.quantile = quantile;
        c.drift = drift;
        c.objective = objective;
        c.slots_per_rank = slots_per_rank.empty() ? nullptr : slots_per_rank.data();
        return c;
    }
};

/// eplb_solve(): `loads` is [layers][num_samples][num_experts].
inline returns<placement> solve(const solve_config &config, view<double> loads, view<std::int32_t> layer_ids,
                                std::size_t num_samples, std::size_t num_experts) {
    const eplb_solve_config c = config.c();
    if (loads.size() != layer_ids.size() * num_samples * num_experts) {
        return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, placement(nullptr),
                              "loads is not [layers][num_samples][num_experts] long");
    }
    if ((c.rank_to_node != nullptr && config.rank_to_node.size() != c.num_ranks) ||
        (c.slots_per_rank != nullptr && config.slots_per_rank.size() != c.num_ranks) ||
        (c.sample_weights != nullptr && config.sample_weights.size() != num_samples)) {
        return detail::finish(
            EPLB_STATUS_INVALID_ARGUMENT, placement(nullptr),
            "rank_to_node or slots_per_rank is not [num_ranks] long, or sample_weights not [num_samples]");
    }
    return detail::make<placement, eplb_placement>([&](eplb_placement **handle) {
        return eplb_solve(&c, loads.data(), layer_ids.data(), layer_ids.size(), num_samples, num_experts,
                          handle);
    });
}

/// What DeepSeek's rebalance_experts() returns.
struct deepseek_arrays {
    /// [layers][slots]
    std::vector<std::int32_t> phy2log = {};
    /// [layers][experts][max_replicas], padded with -1
    std::vector<std::int32_t> log2phy = {};
    /// [layers][experts]
    std::vector<std::int32_t> logcnt = {};
};

/// eplb_deepseek_rebalance(): `loads` is [layers][num_experts].
inline returns<deepseek_arrays> deepseek_rebalance(const solve_config &config, view<double> loads,
                                                   std::size_t num_experts, std::size_t max_replicas) {
    const eplb_solve_config c = config.c();
    const std::size_t num_slots = c.num_slots != 0 ? c.num_slots : num_experts;
    const std::size_t num_layers = num_experts != 0 ? loads.size() / num_experts : 0;
    if (loads.size() != num_layers * num_experts) {
        return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, deepseek_arrays(),
                              "loads is not [layers][num_experts] long");
    }
    return detail::run(
        [&](deepseek_arrays &arrays) {
            arrays.phy2log.resize(num_layers * num_slots);
            arrays.log2phy.resize(num_layers * num_experts * max_replicas);
            arrays.logcnt.resize(num_layers * num_experts);
            return eplb_deepseek_rebalance(&c, loads.data(), num_layers, num_experts, max_replicas,
                                           arrays.phy2log.data(), arrays.log2phy.data(),
                                           arrays.logcnt.data());
        },
        deepseek_arrays());
}

/// eplb_generate_config, but for the progress callback.
struct generate_config {
    std::string expert_statistic_path = {};
    std::string output_path = {};
    std::uint32_t num_ranks = 0;
    std::uint32_t num_slots = 0;
    std::int64_t iter_start = 0;
    std::int64_t iter_stop = 0;
    eplb_policy policy = EPLB_POLICY_DEFAULT;
    std::uint32_t layer_updates_per_iter = 0;
    bool allow_missing_ranks = false;
    std::uint32_t num_threads = 0;
    std::size_t expected_ranks = 0;
    std::uint32_t num_groups = 0;
    std::uint32_t num_nodes = 0;
    std::size_t effort = 0;
    std::size_t num_samples = 0;
    /// Empty, or one of each of num_ranks.
    std::vector<std::int32_t> rank_to_node = {};
    double off_node_price = 0;
    double quantile = 0;
    double drift = 0;
    eplb_objective objective = EPLB_OBJECTIVE_EVEN_SPLIT;

    eplb_generate_config c() const {
        eplb_generate_config c = EPLB_GENERATE_CONFIG_INIT;
        c.expert_statistic_path = expert_statistic_path.c_str();
        c.output_path = output_path.c_str();
        c.num_ranks = num_ranks;
        c.num_slots = num_slots;
        c.iter_start = iter_start;
        c.iter_stop = iter_stop;
        c.policy = policy;
        c.layer_updates_per_iter = layer_updates_per_iter;
        c.allow_missing_ranks = allow_missing_ranks;
        c.num_threads = num_threads;
        c.expected_ranks = expected_ranks;
        c.num_groups = num_groups;
        c.num_nodes = num_nodes;
        c.effort = effort;
        c.num_samples = num_samples;
        c.rank_to_node = rank_to_node.empty() ? nullptr : rank_to_node.data();
        c.off_node_price = off_node_price;
        c.quantile = quantile;
        c.drift = drift;
        c.objective = objective;
        return c;
    }
};

/// eplb_generate().
inline returns<eplb_generate_report> generate(const generate_config &config) {
    const eplb_generate_config c = config.c();
    return detail::run([&](eplb_generate_report &report) { return eplb_generate(&c, &report); },
                       eplb_generate_report(EPLB_GENERATE_REPORT_INIT));
}

/// eplb_generate() with `progress(phase, done, total)`, which returns whether to go on. It may throw: the
/// work is cancelled and the exception comes out here.
template <class Progress>
returns<eplb_generate_report> generate(const generate_config &config, Progress &&progress) {
    struct call {
        std::remove_reference_t<Progress> &progress;
#ifndef EPLB_NO_EXCEPTIONS
        std::exception_ptr thrown;
#endif
    };
#ifdef EPLB_NO_EXCEPTIONS
    call state{progress};
#else
    call state{progress, nullptr};
#endif
    eplb_generate_config c = config.c();
    c.user_data = &state;
    c.progress = [](void *user_data, eplb_phase phase, std::uint64_t done,
                    std::uint64_t total) -> std::int32_t {
        call &self = *static_cast<call *>(user_data);
#ifdef EPLB_NO_EXCEPTIONS
        return self.progress(phase, done, total) ? 0 : 1;
#else
        try {
            return self.progress(phase, done, total) ? 0 : 1;
        } catch (...) {
            self.thrown = std::current_exception();
            return 1;
        }
#endif
    };
    return detail::run(
        [&](eplb_generate_report &report) {
            const eplb_status status = eplb_generate(&c, &report);
#ifndef EPLB_NO_EXCEPTIONS
            if (state.thrown) {
                std::rethrow_exception(state.thrown);
            }
#endif
            return status;
        },
        eplb_generate_report(EPLB_GENERATE_REPORT_INIT));
}

/// The valid numbers of slots nearest to a wanted one, below and above; 0 where there is none.
inline returns<std::pair<std::uint32_t, std::uint32_t>>
suggest_num_slots(std::uint32_t num_experts, std::uint32_t num_ranks, std::uint32_t num_slots) {
    using pair = std::pair<std::uint32_t, std::uint32_t>;
    return detail::run(
        [&](pair &nearest) {
            return eplb_suggest_num_slots(num_experts, num_ranks, num_slots, &nearest.first, &nearest.second);
        },
        pair());
}

/// eplb_dispatch_config.
struct dispatch_config {
    std::uint32_t rank = 0;
    std::uint32_t num_ranks = 0;
    std::uint32_t experts_per_token = 0;
    std::uint32_t max_replicas = 0;
    std::vector<std::int32_t> layer_ids = {};
    /// Empty, or one of each rank.
    std::vector<std::int32_t> rank_to_node = {};
    std::int32_t device = EPLB_DEVICE_HOST;
    eplb_route rule = EPLB_ROUTE_DEFAULT;
    bool offset_by_rank = false;
    std::uint32_t num_slots = 0;
    void *workspace = nullptr;
    std::size_t workspace_bytes = 0;

    eplb_dispatch_config c() const {
        eplb_dispatch_config c = EPLB_DISPATCH_CONFIG_INIT;
        c.rank = rank;
        c.num_ranks = num_ranks;
        c.experts_per_token = experts_per_token;
        c.max_replicas = max_replicas;
        c.layer_ids = layer_ids.data();
        c.num_layers = layer_ids.size();
        c.rank_to_node = rank_to_node.empty() ? nullptr : rank_to_node.data();
        c.device = device;
        c.rule = rule;
        c.offset_by_rank = offset_by_rank;
        c.num_slots = num_slots;
        c.workspace = workspace;
        c.workspace_bytes = workspace_bytes;
        return c;
    }
};

/// Turns the router's expert ids into slot ids.
class dispatch {
  public:
    /// CUDA's streams convert to it.
    using stream = struct CUstream_st *;

    /// Takes over a handle.
    explicit dispatch(eplb_dispatch *handle) : handle_(handle) {}

    static returns<dispatch> create(const placement &placement, const dispatch_config &config) {
        if (!config.rank_to_node.empty() && config.rank_to_node.size() != config.num_ranks) {
            return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, dispatch(nullptr),
                                  "rank_to_node is not num_ranks long");
        }
        const eplb_dispatch_config c = config.c();
        return detail::make<dispatch, eplb_dispatch>(
            [&](eplb_dispatch **handle) { return eplb_dispatch_create(placement.get(), &c, handle); });
    }

    /// Bytes of the workspace.
    static returns<std::size_t> memory_required(const placement &placement, const dispatch_config &config) {
        const eplb_dispatch_config c = config.c();
        return detail::run(
            [&](std::size_t &bytes) { return eplb_dispatch_memory_required(placement.get(), &c, &bytes); },
            std::size_t(0));
    }

    /// The tokens that each rank would get; `rank_counts` is [num_ranks][experts].
    static returns<std::vector<double>> expected_load(const placement &placement,
                                                      const dispatch_config &config, std::int32_t layer,
                                                      view<std::int64_t> rank_counts,
                                                      bool with_rank_counts = false) {
        eplb_placement_info info = EPLB_PLACEMENT_INFO_INIT;
        const eplb_status known = eplb_placement_get_info(placement.get(), &info);
        if (known == EPLB_STATUS_OK && rank_counts.size() != std::size_t(info.num_ranks) * info.num_experts) {
            return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, std::vector<double>(),
                                  "rank_counts is not [num_ranks][experts] long");
        }
        const eplb_dispatch_config c = config.c();
        return detail::run(
            [&](std::vector<double> &loads) {
                loads.resize(info.num_ranks);
                return eplb_dispatch_expected_load(placement.get(), &c, layer, rank_counts.data(),
                                                   with_rank_counts ? 1 : 0, loads.data());
            },
            std::vector<double>());
    }

    /// The tokens that each rank gets of recorded ids: those of rank 0, [rank_tokens[0]][experts_per_token],
    /// then those of rank 1, and so on.
    template <class Id>
    static returns<std::vector<double>>
    routed_load(const placement &placement, const dispatch_config &config, std::int32_t layer,
                view<Id> expert_ids, view<std::uint32_t> rank_tokens, bool with_rank_counts = false) {
        static_assert(sizeof(Id) == 4 || sizeof(Id) == 8, "ids are int32 or int64");
        std::size_t tokens = 0;
        for (const std::uint32_t of_rank : rank_tokens) {
            tokens += of_rank;
        }
        if (rank_tokens.size() != config.num_ranks ||
            expert_ids.size() != tokens * config.experts_per_token) {
            return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, std::vector<double>(),
                                  "rank_tokens is not [num_ranks] long, or there are not as many ids");
        }
        const eplb_dispatch_config c = config.c();
        return detail::run(
            [&](std::vector<double> &loads) {
                loads.resize(config.num_ranks);
                return eplb_dispatch_routed_load(placement.get(), &c, layer, expert_ids.data(),
                                                 sizeof(Id) == 4 ? EPLB_DTYPE_INT32 : EPLB_DTYPE_INT64,
                                                 rank_tokens.data(), with_rank_counts ? 1 : 0, loads.data());
            },
            std::vector<double>());
    }

    returns<eplb_dispatch_info> info() const {
        return detail::run([&](eplb_dispatch_info &info) { return eplb_dispatch_get_info(get(), &info); },
                           eplb_dispatch_info(EPLB_DISPATCH_INFO_INIT));
    }

    returns<eplb_dispatch_tables> tables(std::int32_t layer) const {
        return detail::run(
            [&](eplb_dispatch_tables &tables) { return eplb_dispatch_get_tables(get(), layer, &tables); },
            eplb_dispatch_tables(EPLB_DISPATCH_TABLES_INIT));
    }

    returns<done> register_rank_counts(std::int32_t layer, const void *rank_counts, eplb_dtype dtype) {
        return call([&] { return eplb_dispatch_register_rank_counts(get(), layer, rank_counts, dtype); });
    }

    returns<done> route(std::int32_t layer, const void *expert_ids, eplb_dtype dtype,
                        std::uint32_t num_tokens, const std::int32_t *num_valid, void *slot_ids,
                        stream on = nullptr) const {
        return call([&] {
            return eplb_dispatch_route(get(), layer, expert_ids, dtype, num_tokens, num_valid, slot_ids, on);
        });
    }

    returns<done> route_and_count(const recorder &recorder, std::int32_t layer, const void *expert_ids,
                                  eplb_dtype dtype, std::uint32_t num_tokens, const std::int32_t *num_valid,
                                  void *slot_ids, stream on = nullptr) const {
        return call([&] {
            return eplb_dispatch_route_and_count(get(), recorder.get(), layer, expert_ids, dtype, num_tokens,
                                                 num_valid, slot_ids, on);
        });
    }

    eplb_dispatch *get() const noexcept { return handle_.get(); }

  private:
    template <class Call> static returns<done> call(Call call) {
        return detail::run([&](done &) { return call(); }, done());
    }

    detail::owner<eplb_dispatch, eplb_dispatch_destroy>::type handle_;
};

/// Names and values of the host's, which tell objects apart.
using metrics_labels = std::vector<std::pair<std::string, std::string>>;

/// What objects tell of themselves when they are added, for Prometheus.
class metrics {
  public:
    /// Takes over a handle.
    explicit metrics(eplb_metrics *handle) : handle_(handle) {}

    static returns<metrics> create() {
        return detail::make<metrics, eplb_metrics>(
            [](eplb_metrics **handle) { return eplb_metrics_create(handle); });
    }

    returns<done> add(const recorder &recorder, const metrics_labels &labels = {}) {
        return add_by(eplb_metrics_add_recorder, recorder.get(), labels);
    }

    returns<done> add(const placement &placement, const metrics_labels &labels = {}) {
        return add_by(eplb_metrics_add_placement, placement.get(), labels);
    }

    returns<done> add(const dispatch &dispatch, const metrics_labels &labels = {}) {
        return add_by(eplb_metrics_add_dispatch, dispatch.get(), labels);
    }

    /// The answer to a scrape, of type text/plain; version=0.0.4.
    returns<std::string> text() {
        return detail::run(
            [&](std::string &copy) {
                const char *text = nullptr;
                std::size_t length = 0;
                const eplb_status status = eplb_metrics_text(get(), &text, &length);
                if (status == EPLB_STATUS_OK) {
                    copy.assign(text, length);
                }
                return status;
            },
            std::string());
    }

    eplb_metrics *get() const noexcept { return handle_.get(); }

  private:
    template <class Object>
    returns<done> add_by(eplb_status (*call)(eplb_metrics *, const Object *, const eplb_metrics_label *,
                                             std::size_t),
                         const Object *object, const metrics_labels &labels) {
        std::vector<eplb_metrics_label> c;
        for (const auto &[name, value] : labels) {
            c.push_back({name.c_str(), value.c_str()});
        }
        return detail::run([&](done &) { return call(get(), object, c.data(), c.size()); }, done());
    }

    detail::owner<eplb_metrics, eplb_metrics_destroy>::type handle_;
};

} // namespace eplb

#endif // EPLB_HPP
