/** \file
 * eplb: expert parallelism load balancing (EPLB) for mixture-of-experts inference engines.
 *
 * This header is what an engine calls, in the order of its life. It counts the experts that the router
 * chooses (step 1, collect) and routes expert ids to slots (step 3, run). eplb_tools.h turns counts into a
 * placement (step 2, generate). docs/glossary.md defines the terms, docs/routing.md the routing rules.
 *
 * A layer has E experts. A token chooses K of them (experts_per_token): K ids. R ranks of the expert-parallel
 * group own S slots together; rank r owns slots r * S/R to (r + 1) * S/R - 1. A slot holds the weights of one
 * expert, so an expert may have several slots: its replicas. A placement is the expert of each slot of each
 * layer.
 *
 * Conventions, stated here and not repeated:
 *
 * Status   Every call that can fail returns an eplb_status: EPLB_STATUS_OK, EPLB_STATUS_INVALID_ARGUMENT,
 *          EPLB_STATUS_OUT_OF_MEMORY, EPLB_STATUS_INTERNAL, or one that its \return lists. On failure,
 *          eplb_last_error_message() says what, where, and what to do, and no result is written.
 * Handles  eplb_<object> is opaque. It is created by _create, _load or eplb_solve() and destroyed once by its
 *          _destroy, which takes NULL. What a call returns by pointer lives as long as the handle.
 * Threads  Calls that take a handle as const may run concurrently with each other, and with one call that
 *          takes it without const, except _destroy and those marked "not concurrent with other calls". Two
 *          calls that take a handle without const must not run at once. Calls without a handle may run on
 *          any thread.
 * Streams  The last argument orders work on a CUDA device. NULL is the legacy default stream; pass
 *          cudaStreamPerThread for the per-thread one. The thread's current context is unchanged on return. A
 *          call marked Hot allocates nothing, waits for nothing, reads nothing back, and may be captured in a
 *          CUDA graph. On EPLB_DEVICE_HOST calls work on host memory, are done on return, and ignore the
 *          stream.
 * Memory   Arguments belong to the caller, and are not used after the call returns unless documented.
 *          "Device" means that of the handle, the host included. NULL for a required pointer, numbers out of
 *          range, unknown layers and unknown constants are errors, never crashes.
 * Structs  Initialise a struct that begins with struct_size by its _INIT: programs and libraries of different
 *          minor versions then work together. Fields are only appended, and zero means the default.
 * Arrays   Shapes are in brackets, row by row. Layers have the model's own numbers. Ranks are those of the
 *          expert-parallel group. Strings are UTF-8. A range of iterations includes its start and excludes
 *          its stop.
 * Process  There is no global state except the log callback, the names of recorders' files and each thread's
 *          error message. No panic or exception leaves the library, and no call ends the process; a failed
 *          allocation of a few bytes may abort, as in Rust.
 */
#ifndef EPLB_H
#define EPLB_H

#include <stddef.h>
#include <stdint.h>

/** CUDA's stream: cudaStream_t and CUstream are pointers to it. CUDA's headers may be included too. */
struct CUstream_st;

/** Marks the functions of the library. */
#ifndef EPLB_API
#if defined(__GNUC__)
#define EPLB_API __attribute__((visibility("default")))
#else
#define EPLB_API
#endif
#endif

/** The version of the library that this header belongs to: MAJOR.MINOR.PATCH. */
#define EPLB_VERSION_MAJOR 0
/** See EPLB_VERSION_MAJOR. */
#define EPLB_VERSION_MINOR 1
/** See EPLB_VERSION_MAJOR. */
#define EPLB_VERSION_PATCH 0

#ifdef __cplusplus
extern "C" {
#endif

/* --------------------------------------------------------------------------------------------------------
 * Library: statuses, versions, messages, log
 * -------------------------------------------------------------------------------------------------------- */

/** The version of the binary interface. It rises when programs compiled with an older header stop working. */
#define EPLB_ABI_VERSION 2

/** How a call ended. A number never changes its meaning; later versions may add numbers. */
typedef int32_t eplb_status;
enum {
  EPLB_STATUS_OK = 0, /**< Success. */
  /** An argument is NULL, out of range or an unknown layer, or a struct was not initialised by its _INIT. */
  EPLB_STATUS_INVALID_ARGUMENT = 1,
  EPLB_STATUS_CANCELLED = 2, /**< The progress callback cancelled the call. */
  EPLB_STATUS_OUT_OF_MEMORY = 3, /**< An allocation failed. */
  EPLB_STATUS_SYSTEM = 4, /**< The operating system refused something other than a file, such as a thread. */
  /** A defect of eplb. The process and other calls are unharmed; please report it. */
  EPLB_STATUS_INTERNAL = 5,
  EPLB_STATUS_NOT_READY = 6, /**< Work that was started earlier has not finished. */
  EPLB_STATUS_READ_FAILED = 10, /**< A file could not be read. */
  EPLB_STATUS_WRITE_FAILED = 11, /**< A file could not be written. A file that existed before is unchanged. */
  EPLB_STATUS_INVALID_DUMP = 20, /**< A dump is damaged or contradicts itself. */
  EPLB_STATUS_INCOMPLETE_DUMP = 21, /**< A dump lacks ranks, iterations or layers. */
  /** The numbers of experts, slots and ranks, or of groups and nodes, do not fit together. */
  EPLB_STATUS_INVALID_SHAPE = 30,
  EPLB_STATUS_INVALID_LOADS = 31, /**< A load is negative or not finite. */
  EPLB_STATUS_INVALID_PLACEMENT = 40, /**< A placement or its configuration file cannot be served. */
  EPLB_STATUS_NO_DRIVER = 50, /**< There is no CUDA driver, it is too old, or it has no device. */
  EPLB_STATUS_CUDA = 51, /**< A call of the CUDA driver failed; the message has its code and name. */
  /** A CUDA graph is capturing the stream, and this call must not be captured. */
  EPLB_STATUS_CAPTURING = 52,
  /** A plan was made against another generation of the layer, or other slots: plan again. */
  EPLB_STATUS_STALE = 60,
  EPLB_STATUS_NO_REPLICA = 61, /**< Experts would lose their last replica; the message names them. */
};

/** The severity of a log message. */
typedef int32_t eplb_log_level;
enum {
  EPLB_LOG_LEVEL_WARNING = 1, /**< An operator should know of it, such as missing ranks or lost counts. */
  EPLB_LOG_LEVEL_INFO = 2, /**< A file was written, or another step finished. */
};

/** Receives log messages. It may run on several threads at once. It must not throw and must not call eplb:
 * the call that logs may hold a lock.
 *
 * \param user_data  that of eplb_set_log_callback()
 * \param level      an eplb_log_level
 * \param message    valid until the callback returns */
typedef void (*eplb_log_callback)(void *user_data, eplb_log_level level, const char *message);

/** Returns the name of a status, such as "EPLB_STATUS_INVALID_DUMP".
 *
 * \param status  any number
 * \return a static string; "unknown status" for a number that is no eplb_status */
EPLB_API const char *eplb_status_string(eplb_status status);

/** Returns the EPLB_ABI_VERSION of the loaded library. If it differs from the header's, call nothing else.
 *
 * \return a number to compare with EPLB_ABI_VERSION */
EPLB_API uint32_t eplb_abi_version(void);

/** Returns the version of the loaded library, such as "0.1.0".
 *
 * \return a static string */
EPLB_API const char *eplb_version_string(void);

/** Returns the message of this thread's last failed call: what failed, where (file, rank, iteration, layer,
 * slot), and what to do. Empty before the first failure; a successful call does not change it. Call it in
 * a statement of its own: C does not order the arguments of a call.
 *
 * \return a string that lives until this thread's next failed call; never NULL */
EPLB_API const char *eplb_last_error_message(void);

/** Sets the log callback of the process. Without one, messages are dropped. A thread that is already in the
 * old callback may finish there after this call has returned.
 *
 * \param callback   runs on threads that call eplb and on recorders' own threads; NULL for none
 * \param user_data  passed to `callback`; must live until the callback is replaced
 * \return EPLB_STATUS_OK */
EPLB_API eplb_status eplb_set_log_callback(eplb_log_callback callback, void *user_data);

/* --------------------------------------------------------------------------------------------------------
 * Devices, streams and ids
 * -------------------------------------------------------------------------------------------------------- */

/** Device: host memory. Calls take host pointers, ignore the stream, and are done when they return. No CUDA
 * driver is needed. The default of every config. */
#define EPLB_DEVICE_HOST (-1)

/** Device: the CUDA context that is current on the thread that creates the handle. It must outlive the
 * handle. Not a green context, which only one thread may use at a time. */
#define EPLB_DEVICE_CURRENT (-2)

/** The integer type of an array. */
typedef int32_t eplb_dtype;
enum {
  EPLB_DTYPE_INT32 = 0, /**< int32_t */
  EPLB_DTYPE_INT64 = 1, /**< int64_t */
};

/** Expert ids, as the router chose them: [num_tokens][experts_per_token] on the handle's device. Ids from
 * num_experts on are those of shared experts, if there are any. -1 is padding. Other ids outside of
 * [0, num_experts) are out of range. Neither is counted, and both are routed to invalid_slot. The ids must
 * not change until the call has returned, on a device until its kernel has run: slots would be wrong. This
 * struct and eplb_slot_ids have no struct_size: they never grow. */
typedef struct eplb_expert_ids {
  const void *data; /**< Aligned to its type. May be NULL if there are no tokens. */
  eplb_dtype dtype; /**< The type of an id. */
  /** Ids from one row to the next, at least experts_per_token; 0: experts_per_token. Ids of a row after
   * the first experts_per_token are neither read nor written. */
  uint32_t row_stride;
} eplb_expert_ids;

/** Slot ids, to be written: [num_tokens][experts_per_token] on the handle's device. A slot id counts over
 * all ranks. */
typedef struct eplb_slot_ids {
  /** Aligned to its type. May be the expert ids' data with the same dtype and stride, but must not overlap
   * it otherwise. */
  void *data;
  eplb_dtype dtype; /**< The type of an id, that of the expert ids or another. */
  uint32_t row_stride; /**< As in eplb_expert_ids. */
} eplb_slot_ids;

/** Returns whether handles can be created on a CUDA device: a driver, 525 or newer, with a device.
 *
 * \return 1 if so; otherwise 0, and eplb_last_error_message() has the reason */
EPLB_API int32_t eplb_cuda_available(void);

/* --------------------------------------------------------------------------------------------------------
 * Recorder: counts routed experts (step 1, collect)
 *
 *   #include <eplb.h>
 *   #include <stdio.h>
 *
 *   // Counts the experts that two layers' routers choose in iterations 0 and 1, and dumps the counts.
 *   int main(void) {
 *       const int32_t layer_ids[] = {3, 4};
 *       const int32_t chosen[3][2] = {{0, 5}, {5, 2}, {5, 7}}; // [num_tokens][experts_per_token]
 *       const eplb_expert_ids expert_ids = {chosen, EPLB_DTYPE_INT32, 0};
 *       eplb_recorder *recorder = NULL;
 *       eplb_recorder_config config = EPLB_RECORDER_CONFIG_INIT; // config.device: EPLB_DEVICE_HOST
 *       config.num_ranks = 1;
 *       config.num_experts = 8;
 *       config.experts_per_token = 2;
 *       config.layer_ids = layer_ids;
 *       config.num_layers = 2;
 *       config.path = "expert_statistic";
 *       config.iter_stop = 2; // or from the environment: eplb_recorder_config_from_env(&config)
 *       eplb_status status = eplb_recorder_create(&config, &recorder);
 *       for (int64_t iteration = 0; status == EPLB_STATUS_OK && iteration <= 2; iteration++) {
 *           status = eplb_recorder_begin_iteration(recorder, iteration, NULL); // 2 starts the dump
 *           for (int i = 0; status == EPLB_STATUS_OK && i < 2; i++)            // after each layer's router
 *               status = eplb_recorder_count_ids(recorder, layer_ids[i], &expert_ids, 3, NULL, NULL);
 *       }
 *       if (status == EPLB_STATUS_OK)
 *           status = eplb_recorder_flush(recorder, -1); // waits until the dump is on disk
 *       if (status != EPLB_STATUS_OK)
 *           fprintf(stderr, "%s: %s\n", eplb_status_string(status), eplb_last_error_message());
 *       eplb_recorder_destroy(recorder);
 *       return status != EPLB_STATUS_OK;
 *   }
 * -------------------------------------------------------------------------------------------------------- */

/** Flag of added_counts: counters that only grow, from 0. One below its last value was restarted. int32 is
 * read as unsigned. */
#define EPLB_ADDED_COUNTS_CUMULATIVE 1

/** Flag of added_counts: tokens that slots of this rank received, as DeepEP counts. Right in sums over
 * ranks only. */
#define EPLB_ADDED_COUNTS_BY_LOCAL_SLOT 2

/** Counts which experts the router chose, in stream order, and dumps the counts. One kernel serves every
 * iteration, counting or not: which row of the counts is written is read on the device, so that a captured
 * CUDA graph stays valid. */
typedef struct eplb_recorder eplb_recorder;

/** What ids name. */
typedef int32_t eplb_id_kind;
enum {
  EPLB_ID_KIND_EXPERT = 0, /**< Experts, as the router chose them. */
  EPLB_ID_KIND_SLOT = 1, /**< Slots: a placement was in force. */
};

/** What to count, and where. */
typedef struct eplb_recorder_config {
  size_t struct_size; /**< Set by EPLB_RECORDER_CONFIG_INIT. */
  uint32_t rank; /**< This rank of the expert-parallel group. */
  uint32_t num_ranks; /**< Ranks of the group. */
  uint32_t num_experts; /**< Experts of a layer; for EPLB_ID_KIND_SLOT, slots of all ranks. */
  uint32_t experts_per_token; /**< Ids per token (the router's top-k), those of shared experts included. */
  const int32_t *layer_ids; /**< Layers that this rank counts, by the model's numbers: [num_layers]. */
  size_t num_layers; /**< Length of layer_ids. 0: none, as in a pipeline stage without experts. */
  /** Directory of the dump, shared by all ranks; created if missing. NULL: ./expert_statistic. Each rank
   * writes rank<R>.safetensors, rank 0 also meta_info.json, in TensorRT-LLM's format. The first counted
   * iteration renames those of the last run to NAME.previous: a rank that dies then lends no old counts. */
  const char *path;
  int64_t iter_start; /**< First iteration to count. */
  int64_t iter_stop; /**< One past the last iteration to count; 0: the recorder is off. */
  int32_t device; /**< EPLB_DEVICE_HOST, EPLB_DEVICE_CURRENT, or the ordinal of a CUDA device. */
  eplb_id_kind id_kind; /**< What the ids name. */
  /** Most tokens of a layer in an iteration. It selects the width of counts, and is no limit: 64 bits if
   * this times experts_per_token times iter_bucket exceeds 2^32 - 1, otherwise 32, also for 0. An overflow
   * is detected, and the dump refused. */
  uint64_t max_tokens_per_iteration;
  /** Identifies the run, equal on all ranks; a reader refuses a mix of runs. NULL: EXPERT_STATISTIC_RUN_ID,
   * or else the numbers of SLURM or PMIx; a mix of those is a warning. */
  const char *run_id;
  /** Device memory to use instead of the library's own: 16-byte aligned, at least
   * eplb_recorder_memory_required() bytes, valid until the recorder is destroyed. Creation clears it
   * outside of any stream. May be NULL. */
  void *workspace;
  size_t workspace_bytes; /**< Bytes of `workspace`. */
  /** Names the model, or the shape of some of its layers: one recorder each. The dump goes to path/name. One
   * directory's name, but no range such as 100-200. NULL: none. */
  const char *name;
  /** With num_files, R of the file's name in place of rank: ranks of pipeline stages, which all start at 0,
   * pass their rank of the world. The one with 0 writes the meta file. */
  uint32_t file_rank;
  uint32_t num_files; /**< Files of the dump; 0: num_ranks. */
  /** Iterations that a row of counts adds up, for long ranges: less memory, smaller files. The last row may
   * have fewer. TensorRT-LLM's reader refuses such a dump. 0: 1. */
  uint32_t iter_bucket;
  /** Counts every iter_stride-th iteration of the range, from iter_start on, and no other. TensorRT-LLM's
   * reader refuses such a dump. 0: 1. */
  uint32_t iter_stride;
  /** Fused shared experts: the ids from num_experts on, which are not counted. The dump has
   * experts_per_token without them. Slots of shared experts are told apart by
   * eplb_dispatch_route_and_count() only. */
  uint32_t num_shared_experts;
  uint32_t added_counts; /**< Flags EPLB_ADDED_COUNTS_..., for eplb_recorder_add_counts(). */
  /** Iterations, of any number, that are kept apart for eplb_recorder_snapshot() of eplb_live.h: with a range
   * or, iter_stop being 0, without. EPLB_ID_KIND_EXPERT only. 0: no snapshots. */
  uint64_t rolling_iterations;
} eplb_recorder_config;
/** An eplb_recorder_config with every default. */
#define EPLB_RECORDER_CONFIG_INIT \
  { sizeof(eplb_recorder_config), 0, 0, 0, 0, NULL, 0, NULL, 0, 0, EPLB_DEVICE_HOST, 0, 0, NULL, NULL, \
    0, NULL, 0, 0, 0, 0, 0, 0, 0 }

/** The state of a recorder. */
typedef int32_t eplb_recorder_state;
enum {
  /** There are no iterations to count. Calls check their structs, but not layers, and do nothing. */
  EPLB_RECORDER_STATE_OFF = 0,
  EPLB_RECORDER_STATE_WAITING = 1, /**< No iteration of the range has begun. */
  EPLB_RECORDER_STATE_COUNTING = 2, /**< An iteration of the range has begun. */
  EPLB_RECORDER_STATE_DUMPING = 3, /**< The dump is being written. */
  EPLB_RECORDER_STATE_DUMPED = 4, /**< The dump is complete and synced to disk. */
  /** The dump failed, and the counts are kept: eplb_recorder_flush() retries the write. If the copy from the
   * device failed to start, eplb_recorder_dump() and the next eplb_recorder_begin_iteration() retry it. */
  EPLB_RECORDER_STATE_FAILED = 5,
  /** A driver call failed while counting: the counts are wrong and are never dumped. eplb_recorder_reset()
   * restarts. */
  EPLB_RECORDER_STATE_LOST = 6,
  /** The range passed before an iteration to count began. Counting succeeds and counts nothing. */
  EPLB_RECORDER_STATE_MISSED = 7,
};

/** The progress of a recorder. */
typedef struct eplb_recorder_info {
  size_t struct_size; /**< Set by EPLB_RECORDER_INFO_INIT. */
  eplb_recorder_state state; /**< The state. */
  /** In states FAILED and LOST the cause. EPLB_STATUS_CUDA in others if the device could not be read: the
   * sums below are then those of an earlier call. Otherwise EPLB_STATUS_OK. */
  eplb_status error_status;
  int64_t iteration; /**< The iteration begun last; -1: none, or off. */
  int64_t iter_start; /**< Start of the range, of the config or of eplb_recorder_rearm(); 0 if off. */
  int64_t iter_stop; /**< Stop of the range; 0 if off. */
  int64_t counted_start; /**< First iteration counted; iter_start if none was. */
  int64_t counted_stop; /**< One past the last iteration counted; counted_start if none was. */
  uint64_t ids_counted; /**< Ids counted, over all layers. */
  /** Ids of valid tokens that are out of range, not counted: see eplb_expert_ids. */
  uint64_t ids_out_of_range;
  uint64_t ids_padding; /**< Ids of tokens at or after num_valid, not read, and ids of -1. */
  size_t workspace_bytes; /**< Device memory held. */
  size_t host_bytes; /**< Host memory held for the copy from the device. */
  char error_message[512]; /**< The message of error_status, truncated to fit. */
  /** Iterations to count from counted_start to counted_stop that never began: zeros in the dump. */
  uint64_t iterations_skipped;
  uint64_t dumps_written; /**< Dumps written since creation; eplb_recorder_reset() does not clear it. */
  uint64_t dumps_failed; /**< Failed attempts to dump since creation. */
  uint32_t num_layers; /**< Layers of the config; 0 if off. */
  uint32_t num_registered_layers; /**< Layers with a buffer from eplb_recorder_register_buffer(). */
  uint32_t paused; /**< 1 while paused by eplb_recorder_set_paused(), otherwise 0. */
  /** Rows of counts in memory, the most that a range of eplb_recorder_rearm() may have; 0 if off. */
  uint32_t max_rows;
  /** Iterations beyond rolling_iterations of a snapshot, added into its first sample, since creation. */
  uint64_t iterations_merged;
} eplb_recorder_info;
/** An eplb_recorder_info with every default. */
#define EPLB_RECORDER_INFO_INIT \
  { sizeof(eplb_recorder_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, { 0 }, 0, 0, 0, 0, 0, 0, 0, 0 }

/** Sets iterations and path from the environment, as TensorRT-LLM does. EXPERT_STATISTIC_ITER_RANGE=100-200
 * counts iterations 100 to 199; if unset, iter_start and iter_stop become 0, whatever they were: the
 * recorder is off. EXPERT_STATISTIC_PATH is the path; if unset or empty, the path is unchanged. Several
 * recorders share them if each has a name.
 *
 * \param config  receives the fields. Its path then points into the environment, which must not change
 *                before eplb_recorder_create()
 * \return EPLB_STATUS_INVALID_ARGUMENT also for a range such as 100-50 or abc, or an empty one */
EPLB_API eplb_status eplb_recorder_config_from_env(eplb_recorder_config *config);

/** Returns the memory that a recorder takes at creation. It takes no more later.
 *
 * \param config           as for eplb_recorder_create(); path may be NULL, and workspace is ignored
 * \param workspace_bytes  receives the device memory: rows (iterations / iter_stride / iter_bucket) x layers
 *                         x experts x 4 or 8 bytes, and a little more
 * \param host_bytes       receives the host memory, page-locked on a CUDA device
 * \return a status */
EPLB_API eplb_status eplb_recorder_memory_required(const eplb_recorder_config *config,
    size_t *workspace_bytes, size_t *host_bytes);

/** Creates a recorder. It takes all memory, loads the kernels, claims the rank's file in the dump
 * directory, and starts a thread that sleeps until the dump. The primary context of a device ordinal is
 * retained until eplb_recorder_destroy().
 *
 * \param config    copied with all that it points to, except the workspace
 * \param recorder  receives the handle
 * \return EPLB_STATUS_WRITE_FAILED if the directory is not writable or another live recorder has this rank's
 *         file, dumped or not; EPLB_STATUS_NO_DRIVER; EPLB_STATUS_CUDA; EPLB_STATUS_SYSTEM */
EPLB_API eplb_status eplb_recorder_create(const eplb_recorder_config *config, eplb_recorder **recorder);

/** Registers the buffer that a layer's router writes its ids to, for eplb_recorder_count(). A second call
 * replaces the buffer; CUDA graphs that were captured before keep the first one.
 *
 * \param recorder    the recorder; not concurrent with other calls
 * \param layer       the layer's number
 * \param expert_ids  must live as long as it is counted; readable by the device
 * \param max_tokens  rows of the buffer
 * \param num_valid   device int32: valid tokens, clamped to the num_tokens of eplb_recorder_count(), read
 *                    whenever the kernel runs; must live as long as expert_ids. NULL: all
 * \param stream      a stream on which the layer will be counted, to check that it is of the recorder's
 *                    device
 * \return EPLB_STATUS_INVALID_ARGUMENT also for memory that the device cannot read; EPLB_STATUS_CUDA */
EPLB_API eplb_status eplb_recorder_register_buffer(eplb_recorder *recorder, int32_t layer,
    const eplb_expert_ids *expert_ids, uint32_t max_tokens, const int32_t *num_valid,
    struct CUstream_st *stream);

/** Begins an iteration: what is counted after this call in stream order belongs to it. Call it once an
 * iteration, before the iteration's work is launched. Order every counting stream after it and before the
 * next one; on EPLB_DEVICE_HOST, the counting threads. It writes 4 bytes in stream order if anything
 * changes.
 *
 * The first iteration at or after iter_stop starts the dump; a run that ends before it calls
 * eplb_recorder_dump(). The counts are copied once `stream` has reached this point, and a thread of the
 * recorder writes them; `stream` waits for neither. A failure is reported by eplb_recorder_flush() and
 * eplb_recorder_get_info(), not here.
 *
 * \param recorder   the recorder
 * \param iteration  the engine's iteration number, not below the last one. Numbers skipped between two
 *                   iterations are dumped as zeros; those before the first and after the last one are
 *                   missing
 * \param stream     the engine's main stream, not being captured
 * \return EPLB_STATUS_CAPTURING or EPLB_STATUS_INVALID_ARGUMENT, and the last iteration continues;
 *         EPLB_STATUS_CUDA, after which the state may be LOST */
EPLB_API eplb_status eplb_recorder_begin_iteration(eplb_recorder *recorder, int64_t iteration,
    struct CUstream_st *stream);

/** Counts the ids in a layer's registered buffer. Hot. Outside the range and after a dump it counts
 * nothing. A captured graph counts the same buffer and number of tokens at each replay, and reads
 * num_valid anew.
 *
 * \param recorder    the recorder
 * \param layer       the layer's number
 * \param num_tokens  tokens in the buffer including padding, at most max_tokens
 * \param stream      ordered after the router's work
 * \return EPLB_STATUS_CUDA */
EPLB_API eplb_status eplb_recorder_count(const eplb_recorder *recorder, int32_t layer, uint32_t num_tokens,
    struct CUstream_st *stream);

/** Counts the ids in any buffer. Hot. Outside the range and after a dump it counts nothing. Several calls
 * for a layer in one iteration add up, as in chunked prefill or multi-token prediction. A captured graph
 * reads the same buffer at each replay.
 *
 * \param recorder    the recorder
 * \param layer       the layer's number
 * \param expert_ids  must live until the kernel has run. Unreadable memory is not detected here: the
 *                    kernel faults
 * \param num_tokens  tokens in the buffer including padding
 * \param num_valid   device int32: valid tokens, clamped to [0, num_tokens]; NULL: all
 * \param stream      ordered after the router's work
 * \return EPLB_STATUS_CUDA */
EPLB_API eplb_status eplb_recorder_count_ids(const eplb_recorder *recorder, int32_t layer,
    const eplb_expert_ids *expert_ids, uint32_t num_tokens, const int32_t *num_valid,
    struct CUstream_st *stream);

/** Adds counts of the engine's own kernels. Hot. Calls add up, also with counted ids. A negative count is not
 * added, and adds 1 to ids_out_of_range.
 *
 * Cumulative: one array a layer, in every iteration, in order. Outside the range only the values are taken.
 * eplb_recorder_reset() keeps them. Counters by local slot need EPLB_ID_KIND_SLOT.
 *
 * \param recorder  the recorder
 * \param layer     the layer's number
 * \param counts    on the recorder's device: ids of this rank's tokens by expert, [num_experts]; by local
 *                  slot [num_experts / num_ranks]
 * \param dtype     the type of a count
 * \param stream    ordered after the engine's counting
 * \return EPLB_STATUS_CUDA */
EPLB_API eplb_status eplb_recorder_add_counts(const eplb_recorder *recorder, int32_t layer,
    const void *counts, eplb_dtype dtype, struct CUstream_st *stream);

/** Starts the dump of what was counted so far, the current iteration included, for a run that ends before
 * iteration iter_stop begins. Readers refuse it until iter_start and iter_stop of eplb_stats_options
 * choose iterations that it has. Returns at once. Does nothing after an earlier dump, but retries one
 * that failed to start. At shutdown call this, eplb_recorder_flush() and eplb_recorder_destroy().
 *
 * \param recorder  the recorder
 * \param stream    ordered after all counting, not being captured
 * \return EPLB_STATUS_INVALID_ARGUMENT also in states WAITING and MISSED: nothing was counted, which is
 *         harmless at shutdown; EPLB_STATUS_CAPTURING; EPLB_STATUS_CUDA */
EPLB_API eplb_status eplb_recorder_dump(eplb_recorder *recorder, struct CUstream_st *stream);

/** Waits until a dump that was started is on disk. A failure is returned once; the next call retries, since
 * the counts are kept until a dump succeeds. Returns EPLB_STATUS_OK also if no dump was started: see
 * dumps_written of eplb_recorder_info.
 *
 * \param recorder    the recorder
 * \param timeout_ms  milliseconds to wait; 0: do not wait; negative: no limit
 * \return EPLB_STATUS_NOT_READY after the timeout; EPLB_STATUS_WRITE_FAILED and other failures of the
 *         dump; EPLB_STATUS_INVALID_DUMP if counts overflowed, or changed while they were copied */
EPLB_API eplb_status eplb_recorder_flush(const eplb_recorder *recorder, int64_t timeout_ms);

/** Pauses or resumes counting in stream order, as around dummy forwards and warm-up: captured graphs obey it.
 * Iterations may begin meanwhile as usual; those that were paused throughout have zeros in the dump. Resuming
 * counts into the current iteration. It has an effect in each state, and reset and re-arm keep it.
 *
 * \param recorder  the recorder
 * \param paused    nonzero: count nothing
 * \param stream    ordered after the counting so far and before the counting to come, not being captured
 * \return EPLB_STATUS_CAPTURING; EPLB_STATUS_CUDA: as before, and in a counted iteration state LOST */
EPLB_API eplb_status eplb_recorder_set_paused(eplb_recorder *recorder, uint32_t paused,
    struct CUstream_st *stream);

/** Clears all counts and restarts, after a warm-up or a dump. Any iteration may begin next.
 *
 * \param recorder  the recorder; not concurrent with other calls
 * \param stream    ordered after all counting so far and before all counting to come, not being captured
 * \return EPLB_STATUS_NOT_READY while a dump is being written; EPLB_STATUS_CAPTURING; EPLB_STATUS_CUDA;
 *         EPLB_STATUS_WRITE_FAILED if the rank's file cannot be claimed again */
EPLB_API eplb_status eplb_recorder_reset(eplb_recorder *recorder, struct CUstream_st *stream);

/** Arms another range after a dump, or if nothing was counted, and clears all counts. Its dump goes to
 * path[/name]/START-STOP; only that of the first range goes to path[/name]. Captured graphs and
 * registered buffers stay valid. eplb_recorder_reset() keeps the range. For ranges back to back, call
 * eplb_recorder_dump(), eplb_recorder_flush() and this before the next iteration begins.
 *
 * \param recorder    the recorder; not concurrent with other calls
 * \param iter_start  first iteration to count, after the one begun last
 * \param iter_stop   one past the last; the range has at most max_rows of eplb_recorder_info
 * \param stream      as for eplb_recorder_reset()
 * \return EPLB_STATUS_INVALID_ARGUMENT also if counts were not dumped, and for a recorder that is off;
 *         EPLB_STATUS_NOT_READY while a dump is being written; EPLB_STATUS_WRITE_FAILED if the rank's file
 *         cannot be claimed; EPLB_STATUS_CAPTURING. All leave the recorder unchanged. EPLB_STATUS_CUDA: also
 *         state LOST, and the range may be armed */
EPLB_API eplb_status eplb_recorder_rearm(eplb_recorder *recorder, int64_t iter_start, int64_t iter_stop,
    struct CUstream_st *stream);

/** Returns the progress of a recorder. It may run beside counting and eplb_recorder_begin_iteration(), as
 * in a thread that exports metrics. On a CUDA device it reads sums on a stream of its own: they lack what
 * counting streams have not done yet. eplb_tools.h turns them into Prometheus' format.
 *
 * \param recorder      the recorder
 * \param info          receives the numbers
 * \param layer_tokens  receives the valid tokens of each layer, in the order of layer_ids: [num_layers].
 *                      Their ids without padding and shared experts, over those of a token, rounded up. NULL
 *                      with num_layers 0: not wanted
 * \param num_layers    that of the config, or 0
 * \return a status */
EPLB_API eplb_status eplb_recorder_get_info(const eplb_recorder *recorder, eplb_recorder_info *info,
    uint64_t *layer_tokens, size_t num_layers);

/** Destroys a recorder, after waiting without a limit for a dump that was started. Counts without a dump
 * are lost, with a warning in the log. Counting must have finished on the device, and graphs with counts
 * must not be replayed any more. In a process made by fork() it releases nothing of the parent.
 *
 * \param recorder  may be NULL */
EPLB_API void eplb_recorder_destroy(eplb_recorder *recorder);

/* --------------------------------------------------------------------------------------------------------
 * Placement: which expert each slot holds (step 3, run)
 * -------------------------------------------------------------------------------------------------------- */

/** The expert of every slot of every layer. Immutable and always servable: each slot holds an existing
 * expert or is empty, and each expert has a slot. */
typedef struct eplb_placement eplb_placement;

/** The shape of a placement. */
typedef struct eplb_placement_config {
  size_t struct_size; /**< Set by EPLB_PLACEMENT_CONFIG_INIT. */
  uint32_t num_experts; /**< Experts of a layer. Required. */
  uint32_t num_ranks; /**< Ranks of the expert-parallel group. Required. */
  /** Slots of all ranks together: a multiple of num_ranks, at least num_experts; 0: num_experts. */
  uint32_t num_slots;
  /** Layers that an engine with an online balancer updates per iteration; only written to the file. */
  uint32_t layer_updates_per_iter;
  /** Slots of each rank: [num_ranks], each 1 to num_slots / num_ranks; NULL: num_slots / num_ranks. Slots
   * that a rank lacks are its last and hold -1; num_slots 0: num_ranks times the largest rank. */
  const int32_t *rank_num_slots;
  /** 1: any slot may be empty and hold -1, not in all layers the same; 0: refused. Nothing is routed to an
   * empty slot, so it may serve a fused shared expert. Only *.eplb.yaml files hold empty slots.
   * eplb_solve() fills every slot; only rank_num_slots leaves slots empty there. */
  uint32_t allow_empty_slots;
  uint32_t reserved; /**< Must be 0. */
} eplb_placement_config;
/** An eplb_placement_config with every default. */
#define EPLB_PLACEMENT_CONFIG_INIT \
  { sizeof(eplb_placement_config), 0, 0, 0, 0, NULL, 0, 0 }

/** What eplb_placement_load() does about a layer that the engine has and the file lacks, such as one for
 * multi-token prediction. */
typedef int32_t eplb_missing_layers;
enum {
  EPLB_MISSING_LAYERS_REFUSE = 0, /**< Refuse the file; the error names the layer. */
  EPLB_MISSING_LAYERS_COPY_LAST = 1, /**< Use the experts of the file's last layer. */
  /** Spread the experts in order, as TensorRT-LLM does without initial assignments: slot i of rank r holds
   * expert (r * E / R + i) mod E, with integer division. Slots that the file's last layer leaves empty stay
   * empty; i does not count them. */
  EPLB_MISSING_LAYERS_SEQUENTIAL = 2,
};

/** What the engine knows of its model. Set all that is known, so that a file for another model is refused. */
typedef struct eplb_placement_load_options {
  size_t struct_size; /**< Set by EPLB_PLACEMENT_LOAD_OPTIONS_INIT. */
  uint32_t num_experts; /**< Experts of a layer; 0: as in the file. */
  uint32_t num_ranks; /**< Ranks; 0: as in the file. Must be the number there, if it has one. */
  /** Layers that the engine needs: [num_layers]. Other layers of the file are kept, so that all pipeline
   * stages have the same placement and hash. NULL: the layers of the file. */
  const int32_t *layer_ids;
  size_t num_layers; /**< Length of layer_ids. */
  uint32_t num_slots; /**< Slots of all ranks together; 0: as in the file. */
  eplb_missing_layers missing_layers; /**< Layers of layer_ids that the file lacks. */
} eplb_placement_load_options;
/** An eplb_placement_load_options with every default. */
#define EPLB_PLACEMENT_LOAD_OPTIONS_INIT \
  { sizeof(eplb_placement_load_options), 0, 0, NULL, 0, 0, 0 }

/** The sizes of a placement. Arrays live as long as the handle. */
typedef struct eplb_placement_info {
  size_t struct_size; /**< Set by EPLB_PLACEMENT_INFO_INIT. */
  uint32_t num_experts; /**< Experts of a layer. */
  uint32_t num_ranks; /**< Ranks. */
  uint32_t num_slots; /**< Slots of all ranks together. */
  uint32_t slots_per_rank; /**< num_slots / num_ranks. */
  const int32_t *layer_ids; /**< Layer numbers, ascending: [num_layers]. */
  size_t num_layers; /**< Length of layer_ids. */
  uint32_t max_replicas; /**< Most slots of any expert in any layer. */
  uint32_t layer_updates_per_iter; /**< As in eplb_placement_config. */
  uint64_t num_duplicates; /**< Slots that repeat an expert of their own rank, over all layers. */
  uint64_t num_empty_slots; /**< Empty slots over all layers, those that a rank lacks included. */
} eplb_placement_info;
/** An eplb_placement_info with every default. */
#define EPLB_PLACEMENT_INFO_INIT \
  { sizeof(eplb_placement_info), 0, 0, 0, 0, NULL, 0, 0, 0, 0, 0 }

/** What is wrong with a slot. */
typedef int32_t eplb_issue_kind;
enum {
  /** The slot repeats an expert of its own rank. It is served, but the second copy balances nothing. */
  EPLB_ISSUE_KIND_DUPLICATE_ON_RANK = 1,
};

/** One issue of a placement. */
typedef struct eplb_placement_issue {
  eplb_issue_kind kind; /**< What is wrong. */
  int32_t layer; /**< The layer's number. */
  int32_t rank; /**< The rank that owns the slot. */
  int32_t slot; /**< The slot, counted over all ranks. */
  int32_t expert; /**< The expert in the slot. */
  int32_t other_slot; /**< The first slot of the rank with that expert. */
} eplb_placement_issue;

/** Creates a placement from arrays.
 *
 * \param config        the shape
 * \param layer_ids     layer numbers, each once: [num_layers]
 * \param num_layers    at least 1
 * \param slot_experts  the expert of each slot, rows in the order of layer_ids: [num_layers][num_slots];
 *                      -1 in empty slots
 * \param placement     receives the handle
 * \return EPLB_STATUS_INVALID_SHAPE; EPLB_STATUS_INVALID_PLACEMENT */
EPLB_API eplb_status eplb_placement_create(const eplb_placement_config *config, const int32_t *layer_ids,
    size_t num_layers, const int32_t *slot_experts, eplb_placement **placement);

/** Loads TensorRT-LLM's configuration file (moe_load_balancer.yaml) or eplb's own file (*.eplb.yaml).
 *
 * \param path       the file
 * \param options    NULL if the file has everything
 * \param placement  receives the handle
 * \return EPLB_STATUS_INVALID_PLACEMENT; EPLB_STATUS_INVALID_SHAPE; EPLB_STATUS_READ_FAILED;
 *         EPLB_STATUS_INVALID_ARGUMENT also if the options lack what the file lacks */
EPLB_API eplb_status eplb_placement_load(const char *path, const eplb_placement_load_options *options,
    eplb_placement **placement);

/** Saves the configuration file as TensorRT-LLM's script writes it. If another policy than
 * EPLB_POLICY_TRTLLM planned it, a comment with ranks and hash is its last line. A file is replaced
 * atomically; a pipe, device or /dev/fd/N is written and stays.
 *
 * \param placement  the placement
 * \param path       the file; *.eplb.yaml for eplb's own, which also holds empty slots
 * \return EPLB_STATUS_WRITE_FAILED; EPLB_STATUS_INVALID_PLACEMENT for empty slots in another file */
EPLB_API eplb_status eplb_placement_save(const eplb_placement *placement, const char *path);

/** Returns the sizes of a placement.
 *
 * \param placement  the placement
 * \param info       receives the sizes
 * \return a status */
EPLB_API eplb_status eplb_placement_get_info(const eplb_placement *placement, eplb_placement_info *info);

/** Returns the expert of each slot that a rank owns in a layer: the weights that it must hold, in slot
 * order, -1 in empty slots. Slot i of the array is slot rank * slots_per_rank + i of all ranks.
 *
 * \param placement  the placement
 * \param layer      the layer's number
 * \param rank       0 to num_ranks - 1
 * \param experts    receives [num_slots], which lives as long as the handle
 * \param num_slots  receives the number of this rank's slots; may be NULL
 * \return a status */
EPLB_API eplb_status eplb_placement_rank_experts(const eplb_placement *placement, int32_t layer,
    uint32_t rank, const int32_t **experts, size_t *num_slots);

/** Returns the experts of eplb_placement_rank_experts() without repetition, ascending: the weights to load
 * from disk.
 *
 * \param placement    the placement
 * \param layer        the layer's number
 * \param rank         0 to num_ranks - 1
 * \param experts      receives the first `capacity` experts; may be NULL if capacity is 0
 * \param capacity     length of experts; slots_per_rank is enough
 * \param num_experts  receives the number of experts, which may exceed capacity
 * \return a status */
EPLB_API eplb_status eplb_placement_distinct_experts(const eplb_placement *placement, int32_t layer,
    uint32_t rank, int32_t *experts, size_t capacity, size_t *num_experts);

/** Returns the expert of each slot of a layer, over all ranks.
 *
 * \param placement  the placement
 * \param layer      the layer's number
 * \param experts    receives [num_slots], which lives as long as the handle; -1 in empty slots
 * \param num_slots  receives the length; may be NULL
 * \return a status */
EPLB_API eplb_status eplb_placement_layer_experts(const eplb_placement *placement, int32_t layer,
    const int32_t **experts, size_t *num_slots);

/** Lists the issues of a placement, by layer and slot. All of them are served, at a cost; what cannot be
 * served is refused when a placement is created or loaded.
 *
 * \param placement   the placement
 * \param issues      receives the first `capacity` issues; may be NULL if capacity is 0
 * \param capacity    length of issues
 * \param num_issues  receives the number of issues, which may exceed capacity
 * \return EPLB_STATUS_OK, however many issues there are */
EPLB_API eplb_status eplb_placement_validate(const eplb_placement *placement, eplb_placement_issue *issues,
    size_t capacity, size_t *num_issues);

/** Returns a hash of a placement that is equal on every machine. Compare it over all ranks before the first
 * token. It is FNV-1a (64 bits) over little-endian 32-bit words: the numbers of experts, slots, ranks and
 * layers, then each layer's number and the experts of its slots, -1 in empty ones.
 *
 * \param placement  the placement
 * \param hash       receives the hash
 * \return a status */
EPLB_API eplb_status eplb_placement_hash(const eplb_placement *placement, uint64_t *hash);

/** Destroys a placement and the arrays that it returned.
 *
 * \param placement  may be NULL */
EPLB_API void eplb_placement_destroy(eplb_placement *placement);

/* --------------------------------------------------------------------------------------------------------
 * Dispatch: routes expert ids to slot ids (step 3, run)
 *
 *   #include <eplb.h>
 *   #include <stdio.h>
 *
 *   // Loads a placement of 8 experts in 10 slots on 2 ranks, and routes 3 tokens of layer 3 on rank 0.
 *   int main(void) {
 *       const int32_t chosen[3][2] = {{0, 5}, {5, 2}, {5, 7}}; // [num_tokens][experts_per_token]
 *       int32_t slots[3][2];
 *       const eplb_expert_ids expert_ids = {chosen, EPLB_DTYPE_INT32, 0};
 *       const eplb_slot_ids slot_ids = {slots, EPLB_DTYPE_INT32, 0};
 *       const int32_t *experts = NULL;
 *       size_t num_slots = 0;
 *       eplb_placement *placement = NULL;
 *       eplb_dispatch *dispatch = NULL;
 *       eplb_placement_load_options options = EPLB_PLACEMENT_LOAD_OPTIONS_INIT;
 *       options.num_experts = 8;
 *       options.num_ranks = 2;
 *       eplb_dispatch_config config = EPLB_DISPATCH_CONFIG_INIT; // config.rank: 0
 *       config.num_ranks = 2;
 *       config.experts_per_token = 2;
 *       eplb_status status = eplb_placement_load("moe_load_balancer.yaml", &options, &placement);
 *       if (status == EPLB_STATUS_OK) // the weights to hold: experts[i] in slot i of this rank
 *           status = eplb_placement_rank_experts(placement, 3, config.rank, &experts, &num_slots);
 *       if (status == EPLB_STATUS_OK)
 *           status = eplb_dispatch_create(placement, &config, &dispatch);
 *       if (status == EPLB_STATUS_OK) // each step, after the layer's router
 *           status = eplb_dispatch_route(dispatch, 3, &expert_ids, 3, NULL, &slot_ids, NULL);
 *       for (int i = 0; status == EPLB_STATUS_OK && i < 6; i++) // slot s is on rank s / num_slots
 *           printf("expert %d: slot %d\n", chosen[i / 2][i % 2], slots[i / 2][i % 2]);
 *       if (status != EPLB_STATUS_OK)
 *           fprintf(stderr, "%s: %s\n", eplb_status_string(status), eplb_last_error_message());
 *       eplb_dispatch_destroy(dispatch);
 *       eplb_placement_destroy(placement);
 *       return status != EPLB_STATUS_OK;
 *   }
 * -------------------------------------------------------------------------------------------------------- */

/** Routes expert ids to slot ids, in stream order. All device memory is taken at creation and stays in
 * place, so that CUDA graphs may refer to it.
 *
 * On the host any number of threads may route. On a CUDA device, calls with EPLB_RULE_LEAST_LOADED for one
 * layer share that layer's workspace: order each after the one before, by a stream or an event, or create
 * one dispatch for each micro-batch. Unordered calls still produce slots that hold the expert, but not
 * those of the rule. */
typedef struct eplb_dispatch eplb_dispatch;

/** A routing rule: which of an expert's slots serves an id. docs/routing.md defines each rule exactly. A
 * rule is rank-invariant if every rank computes the same slots from the same ids; an engine that routes
 * all tokens on every rank, without an all-to-all, needs one. */
typedef int32_t eplb_rule;
enum {
  EPLB_RULE_DEFAULT = 0, /**< EPLB_RULE_LEAST_LOADED. */
  /** TensorRT-LLM's: the ids of an expert take its replicas in turn, within each block of 1,024 ids.
   * Rank-invariant unless offset_by_rank is set. */
  EPLB_RULE_ROUND_ROBIN = 1,
  EPLB_RULE_TOKEN_HASH = 2, /**< vLLM's: a hash of the token's row selects the replica. Rank-invariant. */
  /** A replica on the own rank first, then one on the own node, then any. The shares are fixed at creation,
   * such that no replica gets more than 5/4 of its even share if all ranks have as many tokens of the
   * expert. */
  EPLB_RULE_NEAREST = 3,
  /** Splits this rank's batch so that it adds equal load to the ranks, as far as the placement allows. With
   * the counts of eplb_dispatch_register_rank_counts() the ranks' totals become equal. Rank-invariant
   * without them. */
  EPLB_RULE_LEAST_LOADED = 4,
};

/** How to serve a placement. */
typedef struct eplb_dispatch_config {
  size_t struct_size; /**< Set by EPLB_DISPATCH_CONFIG_INIT. */
  uint32_t rank; /**< This rank of the expert-parallel group. */
  uint32_t num_ranks; /**< Ranks of the group, which must be the placement's. Required. */
  /** Ids per token (the router's top-k), those of shared experts included. Required. */
  uint32_t experts_per_token;
  uint32_t num_slots; /**< Slots of all ranks together, which must be the placement's; 0: not checked. */
  /** Layers that this rank routes, each in the placement: [num_layers]. NULL: all. */
  const int32_t *layer_ids;
  /** Length of layer_ids. 0 with layer_ids: none, as in a pipeline stage without experts. */
  size_t num_layers;
  int32_t device; /**< EPLB_DEVICE_HOST, EPLB_DEVICE_CURRENT, or the ordinal of a CUDA device. */
  eplb_rule rule; /**< The routing rule. */
  /** Nonzero: EPLB_RULE_ROUND_ROBIN starts at another replica on each rank, as TensorRT-LLM does on
   * request. Ignored by other rules. */
  uint32_t offset_by_rank;
  /** Width of the dense map expert_slots, at least max_replicas of eplb_placement_info; 0: no dense map. A
   * fixed width lets a later placement serve kernels that were compiled for it. */
  uint32_t max_replicas;
  /** The node of each rank, any numbers: [num_ranks]. Ignored by rules other than EPLB_RULE_NEAREST. NULL:
   * all ranks share a node. */
  const int32_t *rank_to_node;
  /** Device memory to use instead of the library's own: 16-byte aligned, at least
   * eplb_dispatch_memory_required() bytes, valid until the dispatch is destroyed. Creation writes it
   * outside of any stream. A later placement of the same shape has its tables at the same addresses. May
   * be NULL. */
  void *workspace;
  size_t workspace_bytes; /**< Bytes of `workspace`. */
  /** The slot that padding and ids out of range get: a negative one, as DeepEP's -1, or one from num_slots
   * on; 0: num_slots. */
  int32_t invalid_slot;
  uint32_t num_shared_experts; /**< Length of shared_slot_ids. */
  /** Where this rank finds the fused shared experts: id num_experts + j gets shared_slot_ids[j], by every
   * rule, and is not counted: [num_shared_experts]. Slots that hold no expert in any layer of this rank,
   * or from num_slots on, and not invalid_slot. Several may be equal. */
  const int32_t *shared_slot_ids;
  /** Nonzero: the tables may change, by the calls of eplb_live.h. Takes a shadow of all tables on the device,
   * and the page-locked memory of eplb_dispatch_host_memory_required(). */
  uint64_t live;
} eplb_dispatch_config;
/** An eplb_dispatch_config with every default. */
#define EPLB_DISPATCH_CONFIG_INIT \
  { sizeof(eplb_dispatch_config), 0, 0, 0, 0, NULL, 0, EPLB_DEVICE_HOST, 0, 0, 0, NULL, NULL, 0, 0, 0, \
    NULL, 0 }

/** A layer's tables, for the engine's own kernels: device memory that never moves and lives as long as the
 * handle. A commit changes the contents. */
typedef struct eplb_dispatch_tables {
  size_t struct_size; /**< Set by EPLB_DISPATCH_TABLES_INIT. */
  const int32_t *replica_count; /**< Slots of each expert: [num_experts]. */
  const int32_t *replica_start; /**< Index of an expert's first slot in slot_ids: [num_experts]. */
  /** The slots of expert 0, ascending, then those of expert 1, and so on: [num_slots]. With empty slots the
   * last ones are 0. */
  const int32_t *slot_ids;
  /** The slots of each expert, padded with -1: [num_experts][max_replicas]. NULL without a dense map. */
  const int32_t *expert_slots;
  uint32_t num_experts; /**< Experts. */
  uint32_t num_slots; /**< Slots of all ranks together. */
  uint32_t slots_per_rank; /**< num_slots / num_ranks. */
  uint32_t max_replicas; /**< Width of expert_slots; 0 without a dense map. */
} eplb_dispatch_tables;
/** An eplb_dispatch_tables with every default. */
#define EPLB_DISPATCH_TABLES_INIT \
  { sizeof(eplb_dispatch_tables), NULL, NULL, NULL, NULL, 0, 0, 0, 0 }

/** What a dispatch serves. */
typedef struct eplb_dispatch_info {
  size_t struct_size; /**< Set by EPLB_DISPATCH_INFO_INIT. */
  /** eplb_placement_hash() of the placement at creation, whatever was committed since. It must be equal on
   * all ranks: otherwise they send tokens to slots that hold other experts. */
  uint64_t placement_hash;
  size_t workspace_bytes; /**< Device memory held. */
  eplb_rule rule; /**< The routing rule, never EPLB_RULE_DEFAULT. */
  uint32_t rank; /**< This rank. */
  uint32_t num_ranks; /**< Ranks of the group. */
  uint32_t num_experts; /**< Experts of a layer. */
  uint32_t num_slots; /**< Slots of all ranks together. */
  uint32_t slots_per_rank; /**< num_slots / num_ranks. */
  uint32_t experts_per_token; /**< Experts per token. */
  uint32_t max_replicas; /**< Width of the dense map; 0: none. */
  uint32_t num_layers; /**< Layers that are routed. */
  uint32_t num_layers_with_rank_counts; /**< Layers with counts from eplb_dispatch_register_rank_counts(). */
  int32_t invalid_slot; /**< The slot that padding and ids out of range get, never 0. */
  uint32_t num_shared_experts; /**< Fused shared experts. */
  size_t host_bytes; /**< Page-locked host memory held, for changes of the tables. */
} eplb_dispatch_info;
/** An eplb_dispatch_info with every default. */
#define EPLB_DISPATCH_INFO_INIT \
  { sizeof(eplb_dispatch_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/** Returns the device memory that a dispatch takes: equal for all placements with the same numbers of
 * experts, slots, ranks and layers. On EPLB_DEVICE_HOST the library takes 2 to 12 times as much beside it.
 *
 * \param placement        as for eplb_dispatch_create()
 * \param config           as for eplb_dispatch_create(); workspace is ignored
 * \param workspace_bytes  receives the bytes
 * \return a status */
EPLB_API eplb_status eplb_dispatch_memory_required(const eplb_placement *placement,
    const eplb_dispatch_config *config, size_t *workspace_bytes);

/** Creates a dispatch: copies the tables of a placement to a device. The primary context of a device
 * ordinal is retained until eplb_dispatch_destroy().
 *
 * \param placement  may be destroyed afterwards
 * \param config     copied with all that it points to, except the workspace
 * \param dispatch   receives the handle
 * \return EPLB_STATUS_INVALID_ARGUMENT also for a placement of other ranks or without a layer;
 *         EPLB_STATUS_NO_DRIVER; EPLB_STATUS_CUDA */
EPLB_API eplb_status eplb_dispatch_create(const eplb_placement *placement, const eplb_dispatch_config *config,
    eplb_dispatch **dispatch);

/** Returns a layer's tables.
 *
 * \param dispatch  the dispatch
 * \param layer     the layer's number
 * \param tables    receives device addresses and sizes
 * \return a status */
EPLB_API eplb_status eplb_dispatch_get_tables(const eplb_dispatch *dispatch, int32_t layer,
    eplb_dispatch_tables *tables);

/** Returns what a dispatch serves. It reads nothing from the device.
 *
 * \param dispatch  the dispatch
 * \param info      receives the numbers
 * \return a status */
EPLB_API eplb_status eplb_dispatch_get_info(const eplb_dispatch *dispatch, eplb_dispatch_info *info);

/** Registers the buffer that holds all ranks' counts whenever a layer is routed, for
 * EPLB_RULE_LEAST_LOADED: an engine that gathers them to size its all-to-all has them already. All ranks
 * must pass equal counts. CUDA graphs that were captured before are unchanged.
 *
 * \param dispatch     the dispatch; not concurrent with other calls
 * \param layer        the layer's number
 * \param rank_counts  device memory: how many ids of each rank's valid tokens name each expert,
 *                     [num_ranks][num_experts]; must live while it is used. NULL: none
 * \param dtype        the type of a count
 * \return EPLB_STATUS_INVALID_ARGUMENT also for another rule, for 2^32 counts or more, and for memory that
 *         the device cannot read; EPLB_STATUS_CUDA */
EPLB_API eplb_status eplb_dispatch_register_rank_counts(eplb_dispatch *dispatch, int32_t layer,
    const void *rank_counts, eplb_dtype dtype);

/** Routes the tokens of a layer to slots. Hot. Padding and ids out of range get invalid_slot. A captured
 * graph routes the same buffers at each replay, and reads num_valid anew.
 *
 * \param dispatch    the dispatch
 * \param layer       the layer's number
 * \param expert_ids  the router's choice
 * \param num_tokens  tokens including padding; at most 2^31 - 1 ids
 * \param num_valid   device int32: valid tokens, clamped to [0, num_tokens]; NULL: all
 * \param slot_ids    receives the slots. Unreachable memory is not detected here: the kernel faults
 * \param stream      ordered after the router's work
 * \return EPLB_STATUS_CUDA */
EPLB_API eplb_status eplb_dispatch_route(const eplb_dispatch *dispatch, int32_t layer,
    const eplb_expert_ids *expert_ids, uint32_t num_tokens, const int32_t *num_valid,
    const eplb_slot_ids *slot_ids, struct CUstream_st *stream);

/** Routes as eplb_dispatch_route(), and counts in the same pass as eplb_recorder_count_ids(). Hot. A
 * recorder of EPLB_ID_KIND_SLOT counts the slots instead of the experts.
 *
 * \param dispatch    the dispatch
 * \param recorder    of the same device, experts_per_token, num_shared_experts, and number of experts (or
 *                    slots); required, but may be off
 * \param layer       the layer's number in both
 * \param expert_ids  the router's choice
 * \param num_tokens  tokens including padding; at most 2^31 - 1 ids
 * \param num_valid   device int32: valid tokens, clamped to [0, num_tokens]; NULL: all
 * \param slot_ids    receives the slots
 * \param stream      ordered after the router's work and eplb_recorder_begin_iteration()
 * \return EPLB_STATUS_INVALID_ARGUMENT also for a recorder that does not match, and nothing is routed;
 *         EPLB_STATUS_CUDA */
EPLB_API eplb_status eplb_dispatch_route_and_count(const eplb_dispatch *dispatch,
    const eplb_recorder *recorder, int32_t layer, const eplb_expert_ids *expert_ids, uint32_t num_tokens,
    const int32_t *num_valid, const eplb_slot_ids *slot_ids, struct CUstream_st *stream);

/** Destroys a dispatch and its tables. Work that uses them must have finished on the device, and graphs
 * must not be replayed any more. In a process made by fork() it releases nothing of the parent.
 *
 * \param dispatch  may be NULL */
EPLB_API void eplb_dispatch_destroy(eplb_dispatch *dispatch);

#ifdef __cplusplus
} // extern "C"
#endif

#endif
