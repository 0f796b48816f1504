// eplb's tools for C++17: RAII handles over eplb_tools.h. See eplb.hpp.
#ifndef EPLB_TOOLS_HPP
#define EPLB_TOOLS_HPP

#include "eplb.hpp"
#include "eplb_tools.h"

namespace eplb {

/// eplb_file_options.
struct file_options {
    eplb_file_format format = EPLB_FILE_FORMAT_DETECT;
    std::vector<std::int32_t> layer_ids = {};
    std::uint32_t num_model_layers = 0;
    std::uint32_t num_experts = 0;
    std::uint32_t num_ranks = 0;
    std::uint32_t num_slots = 0;
    std::uint32_t experts_per_token = 0;
    bool sum_iterations = false;
    bool allow_lossy = false;

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
        c.sum_iterations = sum_iterations;
        c.allow_lossy = allow_lossy;
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

/// eplb_stats_config. The type of the counts is that of stats::create().
struct stats_config {
    std::uint32_t num_experts = 0;
    std::uint32_t experts_per_token = 0;
    std::uint32_t num_ranks = 0;
    eplb_id_kind id_kind = EPLB_ID_KIND_EXPERT;
    std::vector<std::int32_t> layer_ids = {};
    std::int64_t iter_start = 0;
    std::uint32_t num_iterations = 1;

    eplb_stats_config c(eplb_dtype dtype) const {
        eplb_stats_config c = EPLB_STATS_CONFIG_INIT;
        c.num_experts = num_experts;
        c.experts_per_token = experts_per_token;
        c.num_ranks = num_ranks;
        c.id_kind = id_kind;
        c.layer_ids = layer_ids.data();
        c.num_layers = layer_ids.size();
        c.iter_start = iter_start;
        c.num_iterations = num_iterations;
        c.dtype = dtype;
        return c;
    }
};

/// The counts of a dump or of arrays.
class stats {
  public:
    /// Takes over a handle.
    explicit stats(eplb_stats *handle) : handle_(handle) {}

    static returns<stats> load(const std::string &path, const stats_options &options = {}) {
        const eplb_stats_options c = options.c();
        return detail::make<stats, eplb_stats>(
            [&](eplb_stats **handle) { return eplb_stats_load(path.c_str(), &c, handle); });
    }

    /// From arrays: `counts` is [num_iterations][layers][num_experts], int32 or int64.
    template <class Count>
    static returns<stats> create(const stats_config &config, const std::vector<Count> &counts) {
        static_assert(sizeof(Count) == 4 || sizeof(Count) == 8, "counts are int32 or int64");
        if (counts.size() != config.layer_ids.size() * config.num_iterations * config.num_experts) {
            return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, stats(nullptr),
                                  "counts is not [num_iterations][layers][num_experts] long");
        }
        const eplb_stats_config c = config.c(sizeof(Count) == 4 ? EPLB_DTYPE_INT32 : EPLB_DTYPE_INT64);
        return detail::make<stats, eplb_stats>(
            [&](eplb_stats **handle) { return eplb_stats_create(&c, counts.data(), handle); });
    }

    /// eplb_stats_load_file().
    static returns<stats> load_file(const std::string &path, const file_options &options = {}) {
        const eplb_file_options c = options.c();
        return detail::make<stats, eplb_stats>(
            [&](eplb_stats **handle) { return eplb_stats_load_file(path.c_str(), &c, handle); });
    }

    /// eplb_stats_save_file(): the options name the format.
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

    /// The loads of a layer, [num_samples][num_experts]; 1 sample is the sum over the rows.
    returns<std::vector<double>> layer_loads(std::int32_t layer, std::size_t num_samples = 1) const {
        return detail::run(
            [&](std::vector<double> &loads) {
                eplb_stats_info info = EPLB_STATS_INFO_INIT;
                const eplb_status status = eplb_stats_get_info(get(), &info);
                if (status != EPLB_STATUS_OK) {
                    return status;
                }
                // The library refuses other numbers of samples, before memory is allocated for them.
                const bool possible = num_samples <= info.num_rows;
                loads.resize(possible ? num_samples * info.num_experts : 0);
                return eplb_stats_layer_loads(get(), layer, num_samples, info.num_experts, loads.data());
            },
            std::vector<double>());
    }

    const eplb_stats *get() const noexcept { return handle_.get(); }

  private:
    detail::owner<eplb_stats, eplb_stats_destroy>::type handle_;
};

/// eplb_solve_options.
struct solve_options {
    eplb_policy policy = EPLB_POLICY_DEFAULT;
    eplb_objective objective = EPLB_OBJECTIVE_EVEN_SPLIT;
    std::uint32_t num_threads = 0;
    std::uint32_t num_groups = 0;
    std::uint32_t num_nodes = 0;
    /// Empty, or one of each rank.
    std::vector<std::int32_t> rank_to_node = {};
    double off_node_price = 0;
    /// Empty, or one of each sample.
    std::vector<double> sample_weights = {};
    double quantile = 0;
    double drift = 0;
    std::size_t effort = 0;
    /// Empty, or [num_pinned_layers][num_slots], with -1 in free slots.
    std::vector<std::int32_t> pinned_experts = {};
    std::size_t num_pinned_layers = 1;

    eplb_solve_options c() const {
        eplb_solve_options c = EPLB_SOLVE_OPTIONS_INIT;
        c.policy = policy;
        c.objective = objective;
        c.num_threads = num_threads;
        c.num_groups = num_groups;
        c.num_nodes = num_nodes;
        c.rank_to_node = rank_to_node.empty() ? nullptr : rank_to_node.data();
        c.off_node_price = off_node_price;
        c.sample_weights = sample_weights.empty() ? nullptr : sample_weights.data();
        c.quantile = quantile;
        c.drift = drift;
        c.effort = effort;
        c.pinned_experts = pinned_experts.empty() ? nullptr : pinned_experts.data();
        c.num_pinned_layers = pinned_experts.empty() ? 0 : num_pinned_layers;
        return c;
    }

    /// Whether the arrays are of these lengths, or empty.
    bool fits(std::size_t num_ranks, std::size_t num_samples, std::size_t num_slots) const {
        return (rank_to_node.empty() || rank_to_node.size() == num_ranks) &&
               (sample_weights.empty() || sample_weights.size() == num_samples) &&
               (pinned_experts.empty() || num_pinned_layers == 0 || num_slots == 0 ||
                pinned_experts.size() == num_pinned_layers * num_slots);
    }
};

namespace detail {

inline const char *options_message() {
    return "rank_num_slots or rank_to_node is not [num_ranks] long, sample_weights not [num_samples], or "
           "pinned_experts not [num_pinned_layers][num_slots]";
}

} // namespace detail

/// eplb_solve(): `loads` is [layers][num_samples][num_experts].
inline returns<placement> solve(const placement_config &config, view<std::int32_t> layer_ids,
                                view<double> loads, std::size_t num_samples = 1,
                                const solve_options &options = {}) {
    const eplb_placement_config c = config.c();
    const eplb_solve_options o = options.c();
    if (loads.size() != layer_ids.size() * num_samples * config.num_experts) {
        return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, placement(nullptr),
                              "loads is not [layers][num_samples][num_experts] long");
    }
    if (!config.fits() || !options.fits(config.num_ranks, num_samples, config.total_slots())) {
        return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, placement(nullptr), detail::options_message());
    }
    return detail::make<placement, eplb_placement>([&](eplb_placement **handle) {
        return eplb_solve(&c, &o, layer_ids.data(), layer_ids.size(), loads.data(), num_samples, handle);
    });
}

/// The three arrays of DeepSeek's rebalance_experts().
struct deepseek_arrays {
    /// [layers][slots]
    std::vector<std::int32_t> phy2log = {};
    /// [layers][experts][max_replicas], padded with -1
    std::vector<std::int32_t> log2phy = {};
    /// [layers][experts]
    std::vector<std::int32_t> logcnt = {};
};

/// eplb_deepseek_rebalance(): `loads` is [layers][num_experts].
inline returns<deepseek_arrays> deepseek_rebalance(const placement_config &config, view<double> loads,
                                                   std::size_t max_replicas,
                                                   const solve_options &options = {}) {
    const eplb_placement_config c = config.c();
    const eplb_solve_options o = options.c();
    const std::size_t num_experts = config.num_experts;
    const std::size_t num_layers = num_experts != 0 ? loads.size() / num_experts : 0;
    if (loads.size() != num_layers * num_experts) {
        return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, deepseek_arrays(),
                              "loads is not [layers][num_experts] long");
    }
    if (!config.fits() || !options.fits(config.num_ranks, 1, config.total_slots())) {
        return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, deepseek_arrays(), detail::options_message());
    }
    return detail::run(
        [&](deepseek_arrays &arrays) {
            arrays.phy2log.resize(num_layers * config.total_slots());
            arrays.log2phy.resize(num_layers * num_experts * max_replicas);
            arrays.logcnt.resize(num_layers * num_experts);
            return eplb_deepseek_rebalance(&c, &o, loads.data(), num_layers, max_replicas,
                                           arrays.phy2log.data(), arrays.log2phy.data(),
                                           arrays.logcnt.data());
        },
        deepseek_arrays());
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

/// eplb_generate_config, without the progress callback.
struct generate_config {
    std::string expert_statistic_path = {};
    std::string output_path = {};
    std::uint32_t num_ranks = 0;
    std::uint32_t num_slots = 0;
    std::size_t num_samples = 0;
    std::uint32_t layer_updates_per_iter = 0;
    stats_options stats = {};
    solve_options solve = {};
    /// Empty, or one of each rank.
    std::vector<std::int32_t> rank_num_slots = {};
    /// Several dumps, instead of expert_statistic_path.
    std::vector<std::string> paths = {};
    /// Empty, or one of each of `paths`.
    std::vector<double> path_weights = {};

    /// Without `paths`, which have no array of pointers.
    eplb_generate_config c() const {
        eplb_generate_config c = EPLB_GENERATE_CONFIG_INIT;
        c.expert_statistic_path =
            paths.empty() || !expert_statistic_path.empty() ? expert_statistic_path.c_str() : nullptr;
        c.output_path = output_path.c_str();
        c.num_ranks = num_ranks;
        c.num_slots = num_slots;
        c.num_samples = num_samples;
        c.layer_updates_per_iter = layer_updates_per_iter;
        c.rank_num_slots = rank_num_slots.empty() ? nullptr : rank_num_slots.data();
        return c;
    }
};

namespace detail {

inline returns<eplb_generate_report> generate(const generate_config &config, eplb_generate_config c) {
    std::vector<const char *> paths;
    for (const std::string &path : config.paths) {
        paths.push_back(path.c_str());
    }
    c.paths = paths.empty() ? nullptr : paths.data();
    c.num_paths = paths.size();
    c.path_weights = config.path_weights.empty() ? nullptr : config.path_weights.data();
    const eplb_stats_options stats = config.stats.c();
    const eplb_solve_options solve = config.solve.c();
    const eplb_generate_report none = EPLB_GENERATE_REPORT_INIT;
    // The library names the number that is missing before it reads the array.
    const std::size_t num_ranks = config.num_ranks != 0 ? config.num_ranks : config.solve.rank_to_node.size();
    const std::size_t num_samples =
        config.num_samples != 0 ? config.num_samples : config.solve.sample_weights.size();
    const bool ranks_fit = config.rank_num_slots.empty() || config.num_ranks == 0 ||
                           config.rank_num_slots.size() == config.num_ranks;
    const bool weights_fit = config.path_weights.empty() || config.path_weights.size() == paths.size();
    if (!ranks_fit || !weights_fit || !config.solve.fits(num_ranks, num_samples, config.num_slots)) {
        return finish(EPLB_STATUS_INVALID_ARGUMENT, eplb_generate_report(none), options_message());
    }
    return run([&](eplb_generate_report &report) { return eplb_generate(&c, &stats, &solve, &report); },
               eplb_generate_report(none));
}

} // namespace detail

/// eplb_generate().
inline returns<eplb_generate_report> generate(const generate_config &config) {
    return detail::generate(config, config.c());
}

/// eplb_generate() with `progress(phase, done, total)`, which returns whether to continue. If it throws, the
/// work is cancelled and the exception is rethrown here.
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
#ifdef EPLB_NO_EXCEPTIONS
    return detail::generate(config, c);
#else
    try {
        return detail::generate(config, c);
    } catch (...) {
        if (state.thrown) {
            std::rethrow_exception(state.thrown);
        }
        throw;
    }
#endif
}

/// eplb_placement_evaluate(): `loads` is [num_samples][experts]; the options name nodes, if any.
inline returns<eplb_placement_evaluation> evaluate(const placement &placement, std::int32_t layer,
                                                   view<double> loads, std::size_t num_samples = 1,
                                                   const solve_options &options = {}) {
    const eplb_placement_evaluation none = EPLB_PLACEMENT_EVALUATION_INIT;
    const std::size_t num_experts = num_samples != 0 ? loads.size() / num_samples : 0;
    eplb_placement_info info = EPLB_PLACEMENT_INFO_INIT;
    eplb_placement_get_info(placement.get(), &info);
    if (num_experts * num_samples != loads.size() ||
        (!options.rank_to_node.empty() && options.rank_to_node.size() != info.num_ranks)) {
        return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, eplb_placement_evaluation(none),
                              "loads is not [num_samples][experts] long, or rank_to_node not [num_ranks]");
    }
    const eplb_solve_options o = options.c();
    return detail::run(
        [&](eplb_placement_evaluation &evaluation) {
            return eplb_placement_evaluate(placement.get(), layer, loads.data(), num_samples, num_experts, &o,
                                           &evaluation);
        },
        eplb_placement_evaluation(none));
}

/// eplb_placement_expected_load(): `rank_counts` is [num_ranks][experts].
inline returns<std::vector<double>> expected_load(const placement &placement, const dispatch_config &config,
                                                  std::int32_t layer, view<std::int64_t> rank_counts,
                                                  bool with_rank_counts = false) {
    eplb_placement_info info = EPLB_PLACEMENT_INFO_INIT;
    const eplb_status known = eplb_placement_get_info(placement.get(), &info);
    if (known == EPLB_STATUS_OK && rank_counts.size() != std::size_t(info.num_ranks) * info.num_experts) {
        return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, std::vector<double>(),
                              "rank_counts is not [num_ranks][experts] long");
    }
    if (!config.fits()) {
        return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, std::vector<double>(), detail::nodes_message());
    }
    const eplb_dispatch_config c = config.c();
    return detail::run(
        [&](std::vector<double> &loads) {
            loads.resize(info.num_ranks);
            return eplb_placement_expected_load(placement.get(), &c, layer, rank_counts.data(),
                                                with_rank_counts ? 1 : 0, loads.data());
        },
        std::vector<double>());
}

/// eplb_placement_routed_load(): the ids of rank 0, [rank_tokens[0]][experts_per_token], then those of rank
/// 1, and so on.
template <class Id>
returns<std::vector<double>> routed_load(const placement &placement, const dispatch_config &config,
                                         std::int32_t layer, view<Id> expert_ids,
                                         view<std::uint32_t> rank_tokens, bool with_rank_counts = false) {
    static_assert(sizeof(Id) == 4 || sizeof(Id) == 8, "ids are int32 or int64");
    std::size_t tokens = 0;
    for (const std::uint32_t of_rank : rank_tokens) {
        tokens += of_rank;
    }
    if (rank_tokens.size() != config.num_ranks || expert_ids.size() != tokens * config.experts_per_token) {
        return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, std::vector<double>(),
                              "rank_tokens is not [num_ranks] long, or there are not as many ids");
    }
    if (!config.fits()) {
        return detail::finish(EPLB_STATUS_INVALID_ARGUMENT, std::vector<double>(), detail::nodes_message());
    }
    const eplb_dispatch_config c = config.c();
    const eplb_expert_ids ids = {expert_ids.data(), sizeof(Id) == 4 ? EPLB_DTYPE_INT32 : EPLB_DTYPE_INT64, 0};
    return detail::run(
        [&](std::vector<double> &loads) {
            loads.resize(config.num_ranks);
            return eplb_placement_routed_load(placement.get(), &c, layer, &ids, rank_tokens.data(),
                                              with_rank_counts ? 1 : 0, loads.data());
        },
        std::vector<double>());
}

/// eplb_placement_load_file().
inline returns<placement> load_placement_file(const std::string &path, const file_options &options = {}) {
    const eplb_file_options c = options.c();
    return detail::make<placement, eplb_placement>(
        [&](eplb_placement **handle) { return eplb_placement_load_file(path.c_str(), &c, handle); });
}

/// eplb_placement_save_file(): the options name the format.
inline returns<done> save_placement_file(const placement &placement, const std::string &path,
                                         const file_options &options) {
    const eplb_file_options c = options.c();
    return detail::run([&](done &) { return eplb_placement_save_file(placement.get(), path.c_str(), &c); },
                       done());
}

/// Labels of the engine: names and values.
using metrics_labels = std::vector<std::pair<std::string, std::string>>;

/// Metrics of objects, as they are when they are added, for Prometheus.
class metrics {
  public:
    /// Takes over a handle.
    explicit metrics(eplb_metrics *handle) : handle_(handle) {}

    static returns<metrics> create() {
        return detail::make<metrics, eplb_metrics>(
            [](eplb_metrics **handle) { return eplb_metrics_create(handle); });
    }

    /// Whether objects that are added from here on have series by layer.
    returns<done> set_layer_series(bool layer_series) {
        return detail::run([&](done &) { return eplb_metrics_set_layer_series(get(), layer_series ? 1 : 0); },
                           done());
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

#endif // EPLB_TOOLS_HPP
