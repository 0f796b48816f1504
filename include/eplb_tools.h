/** \file
 * eplb: the tools beside the engine: statistics, solving, generating, evaluation, files of other systems,
 * metrics. They turn the dump of step 1 into the configuration file of step 3, and run without CUDA.
 *
 * The conventions are those of eplb.h. A load is the number of ids of an expert, or any measure in proportion
 * to it. A sample is one row of loads: some iterations, or a workload.
 */
#ifndef EPLB_TOOLS_H
#define EPLB_TOOLS_H

#include "eplb.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --------------------------------------------------------------------------------------------------------
 * Statistics: counts of a dump or of arrays
 * -------------------------------------------------------------------------------------------------------- */

/** The counts of a dump or of arrays, summed over ranks. Immutable. */
typedef struct eplb_stats eplb_stats;

/** What to read of a dump. Zero is the default of every field. */
typedef struct eplb_stats_options {
  size_t struct_size; /**< Set by EPLB_STATS_OPTIONS_INIT. */
  int64_t iter_start; /**< First iteration to read; 0: the dump's first. */
  int64_t iter_stop; /**< One past the last iteration to read; 0: to the dump's end. */
  uint32_t allow_missing_ranks; /**< Nonzero: accept a dump that lacks the files of some ranks. */
  uint32_t num_threads; /**< Threads that read; 0: one a core, at most 8. Results do not depend on it. */
  /** Files rank<R> of all pipeline stages, to detect missing ones; 0: as in the dump. TensorRT-LLM's dumps do
   * not say it: with 0, the loss of their highest ranks goes undetected. */
  size_t expected_ranks;
} eplb_stats_options;
/** An eplb_stats_options with every default. */
#define EPLB_STATS_OPTIONS_INIT \
  { sizeof(eplb_stats_options), 0, 0, 0, 0, 0 }

/** What arrays of counts describe. */
typedef struct eplb_stats_config {
  size_t struct_size; /**< Set by EPLB_STATS_CONFIG_INIT. */
  uint32_t num_experts; /**< Experts of a layer; for EPLB_ID_KIND_SLOT, slots of all ranks. */
  uint32_t experts_per_token; /**< Experts per token; 0: unknown. */
  uint32_t num_ranks; /**< Ranks whose counts were summed; 0: 1. */
  eplb_id_kind id_kind; /**< What the counts are of. */
  const int32_t *layer_ids; /**< Layer numbers in the order of the counts: [num_layers]. */
  size_t num_layers; /**< Length of layer_ids. */
  int64_t iter_start; /**< First iteration. */
  uint32_t num_iterations; /**< Iterations of the counts. */
  eplb_dtype dtype; /**< The type of a count. */
} eplb_stats_config;
/** An eplb_stats_config with every default. */
#define EPLB_STATS_CONFIG_INIT \
  { sizeof(eplb_stats_config), 0, 0, 0, 0, NULL, 0, 0, 0, 0 }

/** The contents of statistics. Arrays live as long as the handle. */
typedef struct eplb_stats_info {
  size_t struct_size; /**< Set by EPLB_STATS_INFO_INIT. */
  uint32_t num_experts; /**< Experts of a layer; of slot ids, slots of all ranks together. */
  uint32_t experts_per_token; /**< Experts per token; 0 if the source does not say it. */
  /** Ranks of expert parallelism, including missing ones; 0 if pipeline stages have different numbers. */
  uint32_t num_ranks;
  eplb_id_kind id_kind; /**< What the ids name; EPLB_ID_KIND_EXPERT also for a dump that does not say it. */
  int64_t iter_start; /**< First iteration. */
  int64_t iter_stop; /**< One past the last iteration. */
  const int32_t *layer_ids; /**< Layer numbers, ascending: [num_layers]. */
  size_t num_layers; /**< Length of layer_ids. */
  const int32_t *missing_ranks; /**< Numbers R of the missing files, ascending: [num_missing_ranks]. */
  size_t num_missing_ranks; /**< 0 unless allow_missing_ranks was set. */
  /** Counted iterations that each row of counts adds up; the last row may have fewer. */
  uint64_t iter_bucket;
  uint64_t iter_stride; /**< Distance of two counted iterations. */
  size_t num_rows; /**< Rows, each of the iterations from iter_start + row * iter_bucket * iter_stride on. */
} eplb_stats_info;
/** An eplb_stats_info with every default. */
#define EPLB_STATS_INFO_INIT \
  { sizeof(eplb_stats_info), 0, 0, 0, 0, 0, 0, NULL, 0, NULL, 0, 0, 0, 0 }

/** Loads the dump in a directory, meta_info.json and one rank<R>.safetensors a rank, summed over ranks.
 *
 * \param path     the directory
 * \param options  NULL for the defaults
 * \param stats    receives the handle
 * \return EPLB_STATUS_INVALID_DUMP; EPLB_STATUS_INCOMPLETE_DUMP; EPLB_STATUS_READ_FAILED;
 *         EPLB_STATUS_INVALID_ARGUMENT also for iterations that the dump lacks */
EPLB_API eplb_status eplb_stats_load(const char *path, const eplb_stats_options *options, eplb_stats **stats);

/** Creates statistics from arrays instead of a dump, as of an engine with counters of its own. Every call on
 * statistics takes them.
 *
 * \param config  copied with all that it points to
 * \param counts  host memory, summed over ranks: [num_iterations][num_layers][num_experts]. Copied. Counts of
 *                one rank alone describe that rank's tokens
 * \param stats   receives the handle
 * \return EPLB_STATUS_INVALID_ARGUMENT also for a negative count, or an expert's sum over the iterations of
 *         2^63 or more, with layer, iteration and expert; EPLB_STATUS_OUT_OF_MEMORY */
EPLB_API eplb_status eplb_stats_create(const eplb_stats_config *config, const void *counts,
    eplb_stats **stats);

/** Returns the sizes of the counts.
 *
 * \param stats  the counts
 * \param info   receives the sizes
 * \return a status */
EPLB_API eplb_status eplb_stats_get_info(const eplb_stats *stats, eplb_stats_info *info);

/** Copies the loads of one layer for eplb_solve(): the number of ids of each expert.
 *
 * \param stats        the counts
 * \param layer        the layer's number
 * \param num_samples  1: the sum of all iterations; num_rows: each row, mostly an iteration; a number
 *                     between: consecutive rows, split as evenly as possible and summed
 * \param num_experts  that of the dump, as a check
 * \param loads        receives [num_samples][num_experts]
 * \return EPLB_STATUS_INVALID_DUMP if a sum exceeds 2^53, where a double is no longer exact */
EPLB_API eplb_status eplb_stats_layer_loads(const eplb_stats *stats, int32_t layer, size_t num_samples,
    size_t num_experts, double *loads);

/** Destroys counts and the arrays that they returned.
 *
 * \param stats  may be NULL */
EPLB_API void eplb_stats_destroy(eplb_stats *stats);

/* --------------------------------------------------------------------------------------------------------
 * Solving: loads to placement
 * -------------------------------------------------------------------------------------------------------- */

/** A policy: how replicas and slots are assigned. */
typedef int32_t eplb_policy;
enum {
  /** The best policy, in this version EPLB_POLICY_SEARCH. Name a policy to keep results across versions. */
  EPLB_POLICY_DEFAULT = 0,
  /** TensorRT-LLM's greedy, bit for bit. Each spare slot goes to the expert with the largest load per
   * replica, ties to the higher expert. Each replica, heaviest first, goes to the least loaded rank with a
   * free slot, ties to the lower rank. Samples are summed. It may place an expert twice on a rank. */
  EPLB_POLICY_TRTLLM = 1,
  /** DeepSeek's eplb.py with one group and one node, in float32, with ties to the lower expert, replica and
   * rank. Samples are summed. It may place an expert twice on a rank. */
  EPLB_POLICY_DEEPSEEK_GLOBAL = 2,
  /** DeepSeek's eplb.py in two stages, for models with group-limited routing: whole groups are packed onto
   * nodes, then each node places its experts on its own ranks. Groups must split evenly over nodes, experts
   * over groups, ranks over nodes. */
  EPLB_POLICY_DEEPSEEK_HIERARCHICAL = 3,
  /** Searches replica counts and slots together, until the lower bound is nearly reached, nothing improves,
   * or the effort is spent. It minimises the mean over samples of the most loaded rank's load over the mean
   * load. Without other objectives, nodes, unequal ranks or pinned slots the result is never above
   * EPLB_POLICY_TRTLLM and EPLB_POLICY_DEEPSEEK_GLOBAL. */
  EPLB_POLICY_SEARCH = 4,
};

/** What EPLB_POLICY_SEARCH minimises, by how the engine splits an expert's tokens over its replicas. */
typedef int32_t eplb_objective;
enum {
  /** The most loaded rank under an even split, for EPLB_RULE_ROUND_ROBIN and EPLB_RULE_TOKEN_HASH. */
  EPLB_OBJECTIVE_EVEN_SPLIT = 0,
  /** The most loaded rank under the best split, for EPLB_RULE_LEAST_LOADED, with loads that drift from the
   * planned ones. The even split stays within 1 % of EPLB_OBJECTIVE_EVEN_SPLIT. Takes some hundred times as
   * long. Not with an off_node_price. */
  EPLB_OBJECTIVE_BEST_SPLIT = 1,
};

/** How to solve. Zero is the default of every field. Every field is checked, but only EPLB_POLICY_SEARCH
 * uses all; the other policies use policy, num_threads, num_groups and num_nodes. */
typedef struct eplb_solve_options {
  size_t struct_size; /**< Set by EPLB_SOLVE_OPTIONS_INIT. */
  eplb_policy policy; /**< The policy. */
  eplb_objective objective; /**< The objective. */
  /** Threads, which solve layers in parallel; 0: one a core, at most 8. Results do not depend on it. */
  uint32_t num_threads;
  uint32_t num_groups; /**< Groups of consecutive experts, of equal size; 0: 1. */
  uint32_t num_nodes; /**< Nodes of consecutive ranks, of equal size; 0: 1. */
  uint32_t reserved; /**< Must be 0. */
  /** The node of each rank, in place of num_nodes: [num_ranks], nodes of any size. Any int32 names a node;
   * of equal choices the node with the lower number comes first. May be NULL. */
  const int32_t *rank_to_node;
  /** Price of load off its group's home node: the objective adds this times the off-node share. 0: nodes do
   * not matter; infinity: every replica stays on its home node, as in eplb.py. */
  double off_node_price;
  /** The weight of each sample: [num_samples], finite, not negative, not all 0. NULL: equal. */
  const double *sample_weights;
  /** Minimise this quantile over samples instead of the mean: above 0, at most 1 (.5 median, 1 worst); 0:
   * the mean. */
  double quantile;
  /** For EPLB_OBJECTIVE_BEST_SPLIT: the standard deviation of the logarithm of an expert's load around the
   * planned one, at most 2; 0: 0.2; negative: none. */
  double drift;
  /** Moves to try for each slot, and as many again far above the lower bound; 0: 200. Not time, so that
   * results repeat. */
  size_t effort;
  /** The expert that each slot holds in the result, -1 in free slots: [num_pinned_layers][num_slots]. Only
   * for EPLB_POLICY_SEARCH, which then may end above the greedy policies. NULL: none. */
  const int32_t *pinned_experts;
  size_t num_pinned_layers; /**< Rows of pinned_experts: 1 for all layers, or num_layers. */
} eplb_solve_options;
/** An eplb_solve_options with every default. */
#define EPLB_SOLVE_OPTIONS_INIT \
  { sizeof(eplb_solve_options), 0, 0, 0, 0, 0, 0, NULL, 0, NULL, 0, 0, 0, NULL, 0 }

/** Solves: decides which expert each slot holds, so that the ranks carry equal load.
 *
 * \param config       the shape
 * \param options      NULL for the defaults
 * \param layer_ids    layer numbers, each once: [num_layers]
 * \param num_layers   at least 1
 * \param loads        [num_layers][num_samples][num_experts], finite and not negative, in any unit
 * \param num_samples  at least 1. A sample is one situation to balance: some iterations, or a workload
 * \param placement    receives the handle
 * \return EPLB_STATUS_INVALID_SHAPE with the nearest valid numbers of slots; EPLB_STATUS_INVALID_LOADS */
EPLB_API eplb_status eplb_solve(const eplb_placement_config *config, const eplb_solve_options *options,
    const int32_t *layer_ids, size_t num_layers, const double *loads, size_t num_samples,
    eplb_placement **placement);

/** Solves by DeepSeek's rules and returns the three arrays of eplb.py's rebalance_experts(weight,
 * num_replicas, num_groups, num_nodes, num_gpus), here loads, num_slots, num_groups, num_nodes and
 * num_ranks.
 *
 * \param config        the shape
 * \param options       a DeepSeek policy, or EPLB_POLICY_DEFAULT for eplb.py's choice: hierarchical if the
 *                      groups split evenly over the nodes, otherwise global. NULL for the defaults
 * \param loads         [num_layers][num_experts], finite and not negative, in any unit
 * \param num_layers    at least 1; errors name layers by index
 * \param max_replicas  length of a row of log2phy; num_slots - num_experts + 1 is enough
 * \param phy2log       receives the expert of each slot: [num_layers][num_slots]
 * \param log2phy       receives the slots of each expert, in order of replica, padded with -1:
 *                      [num_layers][num_experts][max_replicas]
 * \param logcnt        receives the replicas of each expert: [num_layers][num_experts]
 * \return as eplb_solve(); EPLB_STATUS_INVALID_ARGUMENT also if max_replicas is too small. Nothing is
 *         written then */
EPLB_API eplb_status eplb_deepseek_rebalance(const eplb_placement_config *config,
    const eplb_solve_options *options, const double *loads, size_t num_layers, size_t max_replicas,
    int32_t *phy2log, int32_t *log2phy, int32_t *logcnt);

/** Returns the valid numbers of slots nearest to a given one: multiples of num_ranks, at least num_experts.
 *
 * \param num_experts  experts of a layer
 * \param num_ranks    ranks of the expert-parallel group
 * \param num_slots    the given number, of all ranks together
 * \param below        receives the largest valid number not above num_slots; 0: none
 * \param above        receives the smallest valid number not below num_slots; 0: none up to the limit,
 *                     1,048,576
 * \return a status */
EPLB_API eplb_status eplb_suggest_num_slots(uint32_t num_experts, uint32_t num_ranks, uint32_t num_slots,
    uint32_t *below, uint32_t *above);

/* --------------------------------------------------------------------------------------------------------
 * Generating: a dump to a configuration file (step 2)
 *
 *   #include <eplb_tools.h>
 *   #include <stdio.h>
 *
 *   // Turns a dump into a configuration file for 2 ranks with 10 slots.
 *   int main(void) {
 *       eplb_generate_config config = EPLB_GENERATE_CONFIG_INIT;
 *       eplb_solve_options options = EPLB_SOLVE_OPTIONS_INIT;
 *       eplb_generate_report report = EPLB_GENERATE_REPORT_INIT;
 *       config.expert_statistic_path = "expert_statistic";
 *       config.output_path = "moe_load_balancer.yaml";
 *       config.num_ranks = 2;
 *       config.num_slots = 10;
 *       options.policy = EPLB_POLICY_SEARCH;
 *       if (eplb_generate(&config, NULL, &options, &report) != EPLB_STATUS_OK) {
 *           fprintf(stderr, "%s\n", eplb_last_error_message());
 *           return 1;
 *       }
 *       printf("imbalance ratio: %.3f, was %.3f\n", report.imbalance_after, report.imbalance_before);
 *       return 0;
 *   }
 * -------------------------------------------------------------------------------------------------------- */

/** The phases of eplb_generate(). */
typedef int32_t eplb_phase;
enum {
  EPLB_PHASE_READ = 0, /**< Reading the dump, in bytes. */
  EPLB_PHASE_SOLVE = 1, /**< Solving, in layers. */
  EPLB_PHASE_WRITE = 2, /**< Writing the configuration file, in files. */
};

/** Receives the progress of eplb_generate(), on the thread that called it. Must not throw.
 *
 * \param user_data  that of the config
 * \param phase      an eplb_phase
 * \param done       work done of the phase, in its unit
 * \param total      work of the phase
 * \return 0 to continue; nonzero cancels, and an existing configuration file is unchanged */
typedef int32_t (*eplb_progress_callback)(void *user_data, eplb_phase phase, uint64_t done, uint64_t total);

/** What to generate. Defaults are those of TensorRT-LLM's script. */
typedef struct eplb_generate_config {
  size_t struct_size; /**< Set by EPLB_GENERATE_CONFIG_INIT. */
  const char *expert_statistic_path; /**< Directory of the dump. Required, unless `paths` are given. */
  /** File to write, replaced atomically: TensorRT-LLM's, or eplb's own if named *.eplb.yaml. A pipe, a
   * device or /dev/fd/N is written and stays. Required. */
  const char *output_path;
  /** Ranks (the EP size); 0: as in the dump. Required with rank_to_node, and where pipeline stages differ. */
  uint32_t num_ranks;
  /** Slots of all ranks together: a multiple of num_ranks, at least the experts; 0: one an expert, or
   * num_ranks times the largest of rank_num_slots. Required with pinned_experts. */
  uint32_t num_slots;
  /** Samples for EPLB_POLICY_SEARCH: consecutive rows of a dump, split as evenly as possible; 0: 16, or one
   * a row if there are fewer. Each of several dumps has as many. Required with sample_weights. */
  size_t num_samples;
  eplb_progress_callback progress; /**< Receives the progress. May be NULL. */
  void *user_data; /**< Passed to `progress`. */
  /** Layers that an engine with an online balancer updates per iteration; only written to the file. */
  uint32_t layer_updates_per_iter;
  uint32_t reserved; /**< Must be 0. */
  /** Slots of each rank: [num_ranks], as in eplb_placement_config; the output is then a *.eplb.yaml, unless
   * no slot is empty. NULL: num_slots / num_ranks. */
  const int32_t *rank_num_slots;
  /** Directories of several dumps of one model, instead of expert_statistic_path: [num_paths]. */
  const char *const *paths;
  /** What the counts of each dump are multiplied by, above 0: [num_paths]. NULL: 1. */
  const double *path_weights;
  size_t num_paths; /**< Length of paths. */
} eplb_generate_config;
/** An eplb_generate_config with every default. */
#define EPLB_GENERATE_CONFIG_INIT \
  { sizeof(eplb_generate_config), NULL, NULL, 0, 0, 0, NULL, NULL, 0, 0, NULL, NULL, NULL, 0 }

/** What eplb_generate() wrote. */
typedef struct eplb_generate_report {
  size_t struct_size; /**< Set by EPLB_GENERATE_REPORT_INIT. */
  uint32_t num_ranks; /**< Ranks. */
  uint32_t num_slots; /**< Slots of all ranks together. */
  uint32_t num_experts; /**< Experts of a layer. */
  uint32_t num_layers; /**< Layers. */
  int64_t iter_start; /**< First iteration used, of the first dump. */
  int64_t iter_stop; /**< One past the last iteration used, of the first dump. */
  uint32_t num_missing_ranks; /**< Ranks whose file is missing from the dump. */
  uint32_t num_duplicates; /**< Slots that repeat an expert of their own rank. */
  /** Imbalance ratio (max - mean) / mean without a load balancer, averaged over iterations with
   * tokens, then over layers with tokens. NaN if there are none. */
  double imbalance_before;
  double imbalance_after; /**< The same with the placement, under an even split. */
  uint64_t hash; /**< eplb_placement_hash() of the placement. */
  /** As in eplb_placement_evaluation, averaged over layers. NaN if the policy ignores nodes. */
  double off_node_share;
} eplb_generate_report;
/** An eplb_generate_report with every default. */
#define EPLB_GENERATE_REPORT_INIT \
  { sizeof(eplb_generate_report), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/** Generates a configuration file from a dump: reads it, solves, and saves the placement.
 *
 * \param config         what to generate
 * \param stats_options  which iterations and ranks to read; NULL for all
 * \param solve_options  NULL for the defaults
 * \param report         receives the figures; may be NULL
 * \return EPLB_STATUS_OK if the file is complete and synced to disk. Otherwise an existing file is
 *         unchanged: the failures of eplb_stats_load() and eplb_solve(), EPLB_STATUS_WRITE_FAILED,
 *         EPLB_STATUS_CANCELLED */
EPLB_API eplb_status eplb_generate(const eplb_generate_config *config,
    const eplb_stats_options *stats_options, const eplb_solve_options *solve_options,
    eplb_generate_report *report);

/* --------------------------------------------------------------------------------------------------------
 * Evaluation: how evenly a placement loads the ranks
 * -------------------------------------------------------------------------------------------------------- */

/** How evenly a placement loads the ranks in one layer, in the unit of the loads. Figures are computed for
 * each sample and averaged: ratios over samples with load, else NaN; loads over all samples. */
typedef struct eplb_placement_evaluation {
  size_t struct_size; /**< Set by EPLB_PLACEMENT_EVALUATION_INIT. */
  double mean_load; /**< Mean load of a rank. */
  double max_load; /**< Load of the most loaded rank, an expert's load split evenly over its replicas. */
  double imbalance_ratio; /**< (max - mean) / mean: 0 is even. */
  double balancedness; /**< mean / max: 1 is even. */
  uint32_t worst_rank; /**< The rank with the largest load over all samples. */
  uint32_t max_replicas; /**< Most slots of any expert. */
  uint64_t num_duplicates; /**< Slots that repeat an expert of their own rank. */
  /** A bound on max_load over all placements of this shape: none is below it. Not every bound is reached. */
  double lower_bound;
  double gap; /**< (max - lower bound) / lower bound: 0 proves that no placement is better. */
  /** Load of the most loaded rank if each expert's load is split over its replicas in the best fractions.
   * EPLB_RULE_LEAST_LOADED comes close to it. */
  double best_split_max_load;
  double best_split_balancedness; /**< mean / max of the best split. */
  /** Share of the load on another node than its group's home node, the node with most of the group's load
   * over all samples (the lowest of equals). NaN unless the options name nodes. */
  double off_node_share;
  uint64_t num_idle_samples; /**< Samples without load, which ratios leave out. */
} eplb_placement_evaluation;
/** An eplb_placement_evaluation with every default. */
#define EPLB_PLACEMENT_EVALUATION_INIT \
  { sizeof(eplb_placement_evaluation), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/** Computes how evenly a placement loads the ranks in one layer, and how far that is from the best
 * possible.
 *
 * \param placement    the placement
 * \param layer        the layer's number
 * \param loads        [num_samples][num_experts], finite and not negative, in any unit
 * \param num_samples  at least 1
 * \param num_experts  that of the placement, as a check
 * \param options      num_groups and num_nodes or rank_to_node, for off_node_share; NULL: without it
 * \param evaluation   receives the figures
 * \return EPLB_STATUS_INVALID_LOADS; EPLB_STATUS_INVALID_SHAPE if experts do not split evenly into groups,
 *         or ranks into nodes */
EPLB_API eplb_status eplb_placement_evaluate(const eplb_placement *placement, int32_t layer,
    const double *loads, size_t num_samples, size_t num_experts, const eplb_solve_options *options,
    eplb_placement_evaluation *evaluation);

/** Computes the load of each rank under a routing rule from counts. It is exact for EPLB_RULE_LEAST_LOADED
 * with one batch a rank; for the other rules it is the long-run share of each replica.
 *
 * \param placement         the placement
 * \param config            num_ranks, rule and rank_to_node are used
 * \param layer             the layer's number
 * \param rank_counts       ids by rank and expert, below 2^31: int64 [num_ranks][num_experts]
 * \param with_rank_counts  nonzero: EPLB_RULE_LEAST_LOADED has the counts of all ranks
 * \param rank_loads        receives the ids that each rank gets: [num_ranks]
 * \return a status */
EPLB_API eplb_status eplb_placement_expected_load(const eplb_placement *placement,
    const eplb_dispatch_config *config, int32_t layer, const int64_t *rank_counts, int32_t with_rank_counts,
    double *rank_loads);

/** Computes the load of each rank from recorded ids, by routing one batch of each rank as its dispatch
 * would. Ids outside [0, num_experts) add no load.
 *
 * \param placement         the placement
 * \param config            as for eplb_dispatch_create(); rank, device, layer_ids and workspace are
 *                          ignored
 * \param layer             the layer's number
 * \param expert_ids        in host memory: the tokens of rank 0, [rank_tokens[0]][experts_per_token], then
 *                          those of rank 1, and so on, without gaps
 * \param rank_tokens       tokens of each rank, at most 2^31 - 1 ids: [num_ranks]
 * \param with_rank_counts  nonzero: EPLB_RULE_LEAST_LOADED has the counts of all ranks
 * \param rank_loads        receives the ids that each rank gets: [num_ranks]
 * \return a status */
EPLB_API eplb_status eplb_placement_routed_load(const eplb_placement *placement,
    const eplb_dispatch_config *config, int32_t layer, const eplb_expert_ids *expert_ids,
    const uint32_t *rank_tokens, int32_t with_rank_counts, double *rank_loads);

/* --------------------------------------------------------------------------------------------------------
 * Exchange: files of other systems
 * -------------------------------------------------------------------------------------------------------- */

/** File formats: of counts below 100, of placements from 100 on. docs/exchange.md describes each. */
typedef int32_t eplb_file_format;
enum {
  /** Detect the format from the contents. Not for bare arrays, and not for writing. */
  EPLB_FILE_FORMAT_DETECT = 0,
  EPLB_FILE_FORMAT_DUMP = 1, /**< A dump directory of eplb or TensorRT-LLM. */
  /** SGLang: JSON {"logical_count": [steps][layers][experts]}, or without steps. */
  EPLB_FILE_FORMAT_SGLANG_COUNT = 2,
  /** SGLang: a .pt file of its recorder, or a directory with one a rank for the modes per_pass and
   * per_token. Read only; its pickle is not executed. */
  EPLB_FILE_FORMAT_SGLANG_PT = 3,
  /** LMDeploy: JSON [layers][experts]. Written as the sum of all iterations. */
  EPLB_FILE_FORMAT_LMDEPLOY = 4,
  EPLB_FILE_FORMAT_NPY = 5, /**< NumPy: [layers][experts], with [iterations] before if several. */
  EPLB_FILE_FORMAT_CONFIG = 100, /**< The configuration file of eplb or TensorRT-LLM. */
  /** SGLang: {"physical_to_logical_map": [layers][slots]}, read as JSON or .pt, written as JSON. */
  EPLB_FILE_FORMAT_SGLANG_MAP = 101,
  EPLB_FILE_FORMAT_EXPERT_MAP = 102, /**< vllm-ascend and MindIE: the expert map. */
  EPLB_FILE_FORMAT_PHY2LOG_NPY = 103, /**< DeepSeek: phy2log as a NumPy array, [layers][slots]. */
  EPLB_FILE_FORMAT_PHY2LOG_JSON = 104, /**< DeepSeek: phy2log in JSON. */
};

/** The format of a file, and what the file does not say of its model. Zero is the default of every field. */
typedef struct eplb_file_options {
  size_t struct_size; /**< Set by EPLB_FILE_OPTIONS_INIT. */
  eplb_file_format format; /**< The format. */
  /** Layers of the model including dense ones, for SGLang's and LMDeploy's formats, which have a row for
   * each; 0: up to the last layer with experts. */
  uint32_t num_model_layers;
  /** Layers to read or write: [num_layers]; others are left out. They name the rows of a file with as many.
   * In a file with more rows, row i is layer i. NULL: all; row i is layer i, and all-zero rows of counts
   * are dense layers. */
  const int32_t *layer_ids;
  size_t num_layers; /**< Length of layer_ids. */
  uint32_t num_experts; /**< Experts of a layer; 0: as in the file. */
  /** Ranks of a placement; 0: as in the file, which only expert maps and some configuration files say. */
  uint32_t num_ranks;
  uint32_t num_slots; /**< Slots of all ranks together; 0: as in the file. */
  uint32_t experts_per_token; /**< Experts per token. Required to write a dump of counts without it. */
  uint32_t sum_iterations; /**< 1: write the counts summed over all iterations. */
  uint32_t allow_lossy; /**< 1: write an expert map that vllm-ascend serves wrongly; 0: refuse. */
} eplb_file_options;
/** An eplb_file_options with every default. */
#define EPLB_FILE_OPTIONS_INIT \
  { sizeof(eplb_file_options), 0, 0, NULL, 0, 0, 0, 0, 0, 0, 0 }

/** Loads counts from a file of another system, or from a dump. Steps become iterations from 0 on, of one
 * rank. Fractions, as of averages, are kept exactly, and a dump cannot hold them.
 *
 * \param path     the file, or the directory of a dump or of a recording with a file a rank
 * \param options  NULL to detect format and layers
 * \param stats    receives the handle
 * \return EPLB_STATUS_INVALID_DUMP; EPLB_STATUS_INCOMPLETE_DUMP; EPLB_STATUS_READ_FAILED;
 *         EPLB_STATUS_INVALID_ARGUMENT also for a format of placements, and for an array without format */
EPLB_API eplb_status eplb_stats_load_file(const char *path, const eplb_file_options *options,
    eplb_stats **stats);

/** Loads a placement from a file of another system, or from a configuration file.
 *
 * \param path       the file
 * \param options    NULL if the file has everything
 * \param placement  receives the handle
 * \return EPLB_STATUS_INVALID_PLACEMENT; EPLB_STATUS_INVALID_SHAPE; EPLB_STATUS_READ_FAILED;
 *         EPLB_STATUS_INVALID_DUMP for contents of no format; EPLB_STATUS_INVALID_ARGUMENT also for a format
 *         of counts, an array without format, and without num_ranks */
EPLB_API eplb_status eplb_placement_load_file(const char *path, const eplb_file_options *options,
    eplb_placement **placement);

/** Saves counts to a file of another system, or as a dump of one rank. An existing file is replaced
 * atomically; a pipe, a device or /dev/fd/N is written and stays.
 *
 * \param stats    the counts
 * \param path     the file; for a dump a directory without one
 * \param options  with a format of counts other than EPLB_FILE_FORMAT_SGLANG_PT
 * \return EPLB_STATUS_WRITE_FAILED; EPLB_STATUS_INVALID_DUMP for counts of slots, or a dump of fractions */
EPLB_API eplb_status eplb_stats_save_file(const eplb_stats *stats, const char *path,
    const eplb_file_options *options);

/** Saves a placement to a file of another system, or as a configuration file. An existing file is replaced
 * atomically; a pipe, a device or /dev/fd/N is written and stays.
 *
 * \param placement  the placement
 * \param path       the file
 * \param options    with a format of placements
 * \return EPLB_STATUS_WRITE_FAILED; EPLB_STATUS_INVALID_PLACEMENT for what the format cannot hold */
EPLB_API eplb_status eplb_placement_save_file(const eplb_placement *placement, const char *path,
    const eplb_file_options *options);

/* --------------------------------------------------------------------------------------------------------
 * Metrics, for Prometheus
 * -------------------------------------------------------------------------------------------------------- */

/** Metrics of the objects of a process, as one text that Prometheus scrapes; docs/metrics.md lists them.
 * Create a handle for each scrape. Each object is read when it is added, while other threads may count and
 * route, and is not needed afterwards. Labels tell objects apart. */
typedef struct eplb_metrics eplb_metrics;

/** A label of the engine. */
typedef struct eplb_metrics_label {
  /** Letters, digits and underscores, starting with a letter or one underscore. Not hash, layer, reason,
   * result, rule or state, which the metrics use. */
  const char *name;
  const char *value; /**< Not empty. It is escaped as the format requires. */
} eplb_metrics_label;

/** Creates an empty set of metrics.
 *
 * \param metrics  receives the handle
 * \return a status */
EPLB_API eplb_status eplb_metrics_create(eplb_metrics **metrics);

/** Sets whether objects that are added from here on have series by layer, as by default. Without them, each
 * such metric has one series: the sum over layers, or the largest value of replica counts and generations.
 *
 * \param metrics       the metrics
 * \param layer_series  0: without
 * \return a status */
EPLB_API eplb_status eplb_metrics_set_layer_series(eplb_metrics *metrics, uint32_t layer_series);

/** Adds the metrics of a recorder, as eplb_recorder_get_info() reads it.
 *
 * \param metrics     the metrics
 * \param recorder    the recorder
 * \param labels      copied: [num_labels]; may be NULL if num_labels is 0
 * \param num_labels  length of labels
 * \return EPLB_STATUS_INVALID_ARGUMENT also for a recorder with the labels of an earlier one */
EPLB_API eplb_status eplb_metrics_add_recorder(eplb_metrics *metrics, const eplb_recorder *recorder,
    const eplb_metrics_label *labels, size_t num_labels);

/** Adds the metrics of a placement.
 *
 * \param metrics     the metrics
 * \param placement   the placement
 * \param labels      copied: [num_labels]; may be NULL if num_labels is 0
 * \param num_labels  length of labels
 * \return EPLB_STATUS_INVALID_ARGUMENT also for a placement with the labels of an earlier one */
EPLB_API eplb_status eplb_metrics_add_placement(eplb_metrics *metrics, const eplb_placement *placement,
    const eplb_metrics_label *labels, size_t num_labels);

/** Adds the metrics of a dispatch.
 *
 * \param metrics     the metrics
 * \param dispatch    the dispatch
 * \param labels      copied: [num_labels]; may be NULL if num_labels is 0
 * \param num_labels  length of labels
 * \return EPLB_STATUS_INVALID_ARGUMENT also for a dispatch with the labels of an earlier one */
EPLB_API eplb_status eplb_metrics_add_dispatch(eplb_metrics *metrics, const eplb_dispatch *dispatch,
    const eplb_metrics_label *labels, size_t num_labels);

/** Returns the text, in Prometheus' text format 0.0.4; empty if nothing was added.
 *
 * \param metrics  the metrics
 * \param text     receives the text, which lives until the next call of this function or
 *                 eplb_metrics_destroy()
 * \param length   receives the length in bytes without the NUL; may be NULL
 * \return a status */
EPLB_API eplb_status eplb_metrics_text(eplb_metrics *metrics, const char **text, size_t *length);

/** Destroys metrics and their text.
 *
 * \param metrics  may be NULL */
EPLB_API void eplb_metrics_destroy(eplb_metrics *metrics);

#ifdef __cplusplus
} // extern "C"
#endif

#endif
