// eplb for C++17: RAII handles over eplb.h. Header-only, and no behaviour of its own. eplb_tools.hpp does the
// same for eplb_tools.h.
//
// Each class owns one C handle; it moves and does not copy. get() returns the handle for C calls. Views into
// a handle live as long as the handle. Configs are plain structs: set what differs from the default.
//
// A failed call throws eplb::error. With EPLB_NO_EXCEPTIONS, which -fno-exceptions implies, nothing throws,
// and each call that can fail returns an eplb::result: check it before you use the value. Threads: as in
// eplb.h; a const method may run on several threads at once.
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

inline const char *nodes_message() { return "rank_to_node is not [num_ranks] long"; }

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

/// Consecutive values that the view does not own.
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

/// Expert ids of a device: pass a pointer to int32 or int64, or an eplb_expert_ids.
struct expert_ids : eplb_expert_ids {
    expert_ids(const eplb_expert_ids &ids) : eplb_expert_ids(ids) {}
    expert_ids(const std::int32_t *ids, std::uint32_t stride = 0)
        : eplb_expert_ids{ids, EPLB_DTYPE_INT32, stride} {}
    expert_ids(const std::int64_t *ids, std::uint32_t stride = 0)
        : eplb_expert_ids{ids, EPLB_DTYPE_INT64, stride} {}
};

/// Slot ids of a device: pass a pointer to int32 or int64, or an eplb_slot_ids.
struct slot_ids : eplb_slot_ids {
    slot_ids(const eplb_slot_ids &ids) : eplb_slot_ids(ids) {}
    slot_ids(std::int32_t *ids, std::uint32_t stride = 0) : eplb_slot_ids{ids, EPLB_DTYPE_INT32, stride} {}
    slot_ids(std::int64_t *ids, std::uint32_t stride = 0) : eplb_slot_ids{ids, EPLB_DTYPE_INT64, stride} {}
};

/// eplb_recorder_config.
struct recorder_config {
    std::uint32_t rank = 0;
    std::uint32_t num_ranks = 0;
    std::uint32_t num_experts = 0;
    std::uint32_t experts_per_token = 0;
    std::vector<std::int32_t> layer_ids = {};
    std::string path = {};
    std::int64_t iter_start = 0;
    std::int64_t iter_stop = 0;
    std::int32_t device = EPLB_DEVICE_HOST;
    eplb_id_kind id_kind = EPLB_ID_KIND_EXPERT;
    std::uint64_t max_tokens_per_iteration = 0;
    std::string run_id = {};
    void *workspace = nullptr;
    std::size_t workspace_bytes = 0;
    std::string name = {};
    std::uint32_t file_rank = 0;
    std::uint32_t num_files = 0;
    std::uint32_t iter_bucket = 0;
    std::uint32_t iter_stride = 0;
    std::uint32_t added_counts = 0;
    std::uint64_t rolling_iterations = 0;
    std::uint32_t num_shared_experts = 0;

    /// Sets iterations and path from the environment: eplb_recorder_config_from_env().
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
        c.id_kind = id_kind;
        c.max_tokens_per_iteration = max_tokens_per_iteration;
        c.run_id = run_id.empty() ? nullptr : run_id.c_str();
        c.workspace = workspace;
        c.workspace_bytes = workspace_bytes;
        c.name = name.empty() ? nullptr : name.c_str();
        c.file_rank = file_rank;
        c.num_files = num_files;
        c.iter_bucket = iter_bucket;
        c.iter_stride = iter_stride;
        c.added_counts = added_counts;
        c.rolling_iterations = rolling_iterations;
        c.num_shared_experts = num_shared_experts;
        return c;
    }
};

/// The results of eplb_recorder_memory_required().
struct recorder_memory {
    std::size_t workspace_bytes = 0;
    std::size_t host_bytes = 0;
};

/// Counts which experts the router chose.
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

    returns<done> register_buffer(std::int32_t layer, const expert_ids &ids, std::uint32_t max_tokens,
                                  const std::int32_t *num_valid = nullptr, stream on = nullptr) {
        return call(
            [&] { return eplb_recorder_register_buffer(get(), layer, &ids, max_tokens, num_valid, on); });
    }

    returns<done> begin_iteration(std::int64_t iteration, stream on = nullptr) {
        return call([&] { return eplb_recorder_begin_iteration(get(), iteration, on); });
    }

    returns<done> count(std::int32_t layer, std::uint32_t num_tokens, stream on = nullptr) const {
        return call([&] { return eplb_recorder_count(get(), layer, num_tokens, on); });
    }

    returns<done> count_ids(std::int32_t layer, const expert_ids &ids, std::uint32_t num_tokens,
                            const std::int32_t *num_valid = nullptr, stream on = nullptr) const {
        return call([&] { return eplb_recorder_count_ids(get(), layer, &ids, num_tokens, num_valid, on); });
    }

    returns<done> add_counts(std::int32_t layer, const void *counts, eplb_dtype dtype,
                             stream on = nullptr) const {
        return call([&] { return eplb_recorder_add_counts(get(), layer, counts, dtype, on); });
    }

    returns<done> dump(stream on = nullptr) {
        return call([&] { return eplb_recorder_dump(get(), on); });
    }

    /// Waits without a limit unless a timeout is given.
    returns<done> flush(std::int64_t timeout_ms = -1) const {
        return call([&] { return eplb_recorder_flush(get(), timeout_ms); });
    }

    returns<done> set_paused(bool paused, stream on = nullptr) {
        return call([&] { return eplb_recorder_set_paused(get(), paused, on); });
    }

    returns<done> reset(stream on = nullptr) {
        return call([&] { return eplb_recorder_reset(get(), on); });
    }

    returns<done> rearm(std::int64_t iter_start, std::int64_t iter_stop, stream on = nullptr) {
        return call([&] { return eplb_recorder_rearm(get(), iter_start, iter_stop, on); });
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

    eplb_recorder *get() noexcept { return handle_.get(); }
    const eplb_recorder *get() const noexcept { return handle_.get(); }

  private:
    template <class Call> static returns<done> call(Call call) {
        return detail::run([&](done &) { return call(); }, done());
    }

    detail::owner<eplb_recorder, eplb_recorder_destroy>::type handle_;
};

/// eplb_placement_config.
struct placement_config {
    std::uint32_t num_experts = 0;
    std::uint32_t num_ranks = 0;
    std::uint32_t num_slots = 0;
    std::uint32_t layer_updates_per_iter = 0;
    /// Empty, or one of each rank.
    std::vector<std::int32_t> rank_num_slots = {};
    bool allow_empty_slots = false;

    eplb_placement_config c() const {
        eplb_placement_config c = EPLB_PLACEMENT_CONFIG_INIT;
        c.num_experts = num_experts;
        c.num_ranks = num_ranks;
        c.num_slots = num_slots;
        c.layer_updates_per_iter = layer_updates_per_iter;
        c.rank_num_slots = rank_num_slots.empty() ? nullptr : rank_num_slots.data();
        c.allow_empty_slots = allow_empty_slots ? 1 : 0;
        return c;
    }

    /// Whether rank_num_slots is [num_ranks] long, or empty.
    bool fits() const { return rank_num_slots.empty() || rank_num_slots.size() == num_ranks; }

    /// Slots of all ranks together, with the default of num_slots.
    std::size_t total_slots() const {
        if (num_slots != 0) {
            return num_slots;
        }
        if (rank_num_slots.empty()) {
            return num_experts;
        }
        const std::int32_t most = *std::max_element(rank_num_slots.begin(), rank_num_slots.end());
        return static_cast<std::size_t>(std::max(most, 0)) * rank_num_slots.size();
    }
};

/// eplb_placement_load_options.
struct placement_load_options {
    std::uint32_t num_experts = 0;
    std::uint32_t num_ranks = 0;
    std::vector<std::int32_t> layer_ids = {};
    std::uint32_t num_slots = 0;
    eplb_missing_layers missing_layers = EPLB_MISSING_LAYERS_REFUSE;

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
        if (!config.fits() || slot_experts.size() != layer_ids.size() * config.total_slots()) {
            return detail::finish(
                EPLB_STATUS_INVALID_ARGUMENT, placement(nullptr),
                "slot_experts is not [layers][slots] long, or rank_num_slots not [num_ranks]");
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
        return array([&](const std::int32_t **experts, std::size_t *size) {
            return eplb_placement_layer_experts(get(), layer, experts, size);
        });
    }

    /// The experts that a rank must hold in a layer, in the order of its slots.
    returns<view<std::int32_t>> rank_experts(std::int32_t layer, std::uint32_t rank) const {
        return array([&](const std::int32_t **experts, std::size_t *size) {
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

    returns<std::uint64_t> hash() const {
        return detail::run([&](std::uint64_t &hash) { return eplb_placement_hash(get(), &hash); },
                           std::uint64_t(0));
    }

    const eplb_placement *get() const noexcept { return handle_.get(); }

  private:
    template <class Call> static returns<view<std::int32_t>> array(Call call) {
        return detail::run(
            [&](view<std::int32_t> &result) {
                const std::int32_t *experts = nullptr;
                std::size_t size = 0;
                const eplb_status status = call(&experts, &size);
                result = {experts, size};
                return status;
            },
            view<std::int32_t>());
    }

    detail::owner<eplb_placement, eplb_placement_destroy>::type handle_;
};

/// eplb_dispatch_config.
struct dispatch_config {
    std::uint32_t rank = 0;
    std::uint32_t num_ranks = 0;
    std::uint32_t experts_per_token = 0;
    std::uint32_t max_replicas = 0;
    /// Empty: all of the placement, or none with no_layers.
    std::vector<std::int32_t> layer_ids = {};
    /// Empty, or one of each rank.
    std::vector<std::int32_t> rank_to_node = {};
    std::int32_t device = EPLB_DEVICE_HOST;
    eplb_rule rule = EPLB_RULE_DEFAULT;
    bool offset_by_rank = false;
    std::uint32_t num_slots = 0;
    void *workspace = nullptr;
    std::size_t workspace_bytes = 0;
    /// Routes no layer, as in a pipeline stage without experts. Requires that layer_ids is empty.
    bool no_layers = false;
    std::int32_t invalid_slot = 0;
    std::vector<std::int32_t> shared_slot_ids = {};
    bool live = false;

    eplb_dispatch_config c() const {
        static const std::int32_t none = 0;
        eplb_dispatch_config c = EPLB_DISPATCH_CONFIG_INIT;
        c.rank = rank;
        c.num_ranks = num_ranks;
        c.experts_per_token = experts_per_token;
        c.max_replicas = max_replicas;
        c.layer_ids = !layer_ids.empty() ? layer_ids.data() : no_layers ? &none : nullptr;
        c.num_layers = layer_ids.size();
        c.rank_to_node = rank_to_node.empty() ? nullptr : rank_to_node.data();
        c.device = device;
        c.rule = rule;
        c.offset_by_rank = offset_by_rank;
        c.num_slots = num_slots;
        c.workspace = workspace;
        c.workspace_bytes = workspace_bytes;
        c.invalid_slot = invalid_slot;
        c.num_shared_experts = static_cast<std::uint32_t>(shared_slot_ids.size());
        c.shared_slot_ids = shared_slot_ids.data();
        c.live = live ? 1 : 0;
        return c;
    }

    /// Whether rank_to_node is [num_ranks] long, or empty.
    bool fits() const { return rank_to_node.empty() || rank_to_node.size() == num_ranks; }
};

/// Turns the router's expert ids into slot ids.
class dispatch {
  public:
    /// CUDA's streams convert to it.
    using stream = struct CUstream_st *;

    /// Takes over a handle.
    explicit dispatch(eplb_dispatch *handle) : handle_(handle) {}

    static returns<dispatch> create(const placement &placement, const dispatch_config &config) {
        if (!config.fits()) {
            return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, dispatch(nullptr), detail::nodes_message());
        }
        const eplb_dispatch_config c = config.c();
        return detail::make<dispatch, eplb_dispatch>(
            [&](eplb_dispatch **handle) { return eplb_dispatch_create(placement.get(), &c, handle); });
    }

    /// Bytes of the workspace.
    static returns<std::size_t> memory_required(const placement &placement, const dispatch_config &config) {
        if (!config.fits()) {
            return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, std::size_t(0), detail::nodes_message());
        }
        const eplb_dispatch_config c = config.c();
        return detail::run(
            [&](std::size_t &bytes) { return eplb_dispatch_memory_required(placement.get(), &c, &bytes); },
            std::size_t(0));
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

    returns<done> route(std::int32_t layer, const expert_ids &ids, std::uint32_t num_tokens,
                        const std::int32_t *num_valid, const slot_ids &slots, stream on = nullptr) const {
        return call(
            [&] { return eplb_dispatch_route(get(), layer, &ids, num_tokens, num_valid, &slots, on); });
    }

    returns<done> route_and_count(const recorder &recorder, std::int32_t layer, const expert_ids &ids,
                                  std::uint32_t num_tokens, const std::int32_t *num_valid,
                                  const slot_ids &slots, stream on = nullptr) const {
        return call([&] {
            return eplb_dispatch_route_and_count(get(), recorder.get(), layer, &ids, num_tokens, num_valid,
                                                 &slots, on);
        });
    }

    eplb_dispatch *get() noexcept { return handle_.get(); }
    const eplb_dispatch *get() const noexcept { return handle_.get(); }

  private:
    template <class Call> static returns<done> call(Call call) {
        return detail::run([&](done &) { return call(); }, done());
    }

    detail::owner<eplb_dispatch, eplb_dispatch_destroy>::type handle_;
};

} // namespace eplb

#endif // EPLB_HPP
