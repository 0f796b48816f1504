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
 * Tables: change at the same addresses, in stream order
 * -------------------------------------------------------------------------------------------------------- */

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
