/** \file
 * eplb: live rebalancing. Counts without a disk, plans with few moves, and tables that change under a running
 * engine. The library calls no collective, waits for nothing and owns no weights.
 *
 * The conventions are those of eplb.h.
 */
#ifndef EPLB_LIVE_H
#define EPLB_LIVE_H

#include "eplb_tools.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --------------------------------------------------------------------------------------------------------
 * Counts: what was counted since the last snapshot
 * -------------------------------------------------------------------------------------------------------- */

/** Writes what a recorder with rolling_iterations counted since the last snapshot, and clears it, by one
 * kernel in stream order. The engine adds the counts of all ranks on the same stream.
 *
 * The iterations begun since go into the samples in even consecutive groups: of n iterations in m samples,
 * sample s has those from s * n / m to (s + 1) * n / m, rounded down. Of fewer iterations than samples, each
 * has a sample, and the last samples are zeros. Iterations beyond the ring are added into sample 0, and
 * iterations_merged of eplb_recorder_info counts them. Iterations that were paused throughout do not count.
 *
 * \param recorder     the recorder; not concurrent with other calls
 * \param counts       receives int64 [num_samples][num_layers][num_experts], layers as in layer_ids: memory
 *                     of the recorder's device, or page-locked host memory
 * \param num_samples  1 to 2^20
 * \param stream       ordered after all counting so far and before the counting to come, not being captured
 * \return EPLB_STATUS_INVALID_ARGUMENT also without rolling_iterations; EPLB_STATUS_CAPTURING;
 *         EPLB_STATUS_CUDA. All leave the counts as they are */
EPLB_API eplb_status eplb_recorder_snapshot(eplb_recorder *recorder, int64_t *counts, uint32_t num_samples,
    struct CUstream_st *stream);

/* --------------------------------------------------------------------------------------------------------
 * Plans: which experts move between which slots
 * -------------------------------------------------------------------------------------------------------- */

/** What a rank whose call failed contributes in place of both agreement words. */
#define EPLB_PLAN_DISAGREE 9223372036854775807

/** The moves from one placement to another, layer by layer. Immutable. */
typedef struct eplb_plan eplb_plan;

/** Where experts go that arrive before the table of their layer changes. */
typedef int32_t eplb_buffering;
enum {
  /** Into staging slots of the engine, copied to the slots with the commit, on the forward pass's stream. */
  EPLB_BUFFERING_STAGED = 0,
  /** Into the slots, each after its last read; a circle of slots takes one spare slot. The layer must not run
   * from its first transfer to its commit, and its transfers must not be abandoned. */
  EPLB_BUFFERING_IN_PLACE = 1,
  /** Into slots that a first commit has emptied, while the layer runs; a second commit uses them. Layers in
   * which an expert would have no replica meanwhile are staged. */
  EPLB_BUFFERING_DRAIN = 2,
};

/** Options of eplb_plan_create(). */
typedef struct eplb_plan_options {
  size_t struct_size; /**< Set by EPLB_PLAN_OPTIONS_INIT. */
  const int32_t *rank_to_node; /**< The node of each rank: [num_ranks]. NULL: all ranks are on one node. */
  /** 0 for a rank that cannot send and holds nothing in the new placement: [num_ranks]. NULL: none. */
  const uint8_t *active;
  uint32_t num_ranks; /**< Length of rank_to_node and active. */
  eplb_buffering buffering; /**< How slots are buffered. */
} eplb_plan_options;
/** An eplb_plan_options with every default. */
#define EPLB_PLAN_OPTIONS_INIT \
  { sizeof(eplb_plan_options), NULL, NULL, 0, 0 }

/** What a plan is for. */
typedef int32_t eplb_decision;
enum {
  EPLB_DECISION_KEEP = 0, /**< Nothing moves; eplb_plan_info has the reason. */
  EPLB_DECISION_MOVE = 1, /**< Layers change. */
};

/** Why a plan moves nothing. */
typedef int32_t eplb_keep_reason;
enum {
  EPLB_KEEP_REASON_NONE = 0, /**< It moves something. */
  EPLB_KEEP_REASON_SAME = 1, /**< Both placements are the same. */
  /** A plan of the rebalancer is in flight: commit its layers or abort it. */
  EPLB_KEEP_REASON_IN_FLIGHT = 2,
  EPLB_KEEP_REASON_NO_COUNTS = 3, /**< No window with counts was observed. */
  EPLB_KEEP_REASON_FEW_TOKENS = 4, /**< Fewer than min_tokens were observed. */
  EPLB_KEEP_REASON_COOLDOWN = 5, /**< The last plan ended less than cooldown windows ago. */
  EPLB_KEEP_REASON_BALANCED = 6, /**< The placement is as even as trigger and release require. */
  EPLB_KEEP_REASON_NOISE = 7, /**< What a plan would gain is no more than sampling noise. */
  EPLB_KEEP_REASON_SMALL_GAIN = 8, /**< What a plan would gain is below min_gain or min_relative_gain. */
  EPLB_KEEP_REASON_NO_MOVE = 9, /**< No move within the limits gains more than its price. */
};

/** A plan as a whole. Arrays live as long as the handle. */
typedef struct eplb_plan_info {
  size_t struct_size; /**< Set by EPLB_PLAN_INFO_INIT. */
  eplb_decision decision; /**< Whether layers change. */
  eplb_keep_reason reason; /**< Why not. */
  const char *message; /**< A sentence for logs. */
  /** A hash of the placement in force, the counts, the limits, the decision and the transfers, and its
   * complement. Reduce both over all ranks by maximum, as signed or unsigned words: all ranks have the same
   * plan if the first is the complement of the second. A KEEP has words too. */
  uint64_t agreement[2];
  /** The layers that change: [num_layers]. The first gain most a move, so a plan that ends early is the best
   * of its length. */
  const int32_t *layer_ids;
  size_t num_layers; /**< Length of layer_ids. */
  uint64_t num_moves; /**< Slots that receive an expert. */
  /** The most staging slots that a rank needs for one layer. Layers staged together need their sum. */
  uint32_t staging_slots;
  uint32_t num_rounds; /**< The most rounds of a layer. */
  /** Balancedness of the observed loads in the placement in force, over layers and samples; 0 for
   * eplb_plan_create(). */
  double balance_before;
  double balance_after; /**< In the planned placement. */
  double balance_bound; /**< No placement is more even. */
} eplb_plan_info;
/** An eplb_plan_info with every default. */
#define EPLB_PLAN_INFO_INIT \
  { sizeof(eplb_plan_info), 0, 0, NULL, { 0 }, NULL, 0, 0, 0, 0, 0, 0, 0 }

/** What a plan changes in a layer. */
typedef struct eplb_planned_layer {
  size_t struct_size; /**< Set by EPLB_PLANNED_LAYER_INIT. */
  uint64_t generation; /**< The generation that the plan was made against; 0 for eplb_plan_create(). */
  uint32_t num_moves; /**< Slots that receive an expert. */
  uint32_t num_rounds; /**< Rounds of transfers. */
  /** Staging slots that the busiest rank needs; in place: 1 if a rank needs its spare slot. */
  uint32_t staging_slots;
  uint32_t num_commits; /**< How often the layer is staged and committed: 2 if it drains first. */
  eplb_buffering buffering; /**< How slots are buffered. */
  uint32_t reserved; /**< 0. */
  double balance_before; /**< As in eplb_plan_info, of this layer. */
  double balance_after; /**< As in eplb_plan_info, of this layer. */
  double balance_bound; /**< As in eplb_plan_info, of this layer. */
} eplb_planned_layer;
/** An eplb_planned_layer with every default. */
#define EPLB_PLANNED_LAYER_INIT \
  { sizeof(eplb_planned_layer), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/** How a transfer reaches its slot. */
typedef int32_t eplb_transfer_kind;
enum {
  /** From another slot of the same rank, after the other transfers of its round. */
  EPLB_TRANSFER_KIND_LOCAL = 0,
  EPLB_TRANSFER_KIND_NODE = 1, /**< From another rank of the same node. */
  EPLB_TRANSFER_KIND_REMOTE = 2, /**< From a rank of another node. */
  EPLB_TRANSFER_KIND_HOST = 3, /**< No active rank holds the expert: the engine loads it as at its start. */
};

/** One expert goes from a slot to a slot: every tensor of it (weights, scales, biases, derived layouts).
 * Slots are counted over all ranks; num_slots + r is the spare slot of rank r. */
typedef struct eplb_transfer {
  int32_t layer; /**< The layer's number. */
  uint32_t round; /**< The round, from 0. */
  int32_t expert; /**< The expert. */
  int32_t src_rank; /**< The rank that sends; -1 for EPLB_TRANSFER_KIND_HOST. */
  int32_t src_slot; /**< The slot to read, or -1. If it receives this expert itself, read what arrived. */
  int32_t dst_rank; /**< The rank that receives. */
  int32_t dst_slot; /**< The slot that receives. */
  eplb_transfer_kind kind; /**< How it gets there. */
} eplb_transfer;

/** Plans the moves between two placements. Experts that stay on a rank keep their slots, so the planned slots
 * may be those of `to` in another order within a rank: see eplb_plan_layer_experts().
 *
 * \param from     the placement in force
 * \param to       the wanted one
 * \param options  NULL for the defaults
 * \param plan     receives the handle
 * \return EPLB_STATUS_INVALID_SHAPE for other experts, slots, ranks, slots of each rank or layers: another
 *         scale needs a new dispatch. EPLB_STATUS_INVALID_PLACEMENT if `to` uses an inactive rank */
EPLB_API eplb_status eplb_plan_create(const eplb_placement *from, const eplb_placement *to,
    const eplb_plan_options *options, eplb_plan **plan);

/** Returns the decision of a plan, its words and its sizes.
 *
 * \param plan  the plan
 * \param info  receives them
 * \return a status */
EPLB_API eplb_status eplb_plan_get_info(const eplb_plan *plan, eplb_plan_info *info);

/** Returns the word of a reason, such as "few_tokens", as metrics have it.
 *
 * \param reason  any number
 * \return a static string; "none" for EPLB_KEEP_REASON_NONE, "unknown" for a number without a name */
EPLB_API const char *eplb_keep_reason_string(eplb_keep_reason reason);

/** Returns what a plan changes in a layer.
 *
 * \param plan   the plan
 * \param layer  one of layer_ids of eplb_plan_info
 * \param info   receives it
 * \return a status */
EPLB_API eplb_status eplb_plan_layer_info(const eplb_plan *plan, int32_t layer, eplb_planned_layer *info);

/** Returns the expert of each slot of a layer after a commit of the plan.
 *
 * \param plan       the plan
 * \param layer      one of layer_ids of eplb_plan_info
 * \param commit     0 to num_commits - 1 of the layer; the last one has the planned slots
 * \param experts    receives [num_slots], which lives as long as the handle; -1 in empty slots
 * \param num_slots  receives the length; may be NULL
 * \return a status */
EPLB_API eplb_status eplb_plan_layer_experts(const eplb_plan *plan, int32_t layer, uint32_t commit,
    const int32_t **experts, size_t *num_slots);

/** Returns the transfers of a layer in which a rank takes part, in the same order on every rank: by round,
 * local ones last. So the sends and receives of two ranks pair up without tags. In a round a rank sends to
 * one rank at most and receives from one at most. There are as many rounds as the busiest rank has
 * transfers, in place as many as the order of reads and writes takes.
 *
 * \param plan           the plan
 * \param layer          one of layer_ids of eplb_plan_info
 * \param rank           0 to num_ranks - 1; -1: all transfers
 * \param transfers      receives the first `capacity`; may be NULL if capacity is 0
 * \param capacity       length of transfers
 * \param num_transfers  receives their number, which may exceed capacity
 * \return a status */
EPLB_API eplb_status eplb_plan_transfers(const eplb_plan *plan, int32_t layer, int32_t rank,
    eplb_transfer *transfers, size_t capacity, size_t *num_transfers);

/** Returns how many transfers of a layer read a slot. Where peers read it one-sided, its rank may
 * overwrite it after so many reads.
 *
 * \param plan         the plan
 * \param layer        one of layer_ids of eplb_plan_info
 * \param slot         a slot or spare slot
 * \param num_readers  receives the number
 * \return a status */
EPLB_API eplb_status eplb_plan_num_readers(const eplb_plan *plan, int32_t layer, uint32_t slot,
    uint32_t *num_readers);

/** Frees a plan. One in flight stays in flight: see eplb_rebalancer_abort().
 *
 * \param plan  may be NULL */
EPLB_API void eplb_plan_destroy(eplb_plan *plan);

/* --------------------------------------------------------------------------------------------------------
 * Rebalancer: observed loads to plans
 *
 *   #include <eplb_live.h>
 *   #include <stdio.h>
 *   #include <string.h>
 *
 *   // What the engine has: its collectives, and a way to move the weights of an expert. Here is one rank.
 *   static void sum_over_ranks(int64_t *counts, size_t size) { (void)counts, (void)size; }
 *   static void max_over_ranks(uint64_t *words, size_t size) { (void)words, (void)size; }
 *   static void move_weights(const eplb_transfer *t) {
 *       printf("expert %d from slot %d to slot %d\n", t->expert, t->src_slot, t->dst_slot);
 *   }
 *
 *   // Every 4 iterations: balances the 4 experts of layer 3, of which the router mostly chooses 0 and 1.
 *   int main(void) {
 *       const int32_t layer = 3, slot_experts[] = {0, 1, 2, 3}, chosen[] = {0, 1, 0, 1, 0, 1, 2, 3};
 *       const eplb_expert_ids ids = {chosen, EPLB_DTYPE_INT32, 0}; // [8][1]
 *       eplb_recorder *recorder = NULL;
 *       eplb_placement *placement = NULL;
 *       eplb_dispatch *dispatch = NULL;
 *       eplb_rebalancer *rebalancer = NULL;
 *       eplb_placement_config shape = EPLB_PLACEMENT_CONFIG_INIT;
 *       shape.num_experts = 4, shape.num_ranks = 2;
 *       eplb_recorder_config counting = EPLB_RECORDER_CONFIG_INIT;
 *       counting.num_ranks = 2, counting.num_experts = 4, counting.experts_per_token = 1;
 *       counting.layer_ids = &layer, counting.num_layers = 1, counting.rolling_iterations = 8;
 *       eplb_dispatch_config routing = EPLB_DISPATCH_CONFIG_INIT;
 *       routing.num_ranks = 2, routing.experts_per_token = 1, routing.live = 1;
 *       eplb_rebalancer_config planning = EPLB_REBALANCER_CONFIG_INIT;
 *       planning.experts_per_token = 1, planning.min_tokens = -1, planning.noise = -1; // so few tokens
 *       eplb_plan_limits limits = EPLB_PLAN_LIMITS_INIT;
 *       limits.max_layer_moves = 2;
 *       eplb_status s = eplb_placement_create(&shape, &layer, 1, slot_experts, &placement);
 *       if (s == EPLB_STATUS_OK) s = eplb_recorder_create(&counting, &recorder);
 *       if (s == EPLB_STATUS_OK) s = eplb_dispatch_create(placement, &routing, &dispatch);
 *       if (s == EPLB_STATUS_OK) s = eplb_rebalancer_create(&planning, placement, &rebalancer);
 *       for (int64_t iteration = 0; s == EPLB_STATUS_OK && iteration < 8; iteration++) {
 *           s = eplb_recorder_begin_iteration(recorder, iteration, NULL);
 *           if (s == EPLB_STATUS_OK) s = eplb_recorder_count_ids(recorder, layer, &ids, 8, NULL, NULL);
 *           if (s != EPLB_STATUS_OK || iteration % 4 != 3) continue;
 *
 *           int64_t counts[1][4]; // 1. Counts of all ranks, on every rank
 *           s = eplb_recorder_snapshot(recorder, counts[0], 1, NULL);
 *           sum_over_ranks(counts[0], 4);
 *           if (s == EPLB_STATUS_OK) s = eplb_rebalancer_observe(rebalancer, counts[0], 1, 32, 0);
 *           eplb_plan *plan = NULL; // 2. A plan, on every rank, and whether it is the same one
 *           eplb_plan_info info = EPLB_PLAN_INFO_INIT;
 *           if (s == EPLB_STATUS_OK) s = eplb_rebalancer_plan(rebalancer, &limits, &plan);
 *           if (s == EPLB_STATUS_OK) s = eplb_plan_get_info(plan, &info);
 *           uint64_t words[2] = {EPLB_PLAN_DISAGREE, EPLB_PLAN_DISAGREE};
 *           if (s == EPLB_STATUS_OK) memcpy(words, info.agreement, sizeof words);
 *           max_over_ranks(words, 2);
 *           const int agree = words[0] == ~words[1]; // otherwise: abort, and reset from rank 0's placement
 *           if (s == EPLB_STATUS_OK) printf("%s\n", info.message);
 *           for (size_t i = 0; s == EPLB_STATUS_OK && agree && i < info.num_layers; i++) {
 *               const int32_t changed = info.layer_ids[i]; // 3. Each layer at its own pace
 *               eplb_transfer transfers[4];
 *               size_t num_transfers = 0;
 *               s = eplb_plan_transfers(plan, changed, -1, transfers, 4, &num_transfers); // -1: of all
 *               for (size_t t = 0; s == EPLB_STATUS_OK && t < num_transfers; t++)
 *                   move_weights(&transfers[t]);
 *               // 4. When it has arrived everywhere, at the same step: staging to slots, then the table
 *               if (s == EPLB_STATUS_OK) s = eplb_dispatch_update_layer(dispatch, plan, changed, NULL);
 *               if (s == EPLB_STATUS_OK) s = eplb_rebalancer_commit_layer(rebalancer, plan, changed);
 *           }
 *           eplb_plan_destroy(plan);
 *       }
 *       if (s != EPLB_STATUS_OK)
 *           fprintf(stderr, "%s: %s\n", eplb_status_string(s), eplb_last_error_message());
 *       eplb_rebalancer_destroy(rebalancer);
 *       eplb_dispatch_destroy(dispatch);
 *       eplb_placement_destroy(placement);
 *       eplb_recorder_destroy(recorder);
 *       return s != EPLB_STATUS_OK;
 *   }
 * -------------------------------------------------------------------------------------------------------- */

/** The phase of windows that pass time and do not count: warm-up, dummy and capture steps. */
#define EPLB_PHASE_NOT_COUNTED (-1)

/** Observes counts and plans. Holds the placement in force. Host only. Ranks whose calls are equal have equal
 * plans, on any number of threads and any CPU. */
typedef struct eplb_rebalancer eplb_rebalancer;

/** How to observe and when to plan. Each gate's default can hold a plan back; a negative number turns it
 * off. */
typedef struct eplb_rebalancer_config {
  size_t struct_size; /**< Set by EPLB_REBALANCER_CONFIG_INIT. */
  uint32_t experts_per_token; /**< Experts that the router chooses for each token. Required. */
  uint32_t num_windows; /**< Windows that each phase keeps; 0: 8. They are not cleared by an update. */
  uint32_t half_life; /**< Observations after which a window counts half; 0: 6. */
  uint32_t num_phases; /**< Phases, such as prefill and decode, each with windows of its own; 0: 1. */
  uint32_t max_replicas; /**< Most replicas of an expert, as in eplb_dispatch_config; 0: no limit. */
  uint32_t num_threads; /**< Threads that plan layers; 0: one a core, at most 8. Plans do not depend on it. */
  eplb_objective objective; /**< EPLB_OBJECTIVE_EVEN_SPLIT. */
  uint32_t reserved; /**< 0. */
  const int32_t *rank_to_node; /**< The node of each rank: [num_ranks]. NULL: all ranks are on one node. */
  /** 1 for slots that keep their experts in every layer: [num_slots]. NULL: none. */
  const uint8_t *pinned_slots;
  /** Tokens that all windows must have together; 0: 100 * num_experts / experts_per_token. */
  int64_t min_tokens;
  int64_t cooldown; /**< Observations from the end of a plan to the next plan; 0: 1. */
  double trigger; /**< Plans start where the balancedness (mean / max) is below this; 0: .95. */
  /** Plans go on until the balancedness has reached this; 0: .98, or trigger if that is more. */
  double release;
  double min_gain; /**< What a layer must gain, in max / mean; 0: .005. */
  double min_relative_gain; /**< What a layer must gain, as a share of its max / mean - 1; 0: .05. */
  /** By how many standard deviations a layer's gain must exceed what sampling noise gains; 0: 3. */
  double noise;
} eplb_rebalancer_config;
/** An eplb_rebalancer_config with every default. */
#define EPLB_REBALANCER_CONFIG_INIT \
  { sizeof(eplb_rebalancer_config), 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, 0, 0, 0, 0, 0, 0, 0 }

/** What a plan may cost. A limit of 0 is none. No plan exceeds a limit. */
typedef struct eplb_plan_limits {
  size_t struct_size; /**< Set by EPLB_PLAN_LIMITS_INIT. */
  /** Slots of a layer that receive an expert. An exchange of two slots is two moves. */
  uint32_t max_layer_moves;
  uint32_t max_moves; /**< Slots of all layers that receive an expert. */
  uint32_t max_rank_moves; /**< Slots of a rank that receive an expert, over all layers. */
  uint32_t max_pair_moves; /**< Transfers from a rank to another one, over all layers. */
  /** Layers that change; 0: layer_updates_per_iter of the placement, where 0 is no limit. */
  uint32_t max_layers;
  eplb_buffering buffering; /**< How slots are buffered. */
  double node_price; /**< Load of the most loaded rank that a move within a node must save, in counts. */
  double remote_price; /**< As node_price, between nodes. */
  /** For how many samples as large as those observed the plan is made; prices are divided by it; 0: 1. */
  double horizon;
} eplb_plan_limits;
/** An eplb_plan_limits with every default. */
#define EPLB_PLAN_LIMITS_INIT \
  { sizeof(eplb_plan_limits), 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/** The state of a rebalancer. Arrays live as long as the handle, and change with its commits. */
typedef struct eplb_rebalancer_info {
  size_t struct_size; /**< Set by EPLB_REBALANCER_INFO_INIT. */
  const int32_t *layer_ids; /**< Layer numbers, ascending: [num_layers]. */
  /** The generation of each layer: 1, and one more with each commit: [num_layers]. */
  const uint64_t *generations;
  size_t num_layers; /**< Length of layer_ids and generations. */
  uint64_t num_observations; /**< Observations, those that do not count included. */
  uint64_t num_windows; /**< Windows with counts. */
  uint64_t num_tokens; /**< Tokens of these windows. */
  uint64_t num_layers_in_flight; /**< Layers that the plan in flight has yet to commit; 0 without a plan. */
  uint64_t num_active_ranks; /**< Ranks that are active. */
  /** Experts of all layers that no active rank holds. The next plan loads them. */
  uint64_t num_lost_experts;
  uint64_t num_plans; /**< Plans that change layers. */
  uint64_t num_kept[16]; /**< Plans that keep the placement, by eplb_keep_reason. */
  uint64_t num_commits; /**< Commits of layers. */
  uint64_t num_moves; /**< Slots that received an expert by them. */
  double balance; /**< Balancedness of the windows in the placement in force; 0 without counts. */
  double balance_promised; /**< What the last plan promised; 0 before the first. */
  /** Balancedness of the last window in the placement in force; 0 before the first. */
  double balance_measured;
} eplb_rebalancer_info;
/** An eplb_rebalancer_info with every default. */
#define EPLB_REBALANCER_INFO_INIT \
  { sizeof(eplb_rebalancer_info), NULL, NULL, 0, 0, 0, 0, 0, 0, 0, 0, { 0 }, 0, 0, 0, 0, 0 }

/** Creates a rebalancer for the placement in force. Slots that are empty in it stay empty.
 *
 * \param config      the configuration
 * \param placement   the placement; may be destroyed afterwards
 * \param rebalancer  receives the handle
 * \return EPLB_STATUS_INVALID_PLACEMENT if an expert has more than max_replicas;
 *         EPLB_STATUS_INVALID_ARGUMENT also for EPLB_OBJECTIVE_BEST_SPLIT */
EPLB_API eplb_status eplb_rebalancer_create(const eplb_rebalancer_config *config,
    const eplb_placement *placement, eplb_rebalancer **rebalancer);

/** Observes a window: what eplb_recorder_snapshot() counted, added up over all ranks. Call it on every rank
 * with the same counts, before eplb_rebalancer_plan(). A window without counts passes time.
 *
 * \param rebalancer   the rebalancer
 * \param counts       host memory, [num_samples][num_layers][num_experts]; not read if not counted
 * \param num_samples  1 to 2^20; each is balanced for itself
 * \param num_tokens   tokens of all ranks in the window
 * \param phase        0 to num_phases - 1, or EPLB_PHASE_NOT_COUNTED
 * \return EPLB_STATUS_INVALID_LOADS for a negative count, or a layer with more than 2^53: nothing changes */
EPLB_API eplb_status eplb_rebalancer_observe(eplb_rebalancer *rebalancer, const int64_t *counts,
    uint32_t num_samples, uint64_t num_tokens, int32_t phase);

/** Plans the moves that gain most, or keeps the placement and says why. The plan is in flight until each of
 * its layers is committed, or it is aborted; meanwhile other plans keep the placement.
 *
 * Then all ranks compare the agreement words of eplb_plan_info. If they differ, all abort, and call
 * eplb_rebalancer_reset() with rank 0's placement.
 *
 * \param rebalancer  the rebalancer; may be on a thread of its own, beside recorder and routing
 * \param limits      NULL: none
 * \param plan        receives the handle, also of a plan that keeps the placement
 * \return a status; a rank that fails contributes EPLB_PLAN_DISAGREE */
EPLB_API eplb_status eplb_rebalancer_plan(eplb_rebalancer *rebalancer, const eplb_plan_limits *limits,
    eplb_plan **plan);

/** Notes that the next commit of a layer is in force, after eplb_dispatch_commit_layer() of each dispatch;
 * twice for a layer with two commits. The last commit ends the plan.
 *
 * \param rebalancer  the rebalancer
 * \param plan        its plan in flight
 * \param layer       one of layer_ids of eplb_plan_info
 * \return EPLB_STATUS_STALE if the plan has ended or the layer has changed: nothing changes */
EPLB_API eplb_status eplb_rebalancer_commit_layer(eplb_rebalancer *rebalancer, const eplb_plan *plan,
    int32_t layer);

/** Ends a plan early, on all ranks after the same commits. Each layer is as it was or as planned, and the
 * next plan starts from that. A plan that has ended is ignored.
 *
 * \param rebalancer  the rebalancer
 * \param plan        a plan of it; NULL: that in flight, also if its handle is destroyed
 * \return a status */
EPLB_API eplb_status eplb_rebalancer_abort(eplb_rebalancer *rebalancer, const eplb_plan *plan);

/** Returns the placement in force: to save it, to evaluate it, and to load weights again.
 *
 * \param rebalancer  the rebalancer
 * \param placement   receives the handle
 * \return a status */
EPLB_API eplb_status eplb_rebalancer_placement(const eplb_rebalancer *rebalancer, eplb_placement **placement);

/** Sets which ranks are active, on every rank alike. If each expert has a replica on one, slots of other
 * ranks become empty, as by eplb_dispatch_set_active_ranks(). Otherwise slots stay, and the next plan loads
 * the lost experts, whatever the gates are. A rank that returns gets experts by plans. The plan in flight
 * ends.
 *
 * \param rebalancer  the rebalancer
 * \param active      [num_ranks], 0 for a dead rank
 * \param num_ranks   the ranks of the placement
 * \return EPLB_STATUS_NO_REPLICA if the active ranks have too few slots for all experts: nothing changes */
EPLB_API eplb_status eplb_rebalancer_set_active_ranks(eplb_rebalancer *rebalancer, const uint8_t *active,
    uint32_t num_ranks);

/** Returns the state of a rebalancer, for logs and metrics.
 *
 * \param rebalancer  the rebalancer
 * \param info        receives the state
 * \return a status */
EPLB_API eplb_status eplb_rebalancer_get_info(const eplb_rebalancer *rebalancer, eplb_rebalancer_info *info);

/** Starts again from a placement that all ranks share. Forgets all windows, and every rank is active. Plans
 * from before are stale. Slots that were not empty at creation may be filled. Bring dispatches to it by
 * eplb_plan_create() from what they serve.
 *
 * \param rebalancer  the rebalancer
 * \param placement   of the same experts, slots, ranks and layers
 * \return EPLB_STATUS_INVALID_SHAPE for others */
EPLB_API eplb_status eplb_rebalancer_reset(eplb_rebalancer *rebalancer, const eplb_placement *placement);

/** Frees a rebalancer. Its plans stay valid.
 *
 * \param rebalancer  may be NULL */
EPLB_API void eplb_rebalancer_destroy(eplb_rebalancer *rebalancer);

/* --------------------------------------------------------------------------------------------------------
 * Tables: change at the same addresses, in stream order
 * -------------------------------------------------------------------------------------------------------- */

/** Returns the page-locked host memory that a dispatch with `live` takes at creation. It is the library's own
 * also where the engine provides the workspace. eplb_dispatch_memory_required() returns the device memory,
 * the shadow included.
 *
 * \param placement   as for eplb_dispatch_create()
 * \param config      as for eplb_dispatch_create(); workspace is ignored
 * \param host_bytes  receives the bytes; 0 without `live` and on EPLB_DEVICE_HOST
 * \return a status */
EPLB_API eplb_status eplb_dispatch_host_memory_required(const eplb_placement *placement,
    const eplb_dispatch_config *config, size_t *host_bytes);

/** Computes the tables of a layer after a plan's next commit, and copies them to its shadow in stream order,
 * beside routing. eplb_dispatch_commit_layer() puts them in force.
 *
 * \param dispatch  a dispatch with `live` set. May run beside routing, and beside calls of other layers
 * \param plan      the plan. Not needed any more on return
 * \param layer     one of layer_ids of eplb_plan_info
 * \param stream    any stream; not being captured
 * \return EPLB_STATUS_STALE if the dispatch has other slots than the plan was made against;
 *         EPLB_STATUS_NO_REPLICA; EPLB_STATUS_NOT_READY if the device has not read what was staged before;
 *         EPLB_STATUS_CAPTURING; EPLB_STATUS_CUDA. All leave the tables as they are */
EPLB_API eplb_status eplb_dispatch_stage_layer(const eplb_dispatch *dispatch, const eplb_plan *plan,
    int32_t layer, struct CUstream_st *stream);

/** Stages and commits a layer in one call.
 *
 * \param dispatch  as for eplb_dispatch_stage_layer()
 * \param plan      as for eplb_dispatch_stage_layer()
 * \param layer     as for eplb_dispatch_stage_layer()
 * \param stream    as for eplb_dispatch_commit_layer()
 * \return as eplb_dispatch_stage_layer() */
EPLB_API eplb_status eplb_dispatch_update_layer(const eplb_dispatch *dispatch, const eplb_plan *plan,
    int32_t layer, struct CUstream_st *stream);

/** Puts the staged tables of a layer in force: one kernel in stream order, at the same addresses, without an
 * allocation, a wait or a copy call. CUDA graphs that were captured before route by the tables that are in
 * force when they are replayed. On EPLB_DEVICE_HOST it takes turns with routing of the layer.
 *
 * \param dispatch  the dispatch. May run beside routing, and beside calls of other layers
 * \param layer     the layer's number
 * \param stream    ordered after the stream of eplb_dispatch_stage_layer() and after the routing before, and
 *                  before the routing to come, by a stream or an event; not being captured
 * \return EPLB_STATUS_INVALID_ARGUMENT also if nothing is staged; EPLB_STATUS_STALE if the layer has changed
 *         since; EPLB_STATUS_CAPTURING; EPLB_STATUS_CUDA. All leave the tables as they are */
EPLB_API eplb_status eplb_dispatch_commit_layer(const eplb_dispatch *dispatch, int32_t layer,
    struct CUstream_st *stream);

/** Returns the generation of a layer: 1 after creation, and one more with each commit or update.
 *
 * \param dispatch    the dispatch
 * \param layer       the layer's number
 * \param generation  receives the generation
 * \return a status */
EPLB_API eplb_status eplb_dispatch_get_generation(const eplb_dispatch *dispatch, int32_t layer,
    uint64_t *generation);

/** Routes around dead ranks at once, in all layers: slots of ranks that are not active become empty, by one
 * kernel in stream order. Generations stay. Plans and staged tables that use these slots become stale. A rank
 * becomes active again by a committed plan that fills its slots; a mask that adds ranks is refused.
 *
 * \param dispatch   the dispatch; not concurrent with commits and updates
 * \param active     [num_ranks], 0 for a dead rank
 * \param num_ranks  the ranks of the dispatch
 * \param stream     as for eplb_dispatch_commit_layer()
 * \return EPLB_STATUS_NO_REPLICA if an expert would have no slot, or a shared one none of shared_slot_ids;
 *         EPLB_STATUS_NOT_READY as eplb_dispatch_stage_layer(); EPLB_STATUS_CAPTURING; EPLB_STATUS_CUDA. All
 *         leave all tables as they are */
EPLB_API eplb_status eplb_dispatch_set_active_ranks(const eplb_dispatch *dispatch, const uint8_t *active,
    uint32_t num_ranks, struct CUstream_st *stream);

/* --------------------------------------------------------------------------------------------------------
 * Metrics, for Prometheus
 * -------------------------------------------------------------------------------------------------------- */

/** Adds the metrics of a rebalancer: the balance in force, promised and measured, moves, generations,
 * windows, and decisions by reason.
 *
 * \param metrics     the metrics
 * \param rebalancer  the rebalancer; not concurrent with its other calls
 * \param labels      copied: [num_labels]; may be NULL if num_labels is 0
 * \param num_labels  length of labels
 * \return EPLB_STATUS_INVALID_ARGUMENT also for a rebalancer with the labels of an earlier one */
EPLB_API eplb_status eplb_metrics_add_rebalancer(eplb_metrics *metrics, const eplb_rebalancer *rebalancer,
    const eplb_metrics_label *labels, size_t num_labels);

#ifdef __cplusplus
} // extern "C"
#endif

#endif
