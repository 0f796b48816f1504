// Every function of the headers with NULL, wild and huge values in every position: a status each time, never
// a crash.
//
// The list of functions comes from the headers, and the values of a parameter from its type. A new function
// is covered automatically; a parameter of a new type does not compile until it has values below.
#include <gtest/gtest.h>

#include <numeric>

#include <cmath>
#include <cstring>
#include <eplb_live.hpp>
#include <limits>
#include <regex>
#include <tuple>

#include "files.h"

namespace {

// 64 experts on 8 ranks, so that some combinations succeed; layers 0 to 63.
constexpr size_t some = 64;
const std::string dump = data("dumps/dsv2lite-law");
temporary_directory &output() {
    static temporary_directory dir;
    return dir;
}

// A copy, since some calls write to every path that they can.
const std::string config = [] {
    const std::string copy = output() / "config.yaml";
    std::filesystem::copy(data("expected/dsv2lite-translation.ep8.slots72.yaml"), copy);
    return copy;
}();

const eplb_stats *a_stats() {
    static const auto stats = eplb::stats::load(dump);
    return stats.get();
}

const eplb_placement *a_placement() {
    static const auto placement = [] {
        eplb::placement_load_options options;
        options.num_ranks = 8;
        return eplb::placement::load(config, options);
    }();
    return placement.get();
}

/// A recorder on the host with a registered layer; any call may change it.
eplb_recorder *a_recorder() {
    static std::vector<int32_t> ids(some * 4);
    static auto recorder = [] {
        eplb::recorder_config config;
        config.path = output() / "recorded";
        config.iter_stop = 8;
        config.num_ranks = 1;
        config.num_experts = some;
        config.experts_per_token = 4;
        config.layer_ids = {0, 1};
        auto recorder = eplb::recorder::create(config);
        recorder.register_buffer(1, ids.data(), some);
        return recorder;
    }();
    return recorder.get();
}

/// A recorder with a ring. It counts any number of ids at any time, so only calls that change a recorder get
/// it.
eplb_recorder *a_rolling_recorder() {
    static auto recorder = [] {
        eplb::recorder_config config;
        config.num_ranks = 1;
        config.num_experts = some;
        config.experts_per_token = 4;
        config.layer_ids = {0, 1};
        config.rolling_iterations = 4;
        return eplb::recorder::create(config);
    }();
    return recorder.get();
}

/// The slots of all layers of a_placement().
std::vector<int32_t> all_slots() {
    eplb_placement_info info = EPLB_PLACEMENT_INFO_INIT;
    eplb_placement_get_info(a_placement(), &info);
    std::vector<int32_t> all;
    for (size_t i = 0; i < info.num_layers; i++) {
        const int32_t *experts = nullptr;
        size_t size = 0;
        eplb_placement_layer_experts(a_placement(), info.layer_ids[i], &experts, &size);
        all.insert(all.end(), experts, experts + size);
    }
    return all;
}

/// A plan of two moves in layer 1: two experts change ranks.
const eplb_plan *a_plan() {
    static const auto plan = [] {
        eplb_placement_info info = EPLB_PLACEMENT_INFO_INIT;
        eplb_placement_get_info(a_placement(), &info);
        std::vector<int32_t> slots = all_slots();
        std::swap(slots[0], slots[9]);
        eplb_placement_config sizes = EPLB_PLACEMENT_CONFIG_INIT;
        sizes.num_experts = some;
        sizes.num_ranks = 8;
        sizes.num_slots = 72;
        eplb_placement *wanted = nullptr;
        eplb_placement_create(&sizes, info.layer_ids, info.num_layers, slots.data(), &wanted);
        const eplb::placement owner(wanted);
        eplb_plan *plan = nullptr;
        eplb_plan_create(a_placement(), wanted, nullptr, &plan);
        return eplb::plan(plan);
    }();
    return plan.get();
}

/// A live dispatch on the host for 4 ids a token, with staged tables of layer 1; any call may change it.
eplb_dispatch *a_dispatch() {
    static eplb::dispatch dispatch(nullptr);
    eplb_dispatch_config config = EPLB_DISPATCH_CONFIG_INIT;
    config.num_ranks = 8;
    config.experts_per_token = 4;
    config.live = 1;
    eplb_dispatch *handle = nullptr;
    eplb_dispatch_create(a_placement(), &config, &handle);
    eplb_dispatch_stage_layer(handle, a_plan(), 1, nullptr);
    dispatch = eplb::dispatch(handle);
    return dispatch.get();
}

/// A rebalancer without gates; any call may change it.
eplb_rebalancer *a_rebalancer() {
    static auto rebalancer = [] {
        eplb_rebalancer_config config = EPLB_REBALANCER_CONFIG_INIT;
        config.experts_per_token = 4;
        config.num_threads = 1;
        config.min_tokens = config.cooldown = -1;
        config.trigger = config.release = config.min_gain = config.min_relative_gain = config.noise = -1;
        eplb_rebalancer *handle = nullptr;
        eplb_rebalancer_create(&config, a_placement(), &handle);
        return eplb::rebalancer(handle);
    }();
    return rebalancer.get();
}

/// Its plan in flight, made anew.
const eplb_plan *a_plan_in_flight() {
    static eplb::plan plan(nullptr);
    eplb_rebalancer_reset(a_rebalancer(), a_placement());
    std::vector<int64_t> counts(26 * some);
    for (size_t i = 0; i < counts.size(); i++) {
        counts[i] = 100 + static_cast<int64_t>(i * i % 997);
    }
    eplb_rebalancer_observe(a_rebalancer(), counts.data(), 1, 1 << 20, 0);
    eplb_plan_limits limits = EPLB_PLAN_LIMITS_INIT;
    limits.max_layer_moves = 2;
    eplb_plan *handle = nullptr;
    eplb_rebalancer_plan(a_rebalancer(), &limits, &handle);
    plan = eplb::plan(handle);
    return plan.get();
}

/// Values of a parameter of type T. Made anew for each function, since some calls write through them.
template <class T> std::vector<T> values();

template <> std::vector<size_t> values() { return {0, 1, some, SIZE_MAX}; }
template <> std::vector<uint32_t> values() { return {0, 1, 8, UINT32_MAX}; }
template <> std::vector<int32_t> values() { return {0, 1, -1, INT32_MAX, INT32_MIN}; }
template <> std::vector<const char *> values() {
    static const std::string target = output() / "written";
    return {nullptr, "", "\xff", "/no/such/place", dump.c_str(), config.c_str(), target.c_str()};
}
template <> std::vector<int64_t> values() { return {0, 1, 8, -1, INT64_MAX, INT64_MIN}; }
template <> std::vector<void *> values() {
    static std::vector<int64_t> slots(some);
    return {nullptr, slots.data(), reinterpret_cast<char *>(slots.data()) + 1};
}
// Counts of 8 ranks, and an unaligned address.
template <> std::vector<const void *> values() {
    static std::vector<int64_t> counts(8 * some);
    return {nullptr, counts.data(), reinterpret_cast<const char *>(counts.data()) + 1};
}

/// NULL, and ids at each address with each dtype. The row strides are the default, its value of these
/// handles, a larger one, and one that is too small.
template <class Ids, class Data> std::vector<const Ids *> ids_at(std::vector<Data> addresses) {
    static std::vector<Ids> all;
    all.clear();
    for (const Data data : addresses) {
        for (const eplb_dtype dtype : std::initializer_list<eplb_dtype>{EPLB_DTYPE_INT32, EPLB_DTYPE_INT64,
                                                                        -1, INT32_MAX, INT32_MIN}) {
            all.push_back({data, dtype, 0});
        }
        for (const uint32_t row_stride : {4u, 5u, 3u}) {
            all.push_back({data, EPLB_DTYPE_INT32, row_stride});
        }
    }
    std::vector<const Ids *> pointers = {nullptr};
    for (const Ids &ids : all) {
        pointers.push_back(&ids);
    }
    return pointers;
}
// Room for 8 tokens of 8 choices each.
template <> std::vector<const eplb_expert_ids *> values() {
    static const std::vector<int64_t> ids(8 * some);
    return ids_at<eplb_expert_ids, const void *>(
        {nullptr, ids.data(), reinterpret_cast<const char *>(ids.data()) + 1});
}
template <> std::vector<const eplb_slot_ids *> values() { return ids_at<eplb_slot_ids>(values<void *>()); }
template <> std::vector<struct CUstream_st *> values() { return {nullptr}; }
template <> std::vector<eplb_log_callback> values() {
    return {[](void *, eplb_log_level, const char *) {}, nullptr};
}

/// NULL and an array of `Count` values.
template <class T, size_t Count> std::vector<T *> arrays(T (*value)(size_t)) {
    static std::vector<T> array(Count);
    for (size_t i = 0; i < Count; i++) {
        array[i] = value(i);
    }
    return {nullptr, array.data()};
}

template <> std::vector<const int32_t *> values() {
    const auto same = arrays<int32_t, some * some>([](size_t i) { return static_cast<int32_t>(i % some); });
    return {same.begin(), same.end()};
}
template <> std::vector<int32_t *> values() {
    return arrays<int32_t, some * some * some>([](size_t) { return 0; });
}
template <> std::vector<const int64_t *> values() {
    const auto same =
        arrays<int64_t, some * some * some>([](size_t i) { return static_cast<int64_t>(i % some); });
    return {same.begin(), same.end()};
}
// Eight samples of the recorder's layers.
template <> std::vector<int64_t *> values() {
    return arrays<int64_t, 8 * 2 * some>([](size_t) { return int64_t(0); });
}
template <> std::vector<const uint8_t *> values() {
    static const uint8_t none[8] = {};
    const auto all = arrays<uint8_t, 8>([](size_t) { return uint8_t(1); });
    return {all[0], all[1], none};
}
template <> std::vector<eplb_transfer *> values() {
    return arrays<eplb_transfer, 4096>([](size_t) { return eplb_transfer(); });
}
template <> std::vector<const double *> values() {
    static std::vector<double> nan(some * some * some, NAN);
    const auto loads =
        arrays<double, some * some * some>([](size_t i) { return static_cast<double>(i % 7); });
    return {loads[0], loads[1], nan.data()};
}
template <> std::vector<double *> values() {
    return arrays<double, some * some>([](size_t) { return 0.0; });
}
template <> std::vector<uint32_t *> values() {
    return arrays<uint32_t, 1>([](size_t) { return 0u; });
}
template <> std::vector<const uint32_t *> values() {
    const auto counts = arrays<uint32_t, 8>([](size_t) { return 1u; });
    return {counts[0], counts[1]};
}
template <> std::vector<uint64_t *> values() {
    return arrays<uint64_t, 1>([](size_t) { return uint64_t(0); });
}
static_assert(std::is_same_v<size_t, uint64_t>, "values<size_t *>() would be missing");
template <> std::vector<const int32_t **> values() {
    return arrays<const int32_t *, 1>([](size_t) { return static_cast<const int32_t *>(nullptr); });
}
template <> std::vector<eplb_placement_issue *> values() {
    return arrays<eplb_placement_issue, 4096>([](size_t) { return eplb_placement_issue(); });
}

template <> std::vector<const eplb_recorder *> values() { return {nullptr, a_recorder()}; }
template <> std::vector<eplb_recorder *> values() { return {nullptr, a_recorder(), a_rolling_recorder()}; }
template <> std::vector<eplb_recorder **> values() {
    return arrays<eplb_recorder *, 1>([](size_t) { return static_cast<eplb_recorder *>(nullptr); });
}
template <> std::vector<const eplb_dispatch *> values() { return {nullptr, a_dispatch()}; }
template <> std::vector<eplb_dispatch *> values() { return {nullptr, a_dispatch()}; }
template <> std::vector<eplb_dispatch **> values() {
    return arrays<eplb_dispatch *, 1>([](size_t) { return static_cast<eplb_dispatch *>(nullptr); });
}
template <> std::vector<const eplb_plan *> values() { return {nullptr, a_plan(), a_plan_in_flight()}; }
template <> std::vector<eplb_plan **> values() {
    return arrays<eplb_plan *, 1>([](size_t) { return static_cast<eplb_plan *>(nullptr); });
}
template <> std::vector<const eplb_rebalancer *> values() { return {nullptr, a_rebalancer()}; }
template <> std::vector<eplb_rebalancer *> values() { return {nullptr, a_rebalancer()}; }
template <> std::vector<eplb_rebalancer **> values() {
    return arrays<eplb_rebalancer *, 1>([](size_t) { return static_cast<eplb_rebalancer *>(nullptr); });
}
template <> std::vector<eplb_metrics *> values() {
    static const auto metrics = eplb::metrics::create();
    return {nullptr, metrics.get()};
}
template <> std::vector<eplb_metrics **> values() {
    return arrays<eplb_metrics *, 1>([](size_t) { return static_cast<eplb_metrics *>(nullptr); });
}
template <> std::vector<const eplb_metrics_label *> values() {
    static const std::vector<std::string> names = [] {
        std::vector<std::string> names;
        for (size_t i = 0; i < some; i++) {
            names.push_back("label" + std::to_string(i));
        }
        return names;
    }();
    const auto labels = arrays<eplb_metrics_label, some>([](size_t i) {
        return eplb_metrics_label{names[i].c_str(), i % 2 == 0 ? "value" : "\"\\\n"};
    });
    static const std::vector<eplb_metrics_label> null(some, {nullptr, nullptr}), wild(some, {"\xff", ""});
    return {labels[0], labels[1], null.data(), wild.data()};
}
template <> std::vector<const char **> values() {
    return arrays<const char *, 1>([](size_t) { return static_cast<const char *>(nullptr); });
}
template <> std::vector<const eplb_stats *> values() { return {nullptr, a_stats()}; }
template <> std::vector<const eplb_placement *> values() { return {nullptr, a_placement()}; }
template <> std::vector<eplb_stats **> values() {
    return arrays<eplb_stats *, 1>([](size_t) { return static_cast<eplb_stats *>(nullptr); });
}
template <> std::vector<eplb_placement **> values() {
    return arrays<eplb_placement *, 1>([](size_t) { return static_cast<eplb_placement *>(nullptr); });
}

/// An array of one value a rank, far shorter than some of the numbers of ranks that are passed with it.
constexpr int32_t of_ranks[8] = {1, 1, 1, 1, 1, 1, 1, 1};

/// A growing struct: NULL, the default, sizes that a caller may give, and the structs of `more`.
template <class T> std::vector<T *> structs(const T &init, std::vector<T> more = {}) {
    static std::vector<T> all;
    all = std::move(more);
    all.push_back(init);
    for (const size_t size : {size_t(0), size_t(1), sizeof(size_t), sizeof(size_t) + 4, sizeof(T) - 1,
                              sizeof(T) / 2, SIZE_MAX, SIZE_MAX / 2, size_t(1) << 40}) {
        all.push_back(init);
        all.back().struct_size = size;
    }
    std::vector<T *> pointers = {nullptr};
    for (T &one : all) {
        pointers.push_back(&one);
    }
    return pointers;
}
template <class T> std::vector<const T *> const_structs(const T &init, std::vector<T> more = {}) {
    const auto pointers = structs(init, std::move(more));
    return {pointers.begin(), pointers.end()};
}
/// All bits set after struct_size.
template <class T> T wild(T init) {
    std::memset(reinterpret_cast<char *>(&init) + sizeof(size_t), 0xff, sizeof(T) - sizeof(size_t));
    return init;
}

template <> std::vector<const eplb_stats_options *> values() {
    eplb_stats_options options = EPLB_STATS_OPTIONS_INIT;
    return const_structs(options, {wild(options)});
}
// At most as many counts as values<const void *>() have.
template <> std::vector<const eplb_stats_config *> values() {
    static const int32_t layers[] = {3, 4};
    eplb_stats_config init = EPLB_STATS_CONFIG_INIT, good = init;
    good.num_experts = some;
    good.layer_ids = layers;
    good.num_layers = 2;
    good.num_iterations = 2;
    eplb_stats_config wide = good, late = good, huge = good, more = good;
    wide.dtype = EPLB_DTYPE_INT64;
    late.iter_start = INT64_MAX;
    more.num_layers = SIZE_MAX;
    huge.num_experts = huge.num_ranks = UINT32_MAX;
    return const_structs(init, {wild(init), good, wide, late, more, huge});
}
template <> std::vector<eplb_stats_info *> values() { return structs<eplb_stats_info>(EPLB_STATS_INFO_INIT); }
template <> std::vector<const eplb_placement_config *> values() {
    eplb_placement_config init = EPLB_PLACEMENT_CONFIG_INIT, good = init;
    good.num_experts = some;
    good.num_ranks = 8;
    eplb_placement_config ranks = good;
    ranks.num_ranks = UINT32_MAX;
    ranks.rank_num_slots = of_ranks;
    eplb_placement_config empty = good;
    empty.allow_empty_slots = 1;
    return const_structs(init, {wild(init), good, ranks, empty});
}
template <> std::vector<const eplb_placement_load_options *> values() {
    eplb_placement_load_options init = EPLB_PLACEMENT_LOAD_OPTIONS_INIT, good = init, huge = init;
    good.num_ranks = 8;
    huge.num_layers = SIZE_MAX;
    return const_structs(init, {good, huge});
}
template <> std::vector<const eplb_file_options *> values() {
    eplb_file_options init = EPLB_FILE_OPTIONS_INIT, counts = init, map = init;
    counts.format = EPLB_FILE_FORMAT_NPY;
    map.format = EPLB_FILE_FORMAT_SGLANG_MAP;
    eplb_file_options wide = map, ranks = init;
    wide.num_model_layers = UINT32_MAX;
    ranks.num_ranks = 8;
    return const_structs(init, {wild(init), counts, map, wide, ranks});
}
template <> std::vector<eplb_placement_info *> values() {
    return structs<eplb_placement_info>(EPLB_PLACEMENT_INFO_INIT);
}
template <> std::vector<eplb_placement_evaluation *> values() {
    return structs<eplb_placement_evaluation>(EPLB_PLACEMENT_EVALUATION_INIT);
}
template <> std::vector<const eplb_solve_options *> values() {
    static const std::vector<double> sample_weights(some, 1.0);
    eplb_solve_options init = EPLB_SOLVE_OPTIONS_INIT, greedy = init, nodes = init, weights = init;
    greedy.policy = EPLB_POLICY_TRTLLM;
    greedy.num_threads = UINT32_MAX;
    nodes.rank_to_node = of_ranks;
    weights.sample_weights = sample_weights.data();
    eplb_solve_options bad = init, groups = init;
    bad.policy = INT32_MIN;
    groups.policy = EPLB_POLICY_DEEPSEEK_HIERARCHICAL;
    groups.num_groups = groups.num_nodes = UINT32_MAX;
    static const std::vector<int32_t> free_slots(some, -1);
    eplb_solve_options pins = init;
    pins.pinned_experts = free_slots.data();
    pins.num_pinned_layers = 1;
    return const_structs(init, {wild(init), greedy, nodes, weights, bad, groups, pins});
}
template <> std::vector<const eplb_generate_config *> values() {
    static const std::string target = output() / "generated";
    eplb_generate_config init = EPLB_GENERATE_CONFIG_INIT, good = init, bad = init;
    good.expert_statistic_path = dump.c_str();
    good.output_path = target.c_str();
    good.num_samples = 1;
    bad = good;
    bad.num_ranks = bad.num_slots = UINT32_MAX;
    eplb_generate_config ranks = good;
    ranks.num_ranks = 8;
    return const_structs(init, {good, bad, ranks});
}
template <> std::vector<eplb_recorder_config *> values() {
    return structs<eplb_recorder_config>(EPLB_RECORDER_CONFIG_INIT);
}
template <> std::vector<const eplb_recorder_config *> values() {
    static const std::string target = output() / "dump";
    static const int32_t layers[] = {3, 4};
    eplb_recorder_config init = EPLB_RECORDER_CONFIG_INIT, good = init, huge = init, unaligned = init;
    good.path = target.c_str();
    good.iter_stop = 10;
    good.num_ranks = 8;
    good.num_experts = some;
    good.experts_per_token = 4;
    good.layer_ids = layers;
    good.num_layers = 2;
    huge = unaligned = good;
    huge.num_shared_experts = UINT32_MAX;
    huge.iter_stop = 400000;
    huge.num_experts = 1 << 20;
    unaligned.workspace = reinterpret_cast<void *>(uintptr_t(1));
    unaligned.workspace_bytes = SIZE_MAX;
    eplb_recorder_config slots = good, unknown = good;
    slots.id_kind = EPLB_ID_KIND_SLOT;
    slots.added_counts = EPLB_ADDED_COUNTS_CUMULATIVE | EPLB_ADDED_COUNTS_BY_LOCAL_SLOT;
    unknown.added_counts = UINT32_MAX;
    // The options of pipeline stages, names, rows and ranks without layers.
    eplb_recorder_config stage = good, named = good, rows = good, empty = good, rolling = good,
                         endless = good;
    rolling.rolling_iterations = 4;
    endless.rolling_iterations = UINT64_MAX;
    stage.file_rank = 9;
    stage.num_files = UINT32_MAX;
    named.name = "../model";
    rows.iter_bucket = rows.iter_stride = UINT32_MAX;
    rows.iter_stop = INT64_MAX;
    empty.layer_ids = nullptr;
    empty.num_layers = 0;
    return const_structs(
        init, {good, huge, unaligned, slots, unknown, stage, named, rows, empty, rolling, endless});
}
template <> std::vector<const eplb_dispatch_config *> values() {
    eplb_dispatch_config init = EPLB_DISPATCH_CONFIG_INIT, good = init, huge = init, unaligned = init;
    good.num_ranks = 8;
    good.experts_per_token = 4;
    huge = unaligned = good;
    huge.num_layers = SIZE_MAX;
    unaligned.workspace = reinterpret_cast<void *>(uintptr_t(1));
    unaligned.workspace_bytes = SIZE_MAX;
    eplb_dispatch_config nodes = good;
    nodes.num_ranks = UINT32_MAX;
    nodes.rank_to_node = of_ranks;
    eplb_dispatch_config none = good;
    static const int32_t no_layer = 0;
    none.layer_ids = &no_layer;
    static const int32_t shared_slots[] = {1 << 30, INT32_MAX};
    eplb_dispatch_config shared = good, many_shared = good, live = good;
    live.live = 1;
    shared.invalid_slot = -1;
    shared.num_shared_experts = 2;
    shared.shared_slot_ids = shared_slots;
    many_shared.num_shared_experts = UINT32_MAX;
    many_shared.shared_slot_ids = shared_slots;
    return const_structs(init, {good, huge, unaligned, nodes, none, shared, many_shared, live});
}
template <> std::vector<const eplb_plan_options *> values() {
    static const uint8_t active[8] = {1, 1, 1, 0, 1, 1, 1, 1};
    eplb_plan_options init = EPLB_PLAN_OPTIONS_INIT, nodes = init, one_dead = init, ranks = init,
                      buffering = init;
    nodes.rank_to_node = of_ranks;
    nodes.num_ranks = one_dead.num_ranks = 8;
    one_dead.active = active;
    ranks.rank_to_node = of_ranks;
    ranks.num_ranks = UINT32_MAX;
    buffering.buffering = INT32_MAX;
    return const_structs(init, {nodes, one_dead, ranks, buffering});
}
template <> std::vector<const eplb_plan_limits *> values() {
    eplb_plan_limits init = EPLB_PLAN_LIMITS_INIT, few = init, bad = init;
    few.max_moves = 1;
    bad.horizon = NAN;
    return const_structs(init, {wild(init), few, bad});
}
template <> std::vector<const eplb_rebalancer_config *> values() {
    eplb_rebalancer_config init = EPLB_REBALANCER_CONFIG_INIT, good = init, huge = init, bad = init;
    good.experts_per_token = huge.experts_per_token = bad.experts_per_token = 4;
    huge.num_windows = huge.half_life = huge.num_phases = huge.num_threads = UINT32_MAX;
    bad.trigger = NAN;
    bad.rank_to_node = of_ranks;
    return const_structs(init, {good, huge, bad});
}
template <> std::vector<eplb_plan_info *> values() { return structs<eplb_plan_info>(EPLB_PLAN_INFO_INIT); }
template <> std::vector<eplb_planned_layer *> values() {
    return structs<eplb_planned_layer>(EPLB_PLANNED_LAYER_INIT);
}
template <> std::vector<eplb_rebalancer_info *> values() {
    return structs<eplb_rebalancer_info>(EPLB_REBALANCER_INFO_INIT);
}
template <> std::vector<eplb_dispatch_tables *> values() {
    return structs<eplb_dispatch_tables>(EPLB_DISPATCH_TABLES_INIT);
}
template <> std::vector<eplb_dispatch_info *> values() {
    return structs<eplb_dispatch_info>(EPLB_DISPATCH_INFO_INIT);
}
template <> std::vector<eplb_recorder_info *> values() {
    return structs<eplb_recorder_info>(EPLB_RECORDER_INFO_INIT);
}
template <> std::vector<eplb_generate_report *> values() {
    return structs<eplb_generate_report>(EPLB_GENERATE_REPORT_INIT);
}

struct outcome {
    size_t succeeded = 0, failed = 0;
};

void judge(const char *function, eplb_status status, outcome &outcome) {
    if (status == EPLB_STATUS_OK) {
        outcome.succeeded++;
        return;
    }
    outcome.failed++;
    ASSERT_STRNE(eplb_status_string(status), "unknown status") << function << " returned " << int(status);
    ASSERT_NE(status, EPLB_STATUS_INTERNAL) << function << ": " << eplb_last_error_message();
    ASSERT_STRNE(eplb_last_error_message(), "") << function << " failed without a message";
}

/// Destroys the handle that a call returned.
template <class T> void destroy_result(T) {}
void destroy_result(eplb_stats **handle) {
    if (handle != nullptr) {
        eplb_stats_destroy(std::exchange(*handle, nullptr));
    }
}
void destroy_result(eplb_recorder **handle) {
    if (handle != nullptr) {
        eplb_recorder_destroy(std::exchange(*handle, nullptr));
    }
}
void destroy_result(eplb_dispatch **handle) {
    if (handle != nullptr) {
        eplb_dispatch_destroy(std::exchange(*handle, nullptr));
    }
}
void destroy_result(eplb_plan **handle) {
    if (handle != nullptr) {
        eplb_plan_destroy(std::exchange(*handle, nullptr));
    }
}
void destroy_result(eplb_rebalancer **handle) {
    if (handle != nullptr) {
        eplb_rebalancer_destroy(std::exchange(*handle, nullptr));
    }
}
void destroy_result(eplb_metrics **handle) {
    if (handle != nullptr) {
        eplb_metrics_destroy(std::exchange(*handle, nullptr));
    }
}
void destroy_result(eplb_placement **handle) {
    if (handle != nullptr) {
        eplb_placement_destroy(std::exchange(*handle, nullptr));
    }
}

/// Calls `call` with every combination of values for the parameters that are not chosen yet.
template <class Call> void combine(const Call &call) { call(); }
template <class T, class... Rest, class Call>
void combine(const Call &call, const std::vector<T> &first, const std::vector<Rest> &...rest) {
    for (const T value : first) {
        combine([&](Rest... others) { call(value, others...); }, rest...);
    }
}

/// _destroy of NULL. Every object of eplb.hpp destroys a live handle.
template <class Handle> outcome sweep(const char *, void (*destroy)(Handle *)) {
    destroy(nullptr);
    return {1, 0};
}

template <class Result, class... Arguments>
outcome sweep(const char *name, Result (*function)(Arguments...)) {
    outcome outcome;
    const auto call = [&](Arguments... arguments) {
        if constexpr (std::is_same_v<Result, eplb_status>) {
            judge(name, function(arguments...), outcome);
        } else {
            function(arguments...);
            outcome.succeeded++;
        }
        (destroy_result(arguments), ...);
    };
    combine(call, values<Arguments>()...);
    return outcome;
}

} // namespace

TEST(Boundary, EveryCombinationOfValuesReturnsAStatus) {
    size_t functions = 0;
#define SWEEP(function)                                                                                      \
    {                                                                                                        \
        const outcome found = sweep(#function, &function);                                                   \
        EXPECT_GT(found.succeeded, 0u)                                                                       \
            << #function << " never succeeded: give its parameters better values";                           \
        std::printf("%-32s %6zu succeeded, %6zu failed\n", #function, found.succeeded, found.failed);        \
        functions++;                                                                                         \
    }
#include "functions.inc"
#undef SWEEP
    EXPECT_GE(functions, 86u);
    // The library still works.
    EXPECT_EQ(eplb::suggest_num_slots(256, 36, 290).second, 324u);
}

TEST(Boundary, FailedAllocationReturnsOutOfMemory) {
    // A million experts on a million ranks: the counts of all ranks would take 8 TiB.
    constexpr uint32_t many = 1 << 20;
    std::vector<int32_t> slot_experts(many);
    std::iota(slot_experts.begin(), slot_experts.end(), 0);
    eplb::placement_config wide;
    wide.num_experts = wide.num_ranks = many;
    const std::vector<int32_t> layer = {0};
    const auto placement = eplb::placement::create(wide, layer, slot_experts);
    eplb_dispatch_config config = EPLB_DISPATCH_CONFIG_INIT;
    config.num_ranks = many;
    config.experts_per_token = 1;
    const std::vector<uint32_t> tokens(many);
    std::vector<double> loads(many, 7);
    config.rule = EPLB_RULE_LEAST_LOADED;
    const eplb_expert_ids no_ids = {nullptr, EPLB_DTYPE_INT32, 0};
    EXPECT_EQ(
        eplb_placement_routed_load(placement.get(), &config, 0, &no_ids, tokens.data(), 1, loads.data()),
        EPLB_STATUS_OUT_OF_MEMORY);
    EXPECT_EQ(loads[0], 7);
}

TEST(Boundary, StatusStringNamesEveryStatusOfTheHeader) {
    const std::string header = read_file(data("../include/eplb.h"));
    const std::regex constant(R"((EPLB_STATUS_[A-Z_]+) = (\d+),)");
    size_t constants = 0;
    for (std::sregex_iterator found(header.begin(), header.end(), constant), end; found != end; ++found) {
        EXPECT_EQ((*found)[1].str(), eplb_status_string(std::stoi((*found)[2])));
        constants++;
    }
    EXPECT_GE(constants, 17u);
    size_t named = 0;
    for (eplb_status status = -1000; status < 1000; status++) {
        named += std::strcmp(eplb_status_string(status), "unknown status") != 0 ? 1 : 0;
    }
    EXPECT_EQ(named, constants) << "a status that the header lacks has a name";
}

TEST(Boundary, VersionMacrosEqualTheVersionOfTheLibrary) {
    EXPECT_EQ(std::to_string(EPLB_VERSION_MAJOR) + "." + std::to_string(EPLB_VERSION_MINOR) + "." +
                  std::to_string(EPLB_VERSION_PATCH),
              eplb_version_string());
    EXPECT_EQ(eplb_abi_version(), EPLB_ABI_VERSION);
}
