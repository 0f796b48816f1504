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
 * \param num_samples  at least 1
 * \param stream       ordered after all counting so far and before the counting to come, not being captured
 * \return EPLB_STATUS_INVALID_ARGUMENT also without rolling_iterations; EPLB_STATUS_CAPTURING, and nothing
 *         changes; EPLB_STATUS_CUDA: eplb_recorder_reset() restarts */
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
  /** The slot to read, or -1. If it receives this expert itself, read what arrived. */
  int32_t src_slot;
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

/** Frees a plan. A rebalancer forgets one that is in flight by eplb_rebalancer_abort() alone.
 *
 * \param plan  may be NULL */
EPLB_API void eplb_plan_destroy(eplb_plan *plan);

/* --------------------------------------------------------------------------------------------------------
 * Tables: change at the same addresses, in stream order
 * -------------------------------------------------------------------------------------------------------- */

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
 * kernel a layer in stream order. Generations stay. Plans and staged tables that use these slots become
 * stale. A rank becomes active again by a committed plan that fills its slots; a mask that adds ranks is
 * refused.
 *
 * \param dispatch   the dispatch; not concurrent with commits and updates
 * \param active     [num_ranks], 0 for a dead rank
 * \param num_ranks  the ranks of the dispatch
 * \param stream     as for eplb_dispatch_commit_layer()
 * \return EPLB_STATUS_NO_REPLICA if an expert would have no slot, EPLB_STATUS_INVALID_ARGUMENT,
 *         EPLB_STATUS_NOT_READY as eplb_dispatch_stage_layer(), EPLB_STATUS_CAPTURING: nothing changes.
 *         EPLB_STATUS_CUDA: some layers may have changed; call it again */
EPLB_API eplb_status eplb_dispatch_set_active_ranks(const eplb_dispatch *dispatch, const uint8_t *active,
    uint32_t num_ranks, struct CUstream_st *stream);

#ifdef __cplusplus
} // extern "C"
#endif

#endif
