/** \file
 * eplb: expert parallelism load balancer for mixture-of-experts inference.
 *
 * Generated from src/ffi by `make header`; do not edit.
 *
 * In three steps: count which experts the router chooses and dump the counts (collect), turn the dump into a
 * configuration file that says which expert each slot holds (generate), load that file and route by it (run).
 *
 * API conventions
 *
 * Status      Every call that can fail returns an eplb_status. eplb_last_error_message() then says, for the calling
 *             thread, what went wrong, where, and what to do. Results are written only on success.
 * Handles     eplb_<object> is opaque. A handle comes from _create, _load or eplb_solve() and goes back once, by its
 *             _destroy, which takes NULL. What a handle lends lives until it is destroyed.
 * Threads     Calls on a const handle may run on several threads at once, and so may calls without a handle; calls on
 *             another handle are yours to serialise, unless its documentation says that they take turns. Threads that a
 *             call starts have ended when it returns, but for a recorder's, which ends with it.
 * Streams     are yours, the last argument, and order the work on a CUDA device; NULL is the legacy default stream, and a
 *             program built with per-thread default streams passes cudaStreamPerThread for its own. Your thread's
 *             current context is left as found. Calls marked "hot" allocate nothing, wait for nothing, read nothing back, and
 *             are legal while a CUDA graph captures the stream. On EPLB_DEVICE_HOST the same calls work on host memory, at
 *             once, and the stream means nothing. No CUDA header is needed, and CUDA's may be included too.
 * Pointers    are yours and are used only until the call returns, unless it says otherwise. NULL where a value is
 *             needed, a number out of range and an unknown constant are errors, never crashes.
 * Structs     that begin with struct_size are initialised with their _INIT, so that a program and a library of
 *             different minor versions fit together: fields are only ever appended, and zero is their default.
 * Names       Expert, slot, rank, layer as everywhere in the field. Ranks are those of the expert-parallel group. Layers
 *             are listed by the model's own numbers. S slots are split evenly over R ranks: rank r owns the slots
 *             r * S/R .. (r + 1) * S/R.
 * Strings     are UTF-8 and end in NUL.
 * State       There is none outside handles, but for the log callback and each thread's last error message. No panic
 *             or exception leaves the library, and no call ends the process: memory for what a file or an argument asks
 *             for is a status when it cannot be had. Only where the system refuses even small allocations, Rust ends it.
 */
#ifndef EPLB_H
#define EPLB_H

#include <stddef.h>
#include <stdint.h>

/** CUDA's stream: cudaStream_t and CUstream are pointers to it. */
struct CUstream_st;

#ifndef EPLB_API
#if defined(__GNUC__)
#define EPLB_API __attribute__((visibility("default")))
#else
#define EPLB_API
#endif
#endif


/* ----------------------------------------------------------------------------------------------------
 * Library: versions, statuses, messages, log
 * ---------------------------------------------------------------------------------------------------- */

/**
 * The version of the interface that this header describes. It changes only when a program compiled with an older
 * header would no longer work; compare with eplb_abi_version().
 */
#define EPLB_ABI_VERSION 1

/** How a call ended. Numbers keep their meaning for ever; new ones may come. */
enum eplb_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /** Done. */
  EPLB_STATUS_OK = 0,
  /** An argument is wrong by itself: NULL, out of range, an unknown layer, a struct without its _INIT. */
  EPLB_STATUS_INVALID_ARGUMENT = 1,
  /** The progress callback asked to stop. */
  EPLB_STATUS_CANCELLED = 2,
  /** Memory could not be had. */
  EPLB_STATUS_OUT_OF_MEMORY = 3,
  /** The operating system refused something other than a file, such as a thread. */
  EPLB_STATUS_SYSTEM = 4,
  /** A defect of eplb, caught. Please report it; other calls work on. */
  EPLB_STATUS_INTERNAL = 5,
  /** Something that was started earlier has not ended yet. */
  EPLB_STATUS_NOT_READY = 6,
  /** A file could not be read. */
  EPLB_STATUS_READ_FAILED = 10,
  /** A file could not be written. What was there before is untouched. */
  EPLB_STATUS_WRITE_FAILED = 11,
  /** A statistic dump is damaged or contradicts itself. */
  EPLB_STATUS_INVALID_DUMP = 20,
  /** Ranks, iterations or layers are missing from a statistic dump. */
  EPLB_STATUS_INCOMPLETE_DUMP = 21,
  /**
   * Experts, slots and ranks, or groups and nodes, do not fit together; the message names the nearest valid numbers of
   * slots where those are at fault.
   */
  EPLB_STATUS_INVALID_SHAPE = 30,
  /** A load is not a finite, non-negative number. */
  EPLB_STATUS_INVALID_LOADS = 31,
  /** A placement or its configuration file cannot be served. */
  EPLB_STATUS_INVALID_PLACEMENT = 40,
  /** No CUDA driver, none that is new enough, or no device. Everything but CUDA devices works. */
  EPLB_STATUS_NO_DRIVER = 50,
  /** The CUDA driver refused a call; the message has its code and name. */
  EPLB_STATUS_CUDA = 51,
  /** A CUDA graph is capturing the stream, and the call must not become part of the graph. */
  EPLB_STATUS_CAPTURING = 52,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum eplb_status eplb_status;
#else
typedef int32_t eplb_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** How serious a log message is. */
enum eplb_log_level
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /** Something was accepted that the operator should know of, such as missing ranks. */
  EPLB_LOG_LEVEL_WARNING = 1,
  /** What was done. */
  EPLB_LOG_LEVEL_INFO = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum eplb_log_level eplb_log_level;
#else
typedef int32_t eplb_log_level;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Receives log messages. May be called by several threads at once, those that are in a call of this library and a recorder's
 * own; must not throw, and must not call this library: the call that logs may hold what that call would wait for.
 *
 * \param user_data  what eplb_set_log_callback() was given
 * \param level      how serious it is
 * \param message    UTF-8, lives until the callback returns
 */
typedef void (*eplb_log_callback)(void *user_data,
                                  eplb_log_level level,
                                  const char *message);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The name of a status.
 *
 * \param status  an eplb_status, or any other number
 * \return a string such as "EPLB_STATUS_INVALID_DUMP", or "unknown status"; it lives for ever
 */
EPLB_API
const char *eplb_status_string(int32_t status);

/**
 * The version of the interface that the loaded library has. A program whose EPLB_ABI_VERSION is another one must not
 * call anything else.
 *
 * \return a number to compare with EPLB_ABI_VERSION
 */
EPLB_API
uint32_t eplb_abi_version(void);

/**
 * The version of the library.
 *
 * \return a string such as "0.1.0", which lives for ever
 */
EPLB_API
const char *eplb_version_string(void);

/**
 * What went wrong in this thread's last call that failed: what, where (file, rank, iteration, layer, slot) and what to
 * do about it. Empty before the first failure; a call that succeeds leaves it as it is.
 *
 * \return a string that lives until this thread's next failing call; never NULL
 */
EPLB_API
const char *eplb_last_error_message(void);

/**
 * Sends the library's log messages to `callback`, or nowhere with NULL, as it is from the start. This is the one thing
 * that all handles of a process share. After it returns, a thread already in the old callback may still finish there.
 *
 * \param callback   called by any thread that is in a call of this library, and by recorders' own; NULL for none
 * \param user_data  handed to each call of `callback`; yours, and must live until the callback is replaced
 * \return EPLB_STATUS_OK
 */
EPLB_API
eplb_status eplb_set_log_callback(eplb_log_callback callback,
                                  void *user_data);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/* ----------------------------------------------------------------------------------------------------
 * Devices and streams
 * ---------------------------------------------------------------------------------------------------- */

/**
 * Host memory, and no CUDA: calls take host pointers, ignore the stream and have done their work when they return. Needs no
 * driver; the default of every config.
 */
#define EPLB_DEVICE_HOST (-1)

/**
 * The CUDA context that is current on the thread that creates the handle. It must outlive the handle, and be no green context,
 * which only one thread may use at a time.
 */
#define EPLB_DEVICE_CURRENT (-2)

/** The type of expert ids. */
enum eplb_dtype
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /** int32_t */
  EPLB_DTYPE_INT32 = 0,
  /** int64_t */
  EPLB_DTYPE_INT64 = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum eplb_dtype eplb_dtype;
#else
typedef int32_t eplb_dtype;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Whether handles can be created on a CUDA device: there is a driver, 525 or newer, with a device.
 *
 * \return 1 if so; 0 if not, and eplb_last_error_message() says why
 */
EPLB_API
int32_t eplb_cuda_available(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/* ----------------------------------------------------------------------------------------------------
 * Recorder: counting routed experts (step 1)
 * ---------------------------------------------------------------------------------------------------- */

/** What a recorder is doing. */
enum eplb_recorder_state
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /** It has no iterations to count: every call succeeds and does nothing. */
  EPLB_RECORDER_STATE_OFF = 0,
  /** No iteration of its range has begun. */
  EPLB_RECORDER_STATE_WAITING = 1,
  /** Some have. */
  EPLB_RECORDER_STATE_COUNTING = 2,
  /** The dump is being written. */
  EPLB_RECORDER_STATE_DUMPING = 3,
  /** The dump is there, whole and synced to disk. */
  EPLB_RECORDER_STATE_DUMPED = 4,
  /**
   * The dump could not be written, and the counts are still there: eplb_recorder_flush() tries again. Where it could not even
   * be started, eplb_recorder_dump() does, and so does the next eplb_recorder_begin_iteration().
   */
  EPLB_RECORDER_STATE_FAILED = 5,
  /**
   * A call to the driver failed while counting, and the counts are not those of the iterations any more.
   * eplb_recorder_reset() starts anew.
   */
  EPLB_RECORDER_STATE_LOST = 6,
  /** The range had passed before any of its iterations began: nothing is counted, and calls succeed. */
  EPLB_RECORDER_STATE_MISSED = 7,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum eplb_recorder_state eplb_recorder_state;
#else
typedef int32_t eplb_recorder_state;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Counts which experts the router chose, on a device and in the order of the engine's streams, and dumps the counts.
 *
 * What an engine does, each step:
 *
 * ```c
 * // Before the step's work, on the main stream, outside of graphs:
 * eplb_recorder_begin_iteration(recorder, iteration, stream);
 * // After each layer's router, on any stream that waits for the main one, captured or not:
 * eplb_recorder_count(recorder, layer, num_tokens, layer_stream);
 * // The main stream waits for the layers' streams, as it does anyway before it uses their results.
 * ```
 *
 * Beginning iteration iter_stop starts the dump. With no iterations to count, as without EXPERT_STATISTIC_ITER_RANGE, every
 * call succeeds at once and does nothing.
 *
 * Any thread may call; calls take turns. Hot calls allocate nothing, wait for nothing, read nothing back, and may be captured:
 * one graph serves counting and not counting, and any iteration, since the kernels read on the device which row of the window
 * is being counted into. An id outside [0, num_experts) is never counted but reported.
 */
typedef struct eplb_recorder eplb_recorder;

/**
 * What to count, and where. Initialise with EPLB_RECORDER_CONFIG_INIT, and have eplb_recorder_config_from_env() fill in what
 * the operator asks for. Zero is a field's default where it has one.
 */
typedef struct eplb_recorder_config {
  /** sizeof(eplb_recorder_config) */
  size_t struct_size;
  /** Directory of the dump, UTF-8; created if missing, shared by all ranks. Must be given if there are iterations. */
  const char *path;
  /** First iteration to count. */
  int64_t iter_start;
  /** First iteration not to count any more; 0: count nothing, and let every call succeed and do nothing. */
  int64_t iter_stop;
  /** This rank of the expert-parallel group. */
  uint32_t rank;
  /** Ranks of the group. */
  uint32_t num_ranks;
  /** Experts of a layer; where slots are counted, slots of all ranks together. */
  uint32_t num_experts;
  /** Experts that each token chooses (the router's top-k). */
  uint32_t experts_per_token;
  /** The layers that this rank counts, by the model's numbers: int32 [num_layers]. */
  const int32_t *layer_ids;
  /** Layers that this rank counts. */
  size_t num_layers;
  /**
   * Where the ids are: EPLB_DEVICE_HOST, which is the default of _INIT; EPLB_DEVICE_CURRENT; or the ordinal of a CUDA device,
   * of which 0 is one.
   */
  int32_t device;
  /** What the ids are: an eplb_counted. Slots where a placement is in force. */
  int32_t counted;
  /**
   * Tokens of a layer in an iteration at most; 0: so few that no expert is chosen 2^32 times. Beyond that counts take 64
   * bits. A count that overflows all the same is noticed, and its dump refused.
   */
  uint64_t max_tokens_per_iteration;
  /** Tells one run from another, so that a reader refuses a mix: the same on all ranks, UTF-8. May be NULL. */
  const char *run_id;
  /**
   * Memory of the device to use instead of the library's own, aligned to 16 bytes, at least as large as
   * eplb_recorder_memory_required() says; yours, and used until the recorder is destroyed. Creating the recorder clears it,
   * in the order of no stream of yours: what was to be done with it must have been done. May be NULL.
   */
  void *workspace;
  /** Bytes of `workspace`. */
  size_t workspace_bytes;
} eplb_recorder_config;
/** An eplb_recorder_config with every default. */
#define EPLB_RECORDER_CONFIG_INIT { sizeof(eplb_recorder_config), NULL, 0, 0, 0, 0, 0, 0, NULL, 0, EPLB_DEVICE_HOST, 0, 0, NULL, NULL, 0 }

/** How far a recorder is. Initialise with EPLB_RECORDER_INFO_INIT. */
typedef struct eplb_recorder_info {
  /** sizeof(eplb_recorder_info) */
  size_t struct_size;
  /** An eplb_recorder_state. */
  int32_t state;
  /**
   * In states EPLB_RECORDER_STATE_FAILED and _LOST, the eplb_status of the cause; EPLB_STATUS_CUDA in others where the
   * device could not be asked, so that the sums below are those of an earlier look; otherwise EPLB_STATUS_OK.
   */
  int32_t error_status;
  /** The iteration begun last; -1: none. */
  int64_t iteration;
  /** First iteration counted. */
  int64_t iter_start;
  /** The one after the last that was counted; iter_start where none was. */
  int64_t iter_stop;
  /** Ids counted, over all layers. */
  uint64_t ids_counted;
  /** Ids of valid tokens that were not counted, since they name no expert. */
  uint64_t ids_out_of_range;
  /** Ids of the tokens after the valid ones, which were not looked at. */
  uint64_t ids_padding;
  /** Memory held on the device, in bytes. */
  size_t workspace_bytes;
  /** Host memory held for the copy back, in bytes. */
  size_t host_bytes;
  /** The message that belongs to error_status, shortened to fit. */
  char error_message[512];
  /** First iteration that the recorder is there to count; 0 where it is off. */
  int64_t range_start;
  /** The one after the last that it is there to count; 0 where it is off. */
  int64_t range_stop;
  /** Iterations from iter_start to iter_stop that never began, and count as empty. */
  uint64_t iterations_skipped;
  /** Dumps that were written since the recorder was created; eplb_recorder_reset() leaves it as it is. */
  uint64_t dumps_written;
  /** Tries at a dump that failed, to start it or to write it, since the recorder was created. */
  uint64_t dumps_failed;
  /** Layers of the config; 0 where the recorder is off. */
  uint32_t num_layers;
  /** Layers with a buffer that eplb_recorder_register_buffer() named. */
  uint32_t num_registered_layers;
} eplb_recorder_info;
/** An eplb_recorder_info with every default. */
#define EPLB_RECORDER_INFO_INIT { sizeof(eplb_recorder_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, { 0 }, 0, 0, 0, 0, 0, 0, 0 }

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Fills in what the operator asks for in the environment, as TensorRT-LLM has it: EXPERT_STATISTIC_ITER_RANGE=100-200 counts
 * iterations 100 to 199, and EXPERT_STATISTIC_PATH is the dump's directory. Without the first, iter_start and iter_stop become
 * 0, which is a recorder that does nothing; without the second, path stays as it is.
 *
 * \param config  from EPLB_RECORDER_CONFIG_INIT; its path then points into the environment, which must not be changed before
 *                eplb_recorder_create()
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT for a range such as 100-50 or abc, with a message naming the variable
 */
EPLB_API
eplb_status eplb_recorder_config_from_env(eplb_recorder_config *config);

/**
 * The memory that a recorder takes, before it is created. It takes no more afterwards.
 *
 * \param config           that of eplb_recorder_create(); path may be NULL, and the workspace is not looked at
 * \param workspace_bytes  receives the bytes on the device: iterations x layers x experts x 4, or 8, and a little more
 * \param host_bytes       receives the bytes of host memory for the copy back, page-locked where the device is CUDA's
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT or EPLB_STATUS_OUT_OF_MEMORY for what no recorder could be created with
 */
EPLB_API
eplb_status eplb_recorder_memory_required(const eplb_recorder_config *config,
                                          size_t *workspace_bytes,
                                          size_t *host_bytes);

/**
 * Creates a recorder and takes all that it will need: memory, the kernels, the rank's file in the dump's directory, and a
 * thread that sleeps until the dump. The primary context of a device given by its ordinal is retained until
 * eplb_recorder_destroy().
 *
 * \param config    from EPLB_RECORDER_CONFIG_INIT; what it points to is copied, but for the workspace
 * \param recorder  receives the handle, which goes back by eplb_recorder_destroy()
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT; EPLB_STATUS_WRITE_FAILED where the directory could not be written
 *         to, or a recorder of the same rank is there already; EPLB_STATUS_OUT_OF_MEMORY; EPLB_STATUS_NO_DRIVER;
 *         EPLB_STATUS_CUDA; EPLB_STATUS_SYSTEM
 */
EPLB_API
eplb_status eplb_recorder_create(const eplb_recorder_config *config,
                                 eplb_recorder **recorder);

/**
 * Names the place where a layer's router writes its chosen ids, for eplb_recorder_count(). A second call for a layer replaces
 * the first; CUDA graphs that were captured before keep the buffer that they were captured with.
 *
 * \param recorder    the recorder
 * \param layer       the layer's number
 * \param expert_ids  device memory, [max_tokens][experts_per_token], `dtype`; yours, and must live while it is counted
 * \param dtype       an eplb_dtype
 * \param max_tokens  tokens that the buffer has room for
 * \param num_valid   device memory, int32: how many of the tokens are valid, read whenever the kernel runs, counting or not, so
 *                    that padding is not counted; NULL: all
 * \param stream      a stream on which the layer will be counted: it is checked to be one of the recorder's device
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer and for memory that the device cannot read;
 *         EPLB_STATUS_CUDA
 */
EPLB_API
eplb_status eplb_recorder_register_buffer(eplb_recorder *recorder,
                                          int32_t layer,
                                          const void *expert_ids,
                                          int32_t dtype,
                                          uint32_t max_tokens,
                                          const int32_t *num_valid,
                                          struct CUstream_st *stream);

/**
 * Begins an iteration: what is counted after this call, in the order of `stream`, belongs to it. Call it once an iteration,
 * before the iteration's work is launched; every stream that counts must be ordered after it, and before the next one. A write
 * of 4 bytes in stream order, where anything changes at all.
 *
 * The first iteration at or after iter_stop starts the dump: the counts are copied back once `stream` has come this far, and
 * written by a thread of the recorder's; `stream` waits for neither. What the dump comes to is told by eplb_recorder_flush() and
 * eplb_recorder_get_info(), not here.
 *
 * \param recorder   the recorder
 * \param iteration  the engine's number of it, never lower than that before; a number that is left out counts as empty, and
 *                   those from iter_stop on, or after a dump, count nothing
 * \param stream     the engine's main stream, not being captured
 * \return EPLB_STATUS_OK; EPLB_STATUS_CAPTURING or EPLB_STATUS_INVALID_ARGUMENT, and what is counted still belongs to the
 *         iteration before; EPLB_STATUS_CUDA, and counts may be lost: see EPLB_RECORDER_STATE_LOST
 */
EPLB_API
eplb_status eplb_recorder_begin_iteration(eplb_recorder *recorder,
                                          int64_t iteration,
                                          struct CUstream_st *stream);

/**
 * Counts the ids in a layer's registered buffer. Hot: may be captured by a CUDA graph, which then counts this buffer and this
 * number of tokens at each replay; how many of them are valid is read anew each time.
 *
 * \param recorder    the recorder
 * \param layer       the layer's number
 * \param num_tokens  tokens in the buffer, padding included; not above max_tokens
 * \param stream      ordered after the router's work
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT; EPLB_STATUS_CUDA
 */
EPLB_API
eplb_status eplb_recorder_count(eplb_recorder *recorder,
                                int32_t layer,
                                uint32_t num_tokens,
                                struct CUstream_st *stream);

/**
 * Counts the ids in any buffer, for engines whose buffers move. A layer that is counted twice in an iteration, in chunks or by
 * multi-token prediction, adds up. Hot: may be captured by a CUDA graph, which then reads the same buffer at each replay.
 *
 * \param recorder    the recorder
 * \param layer       the layer's number
 * \param expert_ids  device memory, [num_tokens][experts_per_token], `dtype`; yours, and must live until the kernel has run.
 *                    Unlike in eplb_recorder_register_buffer(), memory that the device cannot read is not noticed here: the
 *                    kernel would fault
 * \param dtype       an eplb_dtype
 * \param num_tokens  tokens in the buffer, padding included
 * \param num_valid   device memory, int32: how many of the tokens are valid; NULL: all
 * \param stream      ordered after the router's work
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT; EPLB_STATUS_CUDA
 */
EPLB_API
eplb_status eplb_recorder_count_ids(eplb_recorder *recorder,
                                    int32_t layer,
                                    const void *expert_ids,
                                    int32_t dtype,
                                    uint32_t num_tokens,
                                    const int32_t *num_valid,
                                    struct CUstream_st *stream);

/**
 * Ends counting before the range has passed and starts the dump of what was counted so far, for a run that ends early. The dump
 * says what is missing: readers take it only when asked for iterations that it has. Returns at once; eplb_recorder_flush()
 * waits. Where a dump was started already it does nothing; where that failed to start, it tries again.
 *
 * \param recorder  the recorder
 * \param stream    ordered after all that was counted, and not being captured
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT where no iteration of the range has begun; EPLB_STATUS_CAPTURING;
 *         EPLB_STATUS_CUDA
 */
EPLB_API
eplb_status eplb_recorder_dump(eplb_recorder *recorder,
                               struct CUstream_st *stream);

/**
 * Waits for a dump that was started. A failure is returned once; the next call tries again, since the counts stay on the device
 * until a dump of them succeeds. Where none was started there is nothing to wait for; one that could not be started, because the
 * driver refused, is tried again by eplb_recorder_dump(), which has a stream.
 *
 * \param recorder    the recorder
 * \param timeout_ms  how long to wait, in milliseconds; 0: not at all; negative: as long as it takes
 * \return EPLB_STATUS_OK, and the dump, if one was started, is on disk; EPLB_STATUS_NOT_READY; what the dump failed with, such
 *         as EPLB_STATUS_WRITE_FAILED; EPLB_STATUS_INVALID_DUMP where counts overflowed or went on meanwhile
 */
EPLB_API
eplb_status eplb_recorder_flush(eplb_recorder *recorder,
                                int64_t timeout_ms);

/**
 * Forgets all counts and begins anew, after a warm-up or a dump: any iteration may begin next.
 *
 * \param recorder  the recorder
 * \param stream    ordered after all that was counted and before all that will be, and not being captured
 * \return EPLB_STATUS_OK; EPLB_STATUS_NOT_READY while a dump is being written; EPLB_STATUS_CAPTURING;
 *         EPLB_STATUS_WRITE_FAILED where another recorder has taken the rank's file since the last dump; EPLB_STATUS_CUDA
 */
EPLB_API
eplb_status eplb_recorder_reset(eplb_recorder *recorder,
                                struct CUstream_st *stream);

/**
 * Tells how far a recorder is. Looks at sums on the device on a stream of its own: what counting streams have not done yet is
 * not in them. A device that cannot be asked any more leaves them as they were at the last look, and error_status says so.
 *
 * \param recorder      the recorder
 * \param info          from EPLB_RECORDER_INFO_INIT; receives the numbers
 * \param layer_tokens  receives the valid tokens counted of each layer, in the order of the config's layer_ids: [num_layers];
 *                      may be NULL where num_layers is 0
 * \param num_layers    that of the config, as a check, or 0
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT
 */
EPLB_API
eplb_status eplb_recorder_get_info(const eplb_recorder *recorder,
                                   eplb_recorder_info *info,
                                   uint64_t *layer_tokens,
                                   size_t num_layers);

/**
 * Waits for a dump that was started, and gives the handle back. Work that counts must have ended on the device, and graphs
 * with counts in them must not be replayed any more. In a process that fork() made it leaves everything to the parent.
 *
 * \param recorder  not to be used again; NULL is allowed
 */
EPLB_API
void eplb_recorder_destroy(eplb_recorder *recorder);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/* ----------------------------------------------------------------------------------------------------
 * Statistics: what was counted (step 1 leaves it, step 2 reads it)
 * ---------------------------------------------------------------------------------------------------- */

/** What the ids of a dump are. */
enum eplb_counted
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /** Experts, as the router chose them. */
  EPLB_COUNTED_EXPERTS = 0,
  /** Slots: a placement was in force while counting. */
  EPLB_COUNTED_SLOTS = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum eplb_counted eplb_counted;
#else
typedef int32_t eplb_counted;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** The counts of a dump, summed over ranks. Immutable: any number of threads may use it at once. */
typedef struct eplb_stats eplb_stats;

/** What to read of a dump. Initialise with EPLB_STATS_OPTIONS_INIT; zero is every field's default. */
typedef struct eplb_stats_options {
  /** sizeof(eplb_stats_options) */
  size_t struct_size;
  /** First iteration to use; 0: from the start of the dump. */
  int64_t iter_start;
  /** First iteration not to use any more; 0: to the end of the dump. */
  int64_t iter_stop;
  /** Not 0: take a dump in which the files of some ranks are missing. eplb_stats_info lists them. */
  uint32_t allow_missing_ranks;
  /** Threads that read; 0: one a core, at most 8. Results do not depend on it. */
  uint32_t num_threads;
  /**
   * Ranks that the run had, so that a loss of any is noticed; 0: what the dump says. TensorRT-LLM's dumps do not say
   * it: of theirs, a loss of the highest ranks goes unnoticed with 0.
   */
  size_t expected_ranks;
} eplb_stats_options;
/** An eplb_stats_options with every default. */
#define EPLB_STATS_OPTIONS_INIT { sizeof(eplb_stats_options), 0, 0, 0, 0, 0 }

/** What a dump holds. Initialise with EPLB_STATS_INFO_INIT. Arrays belong to the handle and live as long as it does. */
typedef struct eplb_stats_info {
  /** sizeof(eplb_stats_info) */
  size_t struct_size;
  /** Experts of a layer, or slots where `counted` says so. */
  uint32_t num_experts;
  /** Experts that each token chooses; 0 where a file of another system did not say it. */
  uint32_t experts_per_token;
  /** Ranks of the run that dumped, the missing ones included. */
  uint32_t num_ranks;
  /** Whether experts or slots were counted: an eplb_counted. */
  int32_t counted;
  /** First iteration of the counts. */
  int64_t iter_start;
  /** The one after the last. */
  int64_t iter_stop;
  /** The layers' numbers, ascending: int32 [num_layers]. */
  const int32_t *layer_ids;
  /** Layers that were counted. */
  size_t num_layers;
  /** Ranks whose file is missing, ascending: int32 [num_missing_ranks]. */
  const int32_t *missing_ranks;
  /** Always 0 unless allow_missing_ranks was set. */
  size_t num_missing_ranks;
} eplb_stats_info;
/** An eplb_stats_info with every default. */
#define EPLB_STATS_INFO_INIT { sizeof(eplb_stats_info), 0, 0, 0, 0, 0, 0, NULL, 0, NULL, 0 }

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Reads the dump in a directory: meta_info.json and one rank<R>.safetensors a rank, summed over ranks.
 *
 * \param path     the directory, UTF-8
 * \param options  may be NULL: all iterations, all ranks present
 * \param stats    receives the handle, which goes back by eplb_stats_destroy()
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_DUMP or EPLB_STATUS_INCOMPLETE_DUMP with a message naming file,
 *         iteration and layer; EPLB_STATUS_READ_FAILED; EPLB_STATUS_INVALID_ARGUMENT, also for iterations that the dump
 *         does not have
 */
EPLB_API
eplb_status eplb_stats_load(const char *path,
                            const eplb_stats_options *options,
                            eplb_stats **stats);

/**
 * Tells what the dump held.
 *
 * \param stats  the counts
 * \param info   from EPLB_STATS_INFO_INIT; receives the sizes, and arrays that live as long as the handle
 * \return EPLB_STATUS_OK or EPLB_STATUS_INVALID_ARGUMENT
 */
EPLB_API
eplb_status eplb_stats_get_info(const eplb_stats *stats,
                                eplb_stats_info *info);

/**
 * Copies the loads of one layer, in the form that eplb_solve() takes: (token, choice) pairs by expert.
 *
 * \param stats        the counts
 * \param layer        the layer's number
 * \param num_samples  1: summed over the iterations; iter_stop - iter_start: one row an iteration; between: as many groups of
 *                     iterations that follow each other, as even as can be, each summed up
 * \param num_experts  that of the dump, as a check
 * \param loads        receives [num_samples][num_experts]
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer; EPLB_STATUS_INVALID_DUMP where a sum is
 *         larger than a double can say exactly
 */
EPLB_API
eplb_status eplb_stats_layer_loads(const eplb_stats *stats,
                                   int32_t layer,
                                   size_t num_samples,
                                   size_t num_experts,
                                   double *loads);

/**
 * Gives the handle back.
 *
 * \param stats  not to be used again, nor what it lent; NULL is allowed
 */
EPLB_API
void eplb_stats_destroy(eplb_stats *stats);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/* ----------------------------------------------------------------------------------------------------
 * Placement: which expert each slot holds
 * ---------------------------------------------------------------------------------------------------- */

/** What is wrong with a slot. */
enum eplb_issue_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * The slot repeats an expert that another slot of its rank holds already. It is served, but one of the two is
   * wasted.
   */
  EPLB_ISSUE_KIND_DUPLICATE_ON_RANK = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum eplb_issue_kind eplb_issue_kind;
#else
typedef int32_t eplb_issue_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a layer gets that the engine has and the file lacks, such as one for multi-token prediction. It then is a layer of the
 * placement like any other: its weights go by it, and so does its dispatch.
 */
enum eplb_missing_layers
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /** The file is refused, and the error names the layer. */
  EPLB_MISSING_LAYERS_REFUSED = 0,
  /** The experts of the file's last layer. */
  EPLB_MISSING_LAYERS_LIKE_LAST = 1,
  /**
   * The experts spread in order, as TensorRT-LLM does where a file has no assignments: slot i of rank r holds expert
   * (r x E / R + i) mod E, the product first and the quotient rounded down.
   */
  EPLB_MISSING_LAYERS_IN_ORDER = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum eplb_missing_layers eplb_missing_layers;
#else
typedef int32_t eplb_missing_layers;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * The expert of every slot of every layer. Rank r owns the consecutive slots r * S/R .. (r + 1) * S/R, of which it may lack the
 * last ones where slots_per_rank was given. Immutable, and
 * always servable: each slot holds an expert that exists and each expert has a slot. Any number of threads may use it
 * at once.
 */
typedef struct eplb_placement eplb_placement;

/** The sizes of a placement made from arrays. Initialise with EPLB_PLACEMENT_CONFIG_INIT. */
typedef struct eplb_placement_config {
  /** sizeof(eplb_placement_config) */
  size_t struct_size;
  /** Experts of a layer. Must be given. */
  uint32_t num_experts;
  /** Ranks of the expert-parallel group. Must be given. */
  uint32_t num_ranks;
  /** Slots of all ranks together; 0: one an expert. */
  uint32_t num_slots;
  /** Layers that an engine with an online balancer moves an iteration; eplb_placement_save() writes it. */
  uint32_t layer_updates_per_iter;
  /** As eplb_solve_config has it: the slots of each rank, int32 [num_ranks]; NULL: as many on each. */
  const int32_t *slots_per_rank;
} eplb_placement_config;
/** An eplb_placement_config with every default. */
#define EPLB_PLACEMENT_CONFIG_INIT { sizeof(eplb_placement_config), 0, 0, 0, 0, NULL }

/**
 * What the reader of a configuration file knows of its model. Initialise with EPLB_PLACEMENT_LOAD_OPTIONS_INIT; give
 * all that is known, so that a file for another model is refused here rather than at the first token.
 */
typedef struct eplb_placement_load_options {
  /** sizeof(eplb_placement_load_options) */
  size_t struct_size;
  /** Experts of a layer; 0: as many as the file names. */
  uint32_t num_experts;
  /** Ranks of the expert-parallel group; 0: the file's ep_size, which most files do not have. */
  uint32_t num_ranks;
  /**
   * Layers that must be there: int32 [num_layers]. Further layers of the file are kept, so that all pipeline stages
   * have one placement and one hash. NULL: the layers of the file.
   */
  const int32_t *layer_ids;
  /** Length of layer_ids. */
  size_t num_layers;
  /** Slots of all ranks together, as a check; 0: as many as the file says. */
  uint32_t num_slots;
  /** What those of layer_ids get that the file lacks: an eplb_missing_layers. */
  int32_t missing_layers;
} eplb_placement_load_options;
/** An eplb_placement_load_options with every default. */
#define EPLB_PLACEMENT_LOAD_OPTIONS_INIT { sizeof(eplb_placement_load_options), 0, 0, NULL, 0, 0, 0 }

/** One thing that is wrong with a placement, and its place. */
typedef struct eplb_placement_issue {
  /** An eplb_issue_kind. */
  int32_t kind;
  /** The layer's number. */
  int32_t layer;
  /** The rank that owns the slot. */
  int32_t rank;
  /** The slot, counted over all ranks. */
  int32_t slot;
  /** The expert that the slot holds. */
  int32_t expert;
  /** The first slot of the rank with that expert. */
  int32_t other_slot;
} eplb_placement_issue;

/**
 * The sizes of a placement. Initialise with EPLB_PLACEMENT_INFO_INIT. Arrays belong to the handle and live as long as
 * it does.
 */
typedef struct eplb_placement_info {
  /** sizeof(eplb_placement_info) */
  size_t struct_size;
  /** Experts of a layer. */
  uint32_t num_experts;
  /** Ranks. */
  uint32_t num_ranks;
  /** Slots of all ranks together. */
  uint32_t num_slots;
  /** Slots of one rank; of the one with the most, where the config gave slots_per_rank. */
  uint32_t slots_per_rank;
  /** The layers' numbers, ascending: int32 [num_layers]. */
  const int32_t *layer_ids;
  /** Layers. */
  size_t num_layers;
  /** The largest number of slots that an expert has in any layer. */
  uint32_t max_replicas;
  /** Layers that an engine with an online balancer moves an iteration. */
  uint32_t layer_updates_per_iter;
  /** Slots that repeat an expert of their own rank, over all layers; see eplb_placement_validate(). */
  uint64_t num_duplicates;
} eplb_placement_info;
/** An eplb_placement_info with every default. */
#define EPLB_PLACEMENT_INFO_INIT { sizeof(eplb_placement_info), 0, 0, 0, 0, NULL, 0, 0, 0, 0 }

/**
 * How evenly a placement loads the ranks in one layer. Initialise with EPLB_PLACEMENT_EVALUATION_INIT. Figures are
 * taken per sample and averaged over samples; but for the best split, an expert's load is split evenly over its replicas.
 */
typedef struct eplb_placement_evaluation {
  /** sizeof(eplb_placement_evaluation) */
  size_t struct_size;
  /** Mean load of a rank. */
  double mean_load;
  /** Load of the most loaded rank. */
  double max_load;
  /** (max - mean) / mean: 0 is even. NaN where a sample has no load. */
  double imbalance_ratio;
  /** mean / max: 1 is even. NaN where a sample has no load. */
  double balancedness;
  /** The rank with the largest load over all samples. */
  uint32_t worst_rank;
  /** The largest number of slots that an expert has. */
  uint32_t max_replicas;
  /** Slots that repeat an expert of their own rank. */
  uint64_t num_duplicates;
  /**
   * What the most loaded rank carries at least, whatever the placement of this many slots on this many ranks. It is the
   * least maximum that none of these refutes: one rank carries the mean or more; an expert needs as many replicas as keep
   * each below the maximum, together with the lightest that fill their ranks, and all needs must fit in the slots; of
   * replicas that are too heavy to share a rank there must be no more than the ranks hold. Not every bound is reached.
   */
  double lower_bound;
  /**
   * (max - lower bound) / lower bound: how far the placement may be from the best one at most; 0 is proof that none is
   * better. NaN where a sample has no load.
   */
  double gap;
  /**
   * Load of the most loaded rank if each expert's load were split over its replicas in the best fractions: what a rule
   * that splits by need, as EPLB_ROUTE_LEAST_LOADED, can reach with this placement.
   */
  double best_split_max_load;
  /** mean / max of the best split: 1 is even. NaN where a sample has no load. */
  double best_split_balancedness;
} eplb_placement_evaluation;
/** An eplb_placement_evaluation with every default. */
#define EPLB_PLACEMENT_EVALUATION_INIT { sizeof(eplb_placement_evaluation), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Makes a placement from arrays.
 *
 * \param config        from EPLB_PLACEMENT_CONFIG_INIT, with the experts and ranks filled in
 * \param layer_ids     int32 [num_layers], the model's own layer numbers, each once
 * \param num_layers    at least 1
 * \param slot_experts  int32 [num_layers][num_slots]: the expert of each slot, rows in the order of layer_ids; -1 in slots
 *                      that a rank lacks, where slots_per_rank is given
 * \param placement     receives the handle, which goes back by eplb_placement_destroy()
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_SHAPE; EPLB_STATUS_INVALID_PLACEMENT naming layer, rank and slot;
 *         EPLB_STATUS_INVALID_ARGUMENT
 */
EPLB_API
eplb_status eplb_placement_create(const eplb_placement_config *config,
                                  const int32_t *layer_ids,
                                  size_t num_layers,
                                  const int32_t *slot_experts,
                                  eplb_placement **placement);

/**
 * Reads a configuration file (moe_load_balancer.yaml).
 *
 * \param path       the file, UTF-8
 * \param options    what is known of the model; NULL where the file says it all
 * \param placement  receives the handle, which goes back by eplb_placement_destroy()
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_PLACEMENT naming the key, or layer, rank and slot; EPLB_STATUS_INVALID_SHAPE;
 *         EPLB_STATUS_INVALID_ARGUMENT where something is needed that the file does not say; EPLB_STATUS_READ_FAILED
 */
EPLB_API
eplb_status eplb_placement_load(const char *path,
                                const eplb_placement_load_options *options,
                                eplb_placement **placement);

/**
 * Writes the configuration file, to the byte as TensorRT-LLM's own script does.
 *
 * \param placement  the placement
 * \param path       the file, UTF-8; an existing one is replaced in one step: whenever the process dies, the old or the
 *                   new file is there, whole
 * \return EPLB_STATUS_OK; EPLB_STATUS_WRITE_FAILED; EPLB_STATUS_INVALID_ARGUMENT
 */
EPLB_API
eplb_status eplb_placement_save(const eplb_placement *placement,
                                const char *path);

/**
 * Lists what is wrong with a placement, by layer and slot. What would make it unusable (an expert that does not exist or
 * has no slot) was refused, with its place in the message, when the placement was made or loaded; what is listed here is
 * served, at a cost.
 *
 * \param placement   the placement
 * \param issues      receives the first `capacity` issues; may be NULL when capacity is 0
 * \param capacity    how many there is room for
 * \param num_issues  receives how many there are, which may be more than capacity
 * \return EPLB_STATUS_OK, however many issues there are; EPLB_STATUS_INVALID_ARGUMENT
 */
EPLB_API
eplb_status eplb_placement_validate(const eplb_placement *placement,
                                    eplb_placement_issue *issues,
                                    size_t capacity,
                                    size_t *num_issues);

/**
 * Tells the sizes of a placement.
 *
 * \param placement  the placement
 * \param info       from EPLB_PLACEMENT_INFO_INIT; receives the sizes, and an array that lives as long as the handle
 * \return EPLB_STATUS_OK or EPLB_STATUS_INVALID_ARGUMENT
 */
EPLB_API
eplb_status eplb_placement_get_info(const eplb_placement *placement,
                                    eplb_placement_info *info);

/**
 * Lends the expert of each slot of a layer.
 *
 * \param placement  the placement
 * \param layer      the layer's number
 * \param experts    receives int32 [num_slots], the handle's own, which lives as long as it does; -1 in slots that a rank
 *                   lacks, where slots_per_rank was given
 * \param num_slots  receives the length; may be NULL
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer
 */
EPLB_API
eplb_status eplb_placement_layer_experts(const eplb_placement *placement,
                                         int32_t layer,
                                         const int32_t **experts,
                                         size_t *num_slots);

/**
 * Lends the experts whose weights a rank must hold in a layer, in the order of its slots. An expert that stands twice
 * needs one copy of its weights only where the engine can serve two slots from it.
 *
 * \param placement       the placement
 * \param layer           the layer's number
 * \param rank            0 to num_ranks - 1
 * \param experts         receives int32 [slots_per_rank], the handle's own, which lives as long as it does
 * \param slots_per_rank  receives the length, this rank's own number of slots; may be NULL
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer or rank
 */
EPLB_API
eplb_status eplb_placement_rank_experts(const eplb_placement *placement,
                                        int32_t layer,
                                        uint32_t rank,
                                        const int32_t **experts,
                                        size_t *slots_per_rank);

/**
 * Lists the experts whose weights a rank must load for a layer, ascending and each once: those of
 * eplb_placement_rank_experts(), without the copies that an engine can serve from the same weights.
 *
 * \param placement    the placement
 * \param layer        the layer's number
 * \param rank         0 to num_ranks - 1
 * \param experts      receives the first `capacity` of them, int32; may be NULL where capacity is 0
 * \param capacity     room in experts; slots_per_rank is always enough
 * \param num_experts  receives how many there are
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer or rank
 */
EPLB_API
eplb_status eplb_placement_distinct_experts(const eplb_placement *placement,
                                            int32_t layer,
                                            uint32_t rank,
                                            int32_t *experts,
                                            size_t capacity,
                                            size_t *num_experts);

/**
 * A fingerprint of a placement that is equal on every rank and architecture; compare it over all ranks before the first
 * token. It is FNV-1a (64 bits) over little-endian 32-bit words: the numbers of experts, slots, ranks and layers, then
 * each layer's number and the experts of its slots.
 *
 * \param placement  the placement
 * \param hash       receives the fingerprint
 * \return EPLB_STATUS_OK or EPLB_STATUS_INVALID_ARGUMENT
 */
EPLB_API
eplb_status eplb_placement_hash(const eplb_placement *placement,
                                uint64_t *hash);

/**
 * Tells how evenly a placement would load the ranks in one layer, and how far that is from the best possible.
 *
 * \param placement    the placement
 * \param loads        [num_samples][num_experts], finite and not negative, in any unit
 * \param layer        the layer's number
 * \param num_samples  situations to average over, at least 1; see eplb_solve()
 * \param num_experts  that of the placement, as a check
 * \param evaluation   from EPLB_PLACEMENT_EVALUATION_INIT; receives the figures, in the unit of the loads
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_LOADS naming sample and expert; EPLB_STATUS_INVALID_ARGUMENT, also for an
 *         unknown layer
 */
EPLB_API
eplb_status eplb_placement_evaluate(const eplb_placement *placement,
                                    const double *loads,
                                    int32_t layer,
                                    size_t num_samples,
                                    size_t num_experts,
                                    eplb_placement_evaluation *evaluation);

/**
 * Tells which share of a layer's load a placement leaves outside its home: the load of replicas on another node than their
 * group's, over all load, an expert's split evenly over its replicas. A group's home is the node that carries most of its
 * load, of equal ones the lower.
 *
 * \param placement     the placement
 * \param loads         [num_samples][num_experts], finite and not negative, in any unit
 * \param layer         the layer's number
 * \param num_samples   situations to average over, at least 1; homes are those of all together
 * \param num_experts   that of the placement, as a check
 * \param num_groups    groups of consecutive experts, equally many in each
 * \param rank_to_node  the node of each rank, int32 [num_ranks], any ids
 * \param share         receives the share, 0 to 1; NaN where a sample has no load at all
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_SHAPE where the groups are not equally large; EPLB_STATUS_INVALID_LOADS naming
 *         sample and expert; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer
 */
EPLB_API
eplb_status eplb_placement_off_node_share(const eplb_placement *placement,
                                          const double *loads,
                                          int32_t layer,
                                          size_t num_samples,
                                          size_t num_experts,
                                          uint32_t num_groups,
                                          const int32_t *rank_to_node,
                                          double *share);

/**
 * Gives the handle back.
 *
 * \param placement  not to be used again, nor what it lent; NULL is allowed
 */
EPLB_API
void eplb_placement_destroy(eplb_placement *placement);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/* ----------------------------------------------------------------------------------------------------
 * Solving: loads to placement
 * ---------------------------------------------------------------------------------------------------- */

/** A rule for placing experts. */
enum eplb_policy
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * The best that the library has: today EPLB_POLICY_SEARCH. Name a policy where results must not change with a
   * later library.
   */
  EPLB_POLICY_DEFAULT = 0,
  /**
   * TensorRT-LLM's greedy, bit for bit. Each spare slot goes to the expert with the largest load per replica, ties to
   * the higher expert; then each replica, heaviest first, ties by expert, to the least loaded rank that has a free
   * slot, ties to the lower rank. Samples are added up and rounded to float32. It may put an expert twice on a rank.
   */
  EPLB_POLICY_TRTLLM = 1,
  /**
   * DeepSeek's greedy over all ranks, as its eplb.py with one group and one node. Each spare slot goes to the expert
   * with the largest load per replica; then each replica, heaviest first, to the least loaded rank that has a free
   * slot; with as many slots as ranks, each in the order of its creation. All ties go to the lower expert, replica and
   * rank. Samples are added up and rounded to float32, in which the rest is computed. It may put an expert twice on a
   * rank.
   */
  EPLB_POLICY_DEEPSEEK_GLOBAL = 2,
  /**
   * The same in two stages, for models that route each token to a few groups of experts: whole groups go to nodes,
   * heaviest first, each to the least loaded node that has room for it; then each node places its experts on its own
   * ranks. num_groups and num_nodes say how many there are. The groups must split evenly over the nodes, and so must
   * the experts over the groups and the ranks over the nodes. A group's load is the float32 sum of its experts, one
   * after the other.
   */
  EPLB_POLICY_DEEPSEEK_HIERARCHICAL = 3,
  /**
   * Replica counts and ranks chosen together: exchanges of slots and changes of counts from a first placement on, and from
   * others where that does not end near the lower bound that no placement is below, until none can be better by more than
   * one or two ten-thousandths, nothing helps, or the effort is spent. Of several samples it levels each: the mean over samples of the most
   * loaded rank's load over the mean rank load. In that, unless another objective, nodes or unequal ranks are asked for, it
   * is never above EPLB_POLICY_TRTLLM and EPLB_POLICY_DEEPSEEK_GLOBAL. An expert is twice on a rank only where the search finds
   * nothing as good otherwise.
   */
  EPLB_POLICY_SEARCH = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum eplb_policy eplb_policy;
#else
typedef int32_t eplb_policy;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** How an engine splits an expert's tokens over its replicas at run time, and so what EPLB_POLICY_SEARCH has to make small. */
enum eplb_objective
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /** Evenly, as EPLB_ROUTE_ROUND_ROBIN and EPLB_ROUTE_TOKEN_HASH do: the most loaded rank's load over the mean rank load. */
  EPLB_OBJECTIVE_EVEN_SPLIT = 0,
  /**
   * By need, as EPLB_ROUTE_LEAST_LOADED does, the default of routing: the same in the best possible split, where loads have
   * drifted from the planned ones.
   * Replicas then link ranks such that load can flow to wherever it turns out too small. The even split of the planned
   * loads stays within a hundredth of what EPLB_OBJECTIVE_EVEN_SPLIT finds, for times when the engine has to fall back to
   * it. Takes some hundreds of times as long, 20 to 40 ms for a layer of 256 experts, which is why it is not the default. Not with
   * an off_node_price.
   */
  EPLB_OBJECTIVE_BEST_SPLIT = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum eplb_objective eplb_objective;
#else
typedef int32_t eplb_objective;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** How to solve. Initialise with EPLB_SOLVE_CONFIG_INIT; zero is a field's default where it has one. */
typedef struct eplb_solve_config {
  /** sizeof(eplb_solve_config) */
  size_t struct_size;
  /** An eplb_policy. */
  int32_t policy;
  /** Ranks of the expert-parallel group. Must be given. */
  uint32_t num_ranks;
  /** Slots of all ranks together, a multiple of the ranks and not below the experts; 0: one an expert. */
  uint32_t num_slots;
  /** Threads that solve, layers in parallel; 0: one a core, at most 8. Results do not depend on it. */
  uint32_t num_threads;
  /**
   * Groups of experts, of consecutive experts and equally large; 0: one. For EPLB_POLICY_DEEPSEEK_HIERARCHICAL, and for
   * EPLB_POLICY_SEARCH with an off_node_price; otherwise ignored.
   */
  uint32_t num_groups;
  /** Nodes, of consecutive ranks and equally large; 0: one. As num_groups. */
  uint32_t num_nodes;
  /**
   * How many exchanges, about, EPLB_POLICY_SEARCH looks at for each slot before it is content with what it has, and again as
   * many where that is far above the lower bound; 0: 200, beyond which there is mostly little to gain. Not time, so that
   * results repeat.
   */
  size_t effort;
  /**
   * In place of num_nodes, for EPLB_POLICY_SEARCH: the node of each rank, int32 [num_ranks], any ids, nodes of any size;
   * NULL: as num_nodes says.
   */
  const int32_t *rank_to_node;
  /**
   * For EPLB_POLICY_SEARCH: what load on another node than its group's home costs; not negative. 0: nodes are no matter.
   * Otherwise each group of experts has a home node in each layer, and what is to be small is the most loaded rank's load
   * over the mean rank load, plus this times the share of all load that is not at home. Infinity keeps every replica at
   * home, DeepSeek's hard rule. See eplb_placement_off_node_share().
   */
  double off_node_price;
  /**
   * For EPLB_POLICY_SEARCH: what each sample counts for, double [num_samples], finite, not negative and not all zero; only
   * ratios matter. NULL: the same.
   */
  const double *sample_weights;
  /**
   * For EPLB_POLICY_SEARCH: in place of the mean over samples, what samples of at least this part of all weight do not
   * exceed: above 0, at most 1, such as .5 for the median or 1 for the worst sample. 0: the mean.
   */
  double quantile;
  /**
   * For EPLB_OBJECTIVE_BEST_SPLIT: how far an expert's load may drift from the planned one, as the standard deviation of its
   * natural logarithm, at most 2. 0: .2; negative: not at all, plan for these loads alone.
   */
  double drift;
  /** For EPLB_POLICY_SEARCH: an eplb_objective, by how the engine splits tokens at run time. */
  int32_t objective;
  /** Must be 0. */
  uint32_t reserved;
  /**
   * For EPLB_POLICY_SEARCH: the slots of each rank, int32 [num_ranks], at least 1; NULL: num_slots / num_ranks each.
   * num_slots is then 0 or the largest of them times num_ranks, since slots are numbered as if all ranks had as many as
   * the one with the most: those that a rank lacks are its last and hold -1. Dispatch serves such a placement; a
   * configuration file cannot hold it. Not with an off_node_price.
   */
  const int32_t *slots_per_rank;
} eplb_solve_config;
/** An eplb_solve_config with every default. */
#define EPLB_SOLVE_CONFIG_INIT { sizeof(eplb_solve_config), 0, 0, 0, 0, 0, 0, 0, NULL, 0, NULL, 0, 0, 0, 0, NULL }

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Decides which expert each slot holds, so that the ranks carry equal load.
 *
 * \param config       from EPLB_SOLVE_CONFIG_INIT, with the ranks filled in
 * \param loads        [num_layers][num_samples][num_experts], finite and not negative, in any unit
 * \param layer_ids    int32 [num_layers], the model's own layer numbers, each once
 * \param num_layers   at least 1
 * \param num_samples  at least 1. A sample is one situation that the placement should be good for: an iteration, or a
 *                     workload
 * \param num_experts  experts of each layer
 * \param placement    receives the handle, which goes back by eplb_placement_destroy()
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_SHAPE with the nearest valid numbers of slots in the message, or with what
 *         does not split evenly over groups or nodes; EPLB_STATUS_INVALID_LOADS naming layer, sample and expert;
 *         EPLB_STATUS_INVALID_ARGUMENT, also for weights or a price that are none
 */
EPLB_API
eplb_status eplb_solve(const eplb_solve_config *config,
                       const double *loads,
                       const int32_t *layer_ids,
                       size_t num_layers,
                       size_t num_samples,
                       size_t num_experts,
                       eplb_placement **placement);

/**
 * Solves by DeepSeek's rules and gives the three arrays of its rebalance_experts(), for code written for eplb.py. A
 * program that is not can call eplb_solve() with the same policies.
 *
 * In place of `weight, num_replicas, num_groups, num_nodes, num_gpus` there are loads and the config's num_slots,
 * num_groups, num_nodes and num_ranks. Its policy is EPLB_POLICY_DEEPSEEK_GLOBAL, EPLB_POLICY_DEEPSEEK_HIERARCHICAL or
 * EPLB_POLICY_DEFAULT, which here is eplb.py's own choice: hierarchical where the groups split evenly over the nodes,
 * global where they do not.
 *
 * \param config        from EPLB_SOLVE_CONFIG_INIT, with the ranks filled in
 * \param loads         [num_layers][num_experts], finite and not negative, in any unit
 * \param num_layers    at least 1; errors name layers by their index
 * \param num_experts   experts of each layer
 * \param max_replicas  room for the slots of each expert in log2phy; num_slots - num_experts + 1 is always enough
 * \param phy2log       int32 [num_layers][num_slots], receives the expert of each slot
 * \param log2phy       int32 [num_layers][num_experts][max_replicas], receives the slots of each expert in the order in
 *                      which its replicas were created, padded with -1
 * \param logcnt        int32 [num_layers][num_experts], receives the number of replicas of each expert
 * \return as eplb_solve(); EPLB_STATUS_INVALID_ARGUMENT also where an expert has more than max_replicas, with the number
 *         that is enough in the message, and for another policy. Nothing is written then.
 */
EPLB_API
eplb_status eplb_deepseek_rebalance(const eplb_solve_config *config,
                                    const double *loads,
                                    size_t num_layers,
                                    size_t num_experts,
                                    size_t max_replicas,
                                    int32_t *phy2log,
                                    int32_t *log2phy,
                                    int32_t *logcnt);

/**
 * Finds the valid numbers of slots nearest to a wanted one: multiples of the ranks that are not below the experts.
 *
 * \param num_experts  experts of a layer
 * \param num_ranks    ranks of the expert-parallel group
 * \param num_slots    the wanted number, of all ranks together
 * \param below        receives the largest valid number that is not above num_slots, 0 where there is none
 * \param above        receives the smallest valid number that is not below num_slots, 0 where there is none within the
 *                     library's limit of 1,048,576; equal to below where num_slots is valid itself
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT for no experts or no ranks
 */
EPLB_API
eplb_status eplb_suggest_num_slots(uint32_t num_experts,
                                   uint32_t num_ranks,
                                   uint32_t num_slots,
                                   uint32_t *below,
                                   uint32_t *above);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/* ----------------------------------------------------------------------------------------------------
 * Generating: a dump directory to a configuration file (step 2 as a whole)
 * ---------------------------------------------------------------------------------------------------- */

/** What eplb_generate() is doing. */
enum eplb_phase
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /** Reading the dump; counted in bytes. */
  EPLB_PHASE_READ = 0,
  /** Placing experts; counted in layers. */
  EPLB_PHASE_SOLVE = 1,
  /** Writing the configuration file; counted in files. */
  EPLB_PHASE_WRITE = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum eplb_phase eplb_phase;
#else
typedef int32_t eplb_phase;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Hears how far eplb_generate() is, on the thread that called it. Must not throw.
 *
 * \param user_data  that of the config
 * \param phase      what is being done
 * \param done       how much of the phase is done, in its unit
 * \param total      how much there is to do, in the same unit
 * \return 0 to go on; anything else cancels, which leaves an existing configuration file as it is
 */
typedef int32_t (*eplb_progress_callback)(void *user_data,
                                          eplb_phase phase,
                                          uint64_t done,
                                          uint64_t total);

/**
 * What to generate. Initialise with EPLB_GENERATE_CONFIG_INIT; zero is a field's default where it has one. Defaults are
 * those of TensorRT-LLM's script.
 */
typedef struct eplb_generate_config {
  /** sizeof(eplb_generate_config) */
  size_t struct_size;
  /** Directory of the dump, UTF-8. Must be given. */
  const char *expert_statistic_path;
  /** Configuration file to write, UTF-8. Must be given. An existing file is replaced in one step. */
  const char *output_path;
  /** Ranks to place the experts on (the EP size); 0: as many as dumped. */
  uint32_t num_ranks;
  /** Slots of all ranks together, a multiple of the ranks and not below the experts; 0: one an expert. */
  uint32_t num_slots;
  /** First iteration to use; 0: from the start of the dump. */
  int64_t iter_start;
  /** First iteration not to use any more; 0: to the end of the dump. */
  int64_t iter_stop;
  /** An eplb_policy. */
  int32_t policy;
  /** Layers that an engine with an online balancer moves an iteration; written to the file as it is. */
  uint32_t layer_updates_per_iter;
  /** Not 0: take a dump in which the files of some ranks are missing. */
  uint32_t allow_missing_ranks;
  /** Threads to use; 0: one a core, at most 8. Results do not depend on it. */
  uint32_t num_threads;
  /**
   * Ranks that the run had, so that a loss of any is noticed; 0: what the dump says. TensorRT-LLM's dumps do not say
   * it: of theirs, a loss of the highest ranks goes unnoticed with 0.
   */
  size_t expected_ranks;
  /** Hears how far the work is; may be NULL. */
  eplb_progress_callback progress;
  /** Handed to each call of `progress`. */
  void *user_data;
  /** As eplb_solve_config has it: groups of experts; 0: one. */
  uint32_t num_groups;
  /** As eplb_solve_config has it: nodes; 0: one. */
  uint32_t num_nodes;
  /** As eplb_solve_config has it: the search's effort; 0: the default. */
  size_t effort;
  /**
   * Samples for EPLB_POLICY_SEARCH to level each of: groups of iterations that follow each other, as even as can be; 0: 16;
   * fewer where there are fewer iterations. The other policies go by the sum.
   */
  size_t num_samples;
  /** As eplb_solve_config has it: the node of each rank, int32 [num_ranks], which then must be given; NULL: as num_nodes says. */
  const int32_t *rank_to_node;
  /** As eplb_solve_config has it: what load off its node costs; 0: nothing. */
  double off_node_price;
  /** As eplb_solve_config has it: a quantile of the samples; 0: their mean. */
  double quantile;
  /** As eplb_solve_config has it: how far loads may drift, for EPLB_OBJECTIVE_BEST_SPLIT; 0: .2, negative: not at all. */
  double drift;
  /** As eplb_solve_config has it: an eplb_objective. */
  int32_t objective;
  /** Must be 0. */
  uint32_t reserved;
} eplb_generate_config;
/** An eplb_generate_config with every default. */
#define EPLB_GENERATE_CONFIG_INIT { sizeof(eplb_generate_config), NULL, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, 0, 0, 0, 0, NULL, 0, 0, 0, 0, 0 }

/** What eplb_generate() made. Initialise with EPLB_GENERATE_REPORT_INIT. */
typedef struct eplb_generate_report {
  /** sizeof(eplb_generate_report) */
  size_t struct_size;
  /** Ranks placed for. */
  uint32_t num_ranks;
  /** Slots of all ranks together. */
  uint32_t num_slots;
  /** Experts of a layer. */
  uint32_t num_experts;
  /** Layers placed. */
  uint32_t num_layers;
  /** First iteration used. */
  int64_t iter_start;
  /** The one after the last. */
  int64_t iter_stop;
  /** Ranks of the dump whose file is missing. */
  uint32_t num_missing_ranks;
  /** Slots that repeat an expert of their own rank. */
  uint32_t num_duplicates;
  /**
   * (max - mean) / mean of the ranks' tokens without a load balancer: taken per layer and iteration, averaged over
   * iterations, then over layers. NaN where no layer has tokens in every iteration.
   */
  double imbalance_before;
  /** The same with the placement, an expert's tokens split evenly over its replicas. */
  double imbalance_after;
  /** eplb_placement_hash() of the placement. */
  uint64_t hash;
  /** As eplb_placement_off_node_share() has it, averaged over layers. NaN where nodes are no matter to the policy. */
  double off_node_share;
} eplb_generate_report;
/** An eplb_generate_report with every default. */
#define EPLB_GENERATE_REPORT_INIT { sizeof(eplb_generate_report), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Reads a dump, places its experts and writes the configuration file: step 2 as a whole.
 *
 * \param config  from EPLB_GENERATE_CONFIG_INIT, with both paths filled in
 * \param report  from EPLB_GENERATE_REPORT_INIT; may be NULL
 * \return EPLB_STATUS_OK, and the file is there, whole and synced to disk; otherwise a file of that name is as it was:
 *         what eplb_stats_load() and eplb_solve() return, EPLB_STATUS_WRITE_FAILED or EPLB_STATUS_CANCELLED
 */
EPLB_API
eplb_status eplb_generate(const eplb_generate_config *config,
                          eplb_generate_report *report);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/* ----------------------------------------------------------------------------------------------------
 * Exchange: counts and placements in files of other systems
 * ---------------------------------------------------------------------------------------------------- */

/** Formats of counts, below 100, and of placements. docs/exchange.md says what each one is and where it is from. */
enum eplb_file_format
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /** What the file says it is. An array alone does not say it, and nothing can be written so. */
  EPLB_FILE_FORMAT_DETECT = 0,
  /** A dump directory, eplb's own or TensorRT-LLM's. */
  EPLB_FILE_FORMAT_DUMP = 1,
  /** SGLang's {"logical_count": [steps][layers][experts]} in JSON, or without steps. */
  EPLB_FILE_FORMAT_SGLANG_COUNT = 2,
  /** What SGLang's recorder writes in its mode stat, the same as a PyTorch file. Only read, its pickle not executed. */
  EPLB_FILE_FORMAT_SGLANG_PT = 3,
  /** LMDeploy's [layers][experts] in JSON. Of several iterations the sum is written. */
  EPLB_FILE_FORMAT_LMDEPLOY = 4,
  /** A NumPy array, [layers][experts] or [iterations][layers][experts]. */
  EPLB_FILE_FORMAT_NPY = 5,
  /** The configuration file, eplb's own and TensorRT-LLM's. */
  EPLB_FILE_FORMAT_CONFIG = 100,
  /** SGLang's {"physical_to_logical_map": [layers][slots]} in JSON. */
  EPLB_FILE_FORMAT_SGLANG_MAP = 101,
  /** The expert map of vllm-ascend and MindIE. */
  EPLB_FILE_FORMAT_EXPERT_MAP = 102,
  /** DeepSeek's phy2log as a NumPy array, [layers][slots]. */
  EPLB_FILE_FORMAT_PHY2LOG_NPY = 103,
  /** DeepSeek's phy2log in JSON. */
  EPLB_FILE_FORMAT_PHY2LOG_JSON = 104,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum eplb_file_format eplb_file_format;
#else
typedef int32_t eplb_file_format;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A file's format, and what is known of its model, since most files do not say it. Initialise with EPLB_FILE_OPTIONS_INIT; zero
 * is every field's default.
 */
typedef struct eplb_file_options {
  /** sizeof(eplb_file_options) */
  size_t struct_size;
  /**
   * The layers with experts: int32 [num_layers]. Of a file that has as many rows they are the rows in this order; of one with
   * more rows, row i is layer i, and other rows are dense layers. NULL: row i is layer i, and in counts rows that are all
   * zero are dense layers.
   */
  const int32_t *layer_ids;
  /** Length of layer_ids. */
  size_t num_layers;
  /** The format: an eplb_file_format. */
  int32_t format;
  /**
   * Layers of the model, dense ones among them, for SGLang's and LMDeploy's formats, which are written with a row for each;
   * 0: up to the last layer with experts.
   */
  uint32_t num_model_layers;
  /** Experts of a layer, as a check; 0: as many as the file has. */
  uint32_t num_experts;
  /** Ranks (the EP size) of a placement; 0: what the file says, which only expert maps and some configuration files do. */
  uint32_t num_ranks;
  /** Slots of all ranks together of a placement, as a check; 0: as many as the file has. */
  uint32_t num_slots;
  /** Experts that each token chooses, which only dumps say; needed where one is to be written. */
  uint32_t experts_per_token;
} eplb_file_options;
/** An eplb_file_options with every default. */
#define EPLB_FILE_OPTIONS_INIT { sizeof(eplb_file_options), NULL, 0, 0, 0, 0, 0, 0, 0 }

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Reads counts from a file of another system, or from a dump. Steps become iterations from 0 on, of one rank.
 *
 * \param path     the file, or the directory of a dump, UTF-8
 * \param options  may be NULL: the file says its format and its layers
 * \param stats    receives the handle, which goes back by eplb_stats_destroy()
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_DUMP with a message naming the place; EPLB_STATUS_INCOMPLETE_DUMP;
 *         EPLB_STATUS_READ_FAILED; EPLB_STATUS_INVALID_ARGUMENT, also for a format of placements, and for an array that does not
 *         say what it holds
 */
EPLB_API
eplb_status eplb_stats_load_file(const char *path,
                                 const eplb_file_options *options,
                                 eplb_stats **stats);

/**
 * Reads a placement from a file of another system, or from a configuration file.
 *
 * \param path       the file, UTF-8
 * \param options    may be NULL where the file says it all
 * \param placement  receives the handle, which goes back by eplb_placement_destroy()
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_PLACEMENT naming the place, or layer, rank and slot; EPLB_STATUS_INVALID_SHAPE;
 *         EPLB_STATUS_READ_FAILED; EPLB_STATUS_INVALID_ARGUMENT, also for a format of counts, for an array that does not say what
 *         it holds, and where the EP size is needed
 */
EPLB_API
eplb_status eplb_placement_load_file(const char *path,
                                     const eplb_file_options *options,
                                     eplb_placement **placement);

/**
 * Writes counts to a file of another system, or as a dump of one rank.
 *
 * \param stats    the counts
 * \param path     the file, UTF-8; an existing one is replaced in one step. For a dump a directory, in which there is none yet
 * \param options  with the format filled in, any of counts but EPLB_FILE_FORMAT_SGLANG_PT
 * \return EPLB_STATUS_OK; EPLB_STATUS_WRITE_FAILED; EPLB_STATUS_INVALID_DUMP for counts of slots; EPLB_STATUS_INVALID_ARGUMENT,
 *         also for a format of placements
 */
EPLB_API
eplb_status eplb_stats_save_file(const eplb_stats *stats,
                                 const char *path,
                                 const eplb_file_options *options);

/**
 * Writes a placement to a file of another system, or as a configuration file.
 *
 * \param placement  the placement
 * \param path       the file, UTF-8; an existing one is replaced in one step
 * \param options    with the format filled in, any of placements
 * \return EPLB_STATUS_OK; EPLB_STATUS_WRITE_FAILED; EPLB_STATUS_INVALID_ARGUMENT, also for a format of counts
 */
EPLB_API
eplb_status eplb_placement_save_file(const eplb_placement *placement,
                                     const char *path,
                                     const eplb_file_options *options);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/* ----------------------------------------------------------------------------------------------------
 * Dispatch: expert ids to slot ids (step 3)
 * ---------------------------------------------------------------------------------------------------- */

/**
 * Which of an expert's slots serves a token. E experts, S slots, R ranks of S/R slots, K ids a token; the ids of a call,
 * [num_tokens][K], are numbered row by row: number i is of token i / K. The replicas of an expert are its slots in ascending
 * order, replica 0 to count - 1. Whatever the rule: an id outside [0, E), and every id of a token at or after num_valid, gives
 * slot S, which no rank owns; and an expert with one slot gets that slot.
 *
 * A rule is rank-invariant if every rank computes the same slots from the same ids. Engines that route all tokens on every
 * rank, without an all-to-all, need one that is.
 */
enum eplb_route
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /** EPLB_ROUTE_LEAST_LOADED: it is the one that makes the ranks most even of those that need no communication. */
  EPLB_ROUTE_DEFAULT = 0,
  /**
   * TensorRT-LLM's: replica (k + i / 1024 + offset) mod count, where k is how many ids with a lower number in the same block
   * of 1024 ids (the same i / 1024, rounded down) name the same expert, and offset is the rank if offset_by_rank is set,
   * otherwise 0. Rank-invariant without the offset.
   */
  EPLB_ROUTE_ROUND_ROBIN = 1,
  /** vLLM's: for the token in row t, replica ((t x 2654435769) mod 2^32) mod count. Rank-invariant. */
  EPLB_ROUTE_TOKEN_HASH = 2,
  /**
   * Own rank first, then own node, then the rest, by shares that are fixed at create. If every rank had as many tokens of the
   * expert, these shares would have each replica serve 5/4 of its fair share at most; subject to that, as many tokens as can be
   * stay on their rank, and of the others as many as can be on their node. Each rank has 4 x count x 2^20 units of the expert,
   * and a replica takes 5 x R x 2^20 at most. First each rank deals its units to its own replicas, as many as they can
   * take; then the ranks of each node, in ascending order of the nodes that have replicas, what they have left to the replicas of
   * the node, as many as these can take; then all ranks the rest to all replicas. Units are dealt as EPLB_ROUTE_LEAST_LOADED pours
   * tokens, onto the units that the replicas have by then, and what is left goes one each to those that were reached, in
   * ascending order. Of what a replica got in a step, this rank's part is its units over those of all ranks that wanted to
   * deal them, rounded down; where a node could take d of the w units of its ranks, a rank that had u is left with
   * u x (w - d) / w, rounded down. With t[j] the units of this rank on replicas 0 to j over those on all, times 2^32 and rounded
   * down, k as for EPLB_ROUTE_ROUND_ROBIN, and p = ((k + i / 1024 + rank) x 2654435769) mod 2^32, it is the first replica with
   * p < t[j], or the last: a sequence that keeps the shares closely for any number of tokens. Not rank-invariant.
   */
  EPLB_ROUTE_NEAREST = 3,
  /**
   * This rank deals its own batch so that the ranks it sends to get equally much, as far as can be; where
   * eplb_dispatch_register_rank_counts() names all ranks' counts, the totals of all of them. The tokens T[e] of each expert
   * are counted, those of experts with one slot are put on its rank, and then the others are dealt one expert after the
   * other, by the number of ranks that hold them, fewest first, and then by id. An expert's tokens are poured like water over the
   * g ranks that hold it: with h the greatest height for which the sum of max(0, h - load) over these ranks is at most T[e], each
   * rank below h gets h - load, and what is left goes one token each to ranks with load <= h, starting with the one at place
   * T[e] mod g of these g in ascending order, and round. When all are dealt, each in turn is taken back and dealt again, until
   * nothing changes or three more times. The tokens of an expert in ascending number go to its ranks in ascending order, as many
   * as they got; of c replicas on one rank with quota q, the first j get q x j / c, rounded up. With the counts of all ranks,
   * T[e] is their sum, and the ranks' tokens are numbered one rank after the other; a token beyond what the rank counted goes to
   * replica k mod count, k being its number among the expert's tokens on this rank. Counts are clamped to [0, 2^31).
   * Rank-invariant without the counts of all ranks.
   */
  EPLB_ROUTE_LEAST_LOADED = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum eplb_route eplb_route;
#else
typedef int32_t eplb_route;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Turns the router's expert ids into slot ids, on a device and in the order of the engine's streams.
 *
 * All memory is taken at create and stays where it is until destroy, so that CUDA graphs may hold on to it: for each layer
 * int32 replica_count[E], replica_start[E] and slot_ids[S], a dense map if asked for, and what the rule needs beside them,
 * which for EPLB_ROUTE_LEAST_LOADED on a CUDA device is some 64 x E x 4 bytes.
 *
 * Any thread may call. On the host, calls for one layer take turns. On a CUDA device, work of EPLB_ROUTE_LEAST_LOADED for one
 * layer uses that layer's workspace, so each must be ordered after the one before, by a stream or an event; where two batches
 * are in one layer at once, each has a dispatch of its own. Work that is not ordered so still gives only slots that hold the
 * expert, but not those of the rule.
 */
typedef struct eplb_dispatch eplb_dispatch;

/** How a placement is served. Initialise with EPLB_DISPATCH_CONFIG_INIT. Zero is a field's default where it has one. */
typedef struct eplb_dispatch_config {
  /** sizeof(eplb_dispatch_config) */
  size_t struct_size;
  /** This rank of the expert-parallel group. */
  uint32_t rank;
  /** Ranks of the group, as a check against the placement. Must be given. */
  uint32_t num_ranks;
  /** Experts that each token chooses (the router's top-k). Must be given. */
  uint32_t experts_per_token;
  /**
   * Width of the dense map, not below the largest number of slots that an expert has, nor above num_slots; 0: no dense map. Fixed by the engine, a
   * later placement fits kernels compiled for it.
   */
  uint32_t max_replicas;
  /** The layers that this rank routes, by the model's numbers: int32 [num_layers]; each must be in the placement. NULL: all. */
  const int32_t *layer_ids;
  /** Length of layer_ids. */
  size_t num_layers;
  /** The node of each rank, in any numbering: int32 [num_ranks], for EPLB_ROUTE_NEAREST. NULL: all ranks are on one node. */
  const int32_t *rank_to_node;
  /**
   * Where ids, slots and tables are: EPLB_DEVICE_HOST, which is the default of _INIT; EPLB_DEVICE_CURRENT; or the ordinal of a
   * CUDA device, of which 0 is one.
   */
  int32_t device;
  /** An eplb_route. */
  int32_t rule;
  /**
   * Not 0: EPLB_ROUTE_ROUND_ROBIN adds the rank, as TensorRT-LLM does on request, so that ranks do not all begin with the
   * same replica.
   */
  uint32_t offset_by_rank;
  /** Slots of all ranks together, as a check against the placement; 0: not checked. */
  uint32_t num_slots;
  /**
   * Memory of the device to use instead of the library's own, aligned to 16 bytes, at least as large as
   * eplb_dispatch_memory_required() says; yours, and used until the dispatch is destroyed. Creating the dispatch writes it, in
   * the order of no stream of yours: what was to be done with it must have been done. A later placement of the same shape
   * has its tables at the same addresses in it. May be NULL.
   */
  void *workspace;
  /** Bytes of `workspace`. */
  size_t workspace_bytes;
} eplb_dispatch_config;
/** An eplb_dispatch_config with every default. */
#define EPLB_DISPATCH_CONFIG_INIT { sizeof(eplb_dispatch_config), 0, 0, 0, 0, NULL, 0, NULL, EPLB_DEVICE_HOST, 0, 0, 0, NULL, 0 }

/**
 * A layer's tables, for the engine's own kernels. Initialise with EPLB_DISPATCH_TABLES_INIT. The arrays are memory of the
 * dispatch's device, belong to the handle, never move or change, and live as long as it does.
 */
typedef struct eplb_dispatch_tables {
  /** sizeof(eplb_dispatch_tables) */
  size_t struct_size;
  /** Slots of each expert: int32 [num_experts]. */
  const int32_t *replica_count;
  /** Where an expert's slots begin in slot_ids: int32 [num_experts]. */
  const int32_t *replica_start;
  /** The slots of expert 0, ascending, then those of expert 1, and so on: int32 [num_slots]. */
  const int32_t *slot_ids;
  /** The slots of each expert, padded with -1: int32 [num_experts][max_replicas]. NULL where max_replicas is 0. */
  const int32_t *expert_slots;
  /** Experts. */
  uint32_t num_experts;
  /** Slots of all ranks together; as a slot id, the one that no rank owns. */
  uint32_t num_slots;
  /** Width of expert_slots; 0: there is none. */
  uint32_t max_replicas;
  /** Slots of a rank: rank r owns slots r x slots_per_rank and those after. */
  uint32_t slots_per_rank;
  /** Bytes of the tables that the handle holds on its device, for all layers: eplb_dispatch_memory_required(). */
  uint64_t memory_bytes;
} eplb_dispatch_tables;
/** An eplb_dispatch_tables with every default. */
#define EPLB_DISPATCH_TABLES_INIT { sizeof(eplb_dispatch_tables), NULL, NULL, NULL, NULL, 0, 0, 0, 0, 0 }

/** What a dispatch serves, and how. Initialise with EPLB_DISPATCH_INFO_INIT. */
typedef struct eplb_dispatch_info {
  /** sizeof(eplb_dispatch_info) */
  size_t struct_size;
  /**
   * eplb_placement_hash() of the placement that it was created from: ranks that differ send tokens to experts that are not
   * there.
   */
  uint64_t placement_hash;
  /** Bytes of the tables on the device, for all layers: eplb_dispatch_memory_required(). */
  uint64_t memory_bytes;
  /** The rule of routing: an eplb_route, and never EPLB_ROUTE_DEFAULT. */
  int32_t rule;
  /** This rank of the expert-parallel group. */
  uint32_t rank;
  /** Ranks of the group. */
  uint32_t num_ranks;
  /** Experts of a layer. */
  uint32_t num_experts;
  /** Slots of all ranks together. */
  uint32_t num_slots;
  /** Slots of one rank. */
  uint32_t slots_per_rank;
  /** Experts that each token chooses. */
  uint32_t experts_per_token;
  /** Width of the dense map; 0: there is none. */
  uint32_t max_replicas;
  /** Layers that are routed. */
  uint32_t num_layers;
  /** Layers for which eplb_dispatch_register_rank_counts() has named the counts of all ranks. */
  uint32_t num_layers_with_rank_counts;
} eplb_dispatch_info;
/** An eplb_dispatch_info with every default. */
#define EPLB_DISPATCH_INFO_INIT { sizeof(eplb_dispatch_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The memory of its tables that a dispatch takes on its device, before it is created: as much for every placement with as many
 * experts, slots, ranks and layers. On a CUDA device it takes no more. On EPLB_DEVICE_HOST the library keeps what it routes by
 * beside the tables, in memory of its own: some two to twelve times as much.
 *
 * \param placement        that of eplb_dispatch_create()
 * \param config           that of eplb_dispatch_create(); the workspace is not looked at
 * \param workspace_bytes  receives the bytes
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT or EPLB_STATUS_OUT_OF_MEMORY for what no dispatch could be created with
 */
EPLB_API
eplb_status eplb_dispatch_memory_required(const eplb_placement *placement,
                                          const eplb_dispatch_config *config,
                                          size_t *workspace_bytes);

/**
 * Makes the tables of a placement on a device. The primary context of a device given by its ordinal is retained until
 * eplb_dispatch_destroy().
 *
 * \param placement  the placement, which may be destroyed afterwards
 * \param config     from EPLB_DISPATCH_CONFIG_INIT; what it points to is copied, but for the workspace
 * \param dispatch   receives the handle, which goes back by eplb_dispatch_destroy()
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also where the placement is for other ranks, or lacks a layer, which is
 *         named; EPLB_STATUS_OUT_OF_MEMORY; EPLB_STATUS_NO_DRIVER; EPLB_STATUS_CUDA
 */
EPLB_API
eplb_status eplb_dispatch_create(const eplb_placement *placement,
                                 const eplb_dispatch_config *config,
                                 eplb_dispatch **dispatch);

/**
 * Lends a layer's tables to the engine's own kernels.
 *
 * \param dispatch  the dispatch
 * \param layer     the layer's number
 * \param tables    from EPLB_DISPATCH_TABLES_INIT; receives addresses on the dispatch's device, and sizes
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer
 */
EPLB_API
eplb_status eplb_dispatch_get_tables(const eplb_dispatch *dispatch,
                                     int32_t layer,
                                     eplb_dispatch_tables *tables);

/**
 * Tells what a dispatch serves, and how. Looks at nothing on the device. How many tokens were routed it cannot tell: no call
 * counts them but eplb_dispatch_route_and_count(), for its recorder.
 *
 * \param dispatch  the dispatch
 * \param info      from EPLB_DISPATCH_INFO_INIT; receives the numbers
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT
 */
EPLB_API
eplb_status eplb_dispatch_get_info(const eplb_dispatch *dispatch,
                                   eplb_dispatch_info *info);

/**
 * Names the place where all ranks' counts of a layer are whenever that layer is routed, for EPLB_ROUTE_LEAST_LOADED to level the
 * totals of all ranks: an engine that has gathered them, to size its all-to-all for one, has them anyway. All ranks must have
 * the same counts. CUDA graphs that were captured before keep what they were captured with.
 *
 * \param dispatch     the dispatch
 * \param layer        the layer's number
 * \param rank_counts  device memory, [num_ranks][num_experts], `dtype`: ids of valid tokens by rank and expert; yours, and must
 *                     live while it is used. NULL: none any more
 * \param dtype        an eplb_dtype
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer, another rule, and memory that the device
 *         cannot read; EPLB_STATUS_CUDA
 */
EPLB_API
eplb_status eplb_dispatch_register_rank_counts(eplb_dispatch *dispatch,
                                               int32_t layer,
                                               const void *rank_counts,
                                               int32_t dtype);

/**
 * Routes tokens of one layer to slots. Hot: may be captured by a CUDA graph, which then routes the same buffers at each replay;
 * how many tokens are valid is read anew each time.
 *
 * \param dispatch    the dispatch
 * \param layer       the layer's number
 * \param expert_ids  device memory, [num_tokens][experts_per_token], `dtype`
 * \param dtype       an eplb_dtype, of both arrays
 * \param num_tokens  tokens in the buffer, padding included; at most 2^31 - 1 ids
 * \param num_valid   device memory, int32: how many of the tokens are valid; the others get slot num_slots; NULL: all
 * \param slot_ids    device memory, same shape and type; may be expert_ids, but not overlap it otherwise. Memory that the device
 *                    cannot reach is not noticed here: the kernel would fault
 * \param stream      ordered after the router's work
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer; EPLB_STATUS_CUDA
 */
EPLB_API
eplb_status eplb_dispatch_route(const eplb_dispatch *dispatch,
                                int32_t layer,
                                const void *expert_ids,
                                int32_t dtype,
                                uint32_t num_tokens,
                                const int32_t *num_valid,
                                void *slot_ids,
                                struct CUstream_st *stream);

/**
 * As eplb_dispatch_route(), and counts in the same pass what the recorder counts: the experts that the tokens chose, or, where
 * its config says EPLB_COUNTED_SLOTS, the slots they are sent to. Hot, as both are by themselves.
 *
 * \param dispatch    the dispatch
 * \param recorder    on the same device, with the same experts_per_token, and of as many experts, or slots, as the placement
 * \param layer       the layer's number, in both
 * \param expert_ids  as for eplb_dispatch_route()
 * \param dtype       as for eplb_dispatch_route()
 * \param num_tokens  as for eplb_dispatch_route()
 * \param num_valid   as for eplb_dispatch_route(); padding is not counted
 * \param slot_ids    as for eplb_dispatch_route()
 * \param stream      ordered after the router's work and after eplb_recorder_begin_iteration()
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for a recorder that does not fit, and nothing is routed;
 *         EPLB_STATUS_CUDA
 */
EPLB_API
eplb_status eplb_dispatch_route_and_count(const eplb_dispatch *dispatch,
                                          eplb_recorder *recorder,
                                          int32_t layer,
                                          const void *expert_ids,
                                          int32_t dtype,
                                          uint32_t num_tokens,
                                          const int32_t *num_valid,
                                          void *slot_ids,
                                          struct CUstream_st *stream);

/**
 * Tells what each rank would carry in a layer by a rule of routing: the number to hold against what is measured, for one rank's
 * batch or for all. Of EPLB_ROUTE_LEAST_LOADED it is exact for one batch a rank; of the other rules it is the share that each
 * replica has in the long run. Of recorded ids eplb_dispatch_routed_load() tells it exactly, whatever the rule.
 *
 * \param placement         the placement
 * \param config            as for eplb_dispatch_create(); rule, num_ranks and rank_to_node are looked at
 * \param layer             the layer's number
 * \param rank_counts       int64 [num_ranks][num_experts]: how often the tokens of each rank chose each expert
 * \param with_rank_counts  not 0: EPLB_ROUTE_LEAST_LOADED knows the counts of all ranks
 * \param rank_loads        receives the tokens that each rank gets: [num_ranks]
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer, and for a count below 0 or from 2^31 on, whose
 *         rank and expert are named
 */
EPLB_API
eplb_status eplb_dispatch_expected_load(const eplb_placement *placement,
                                        const eplb_dispatch_config *config,
                                        int32_t layer,
                                        const int64_t *rank_counts,
                                        int32_t with_rank_counts,
                                        double *rank_loads);

/**
 * Tells what each rank gets of recorded ids in a layer: one batch of each rank, routed one by one as its dispatch would. Ids
 * outside [0, num_experts) go to no rank.
 *
 * \param placement         the placement
 * \param config            as for eplb_dispatch_create(); rank, device, layer_ids and the workspace are not looked at
 * \param layer             the layer's number
 * \param expert_ids        host memory, `dtype`: the tokens of rank 0, [rank_tokens[0]][experts_per_token], then those of rank 1,
 *                          and so on
 * \param dtype             an eplb_dtype
 * \param rank_tokens       uint32 [num_ranks]: the tokens of each rank's batch, of at most 2^31 - 1 ids
 * \param with_rank_counts  not 0: EPLB_ROUTE_LEAST_LOADED knows the counts of all ranks
 * \param rank_loads        receives the tokens that each rank gets: [num_ranks]
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer; EPLB_STATUS_OUT_OF_MEMORY
 */
EPLB_API
eplb_status eplb_dispatch_routed_load(const eplb_placement *placement,
                                      const eplb_dispatch_config *config,
                                      int32_t layer,
                                      const void *expert_ids,
                                      int32_t dtype,
                                      const uint32_t *rank_tokens,
                                      int32_t with_rank_counts,
                                      double *rank_loads);

/**
 * Gives the handle back, and its tables. Work that uses them must have ended on the device, and graphs with it must not be
 * replayed any more. In a process that fork() made it leaves everything to the parent.
 *
 * \param dispatch  not to be used again; NULL is allowed
 */
EPLB_API
void eplb_dispatch_destroy(eplb_dispatch *dispatch);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/* ----------------------------------------------------------------------------------------------------
 * Metrics: what recorders, placements and dispatches tell of themselves, for Prometheus
 * ---------------------------------------------------------------------------------------------------- */

/**
 * What recorders, placements and dispatches tell of themselves, as text that Prometheus scrapes; docs/metrics.md lists the metrics.
 * The numbers are those of eplb_recorder_get_info(), eplb_placement_get_info() and eplb_dispatch_get_info(), some of them layer by
 * layer.
 *
 * The format has all samples of a metric stand together. So the objects of a process, of one kind or several, are added to one
 * handle, which makes one text of them, and labels tell them apart:
 *
 * ```c
 * const eplb_metrics_label rank = { "rank", "3" };
 * eplb_metrics *metrics = NULL;
 * eplb_metrics_create(&metrics);
 * eplb_metrics_add_recorder(metrics, recorder, &rank, 1);
 * eplb_metrics_add_dispatch(metrics, dispatch, &rank, 1);
 * const char *text = NULL;
 * size_t length = 0;
 * eplb_metrics_text(metrics, &text, &length); // the answer to a scrape: Content-Type: text/plain; version=0.0.4
 * eplb_metrics_destroy(metrics);
 * ```
 *
 * Each object is looked at when it is added, and is not needed afterwards: make a handle for each scrape. Adding takes `const`
 * objects, so it may run while other threads count and route; the handle itself is for one thread at a time.
 */
typedef struct eplb_metrics eplb_metrics;

/** A label of the host's: what tells one object from another, and which process this is. */
typedef struct eplb_metrics_label {
  /**
   * Letters, digits and underscores, but neither a digit nor two underscores first; none of the metrics' own, which are hash, layer,
   * result, rule and state. UTF-8.
   */
  const char *name;
  /** Any UTF-8 that is not empty. It is escaped as the format wants it. */
  const char *value;
} eplb_metrics_label;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Makes an empty collection of metrics.
 *
 * \param metrics  receives the handle, which goes back by eplb_metrics_destroy()
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT
 */
EPLB_API
eplb_status eplb_metrics_create(eplb_metrics **metrics);

/**
 * Adds what a recorder tells, as it is now: it is asked as by eplb_recorder_get_info(), with what that says of the device.
 *
 * \param metrics     the metrics
 * \param recorder    the recorder
 * \param labels      labels of its own, [num_labels], copied; may be NULL where num_labels is 0
 * \param num_labels  how many
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for a recorder with the labels of one that was added before
 */
EPLB_API
eplb_status eplb_metrics_add_recorder(eplb_metrics *metrics,
                                      const eplb_recorder *recorder,
                                      const eplb_metrics_label *labels,
                                      size_t num_labels);

/**
 * Adds what a placement tells.
 *
 * \param metrics     the metrics
 * \param placement   the placement
 * \param labels      labels of its own, [num_labels], copied; may be NULL where num_labels is 0
 * \param num_labels  how many
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for a placement with the labels of one that was added before
 */
EPLB_API
eplb_status eplb_metrics_add_placement(eplb_metrics *metrics,
                                       const eplb_placement *placement,
                                       const eplb_metrics_label *labels,
                                       size_t num_labels);

/**
 * Adds what a dispatch tells, as it is now.
 *
 * \param metrics     the metrics
 * \param dispatch    the dispatch
 * \param labels      labels of its own, [num_labels], copied; may be NULL where num_labels is 0
 * \param num_labels  how many
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for a dispatch with the labels of one that was added before
 */
EPLB_API
eplb_status eplb_metrics_add_dispatch(eplb_metrics *metrics,
                                      const eplb_dispatch *dispatch,
                                      const eplb_metrics_label *labels,
                                      size_t num_labels);

/**
 * Lends the text: Prometheus' text format, version 0.0.4, each line ended by a line feed; empty where nothing was added.
 *
 * \param metrics  the metrics
 * \param text     receives the text, which ends in NUL and lives until the next eplb_metrics_text() or eplb_metrics_destroy()
 * \param length   receives its length in bytes, without the NUL; may be NULL
 * \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT
 */
EPLB_API
eplb_status eplb_metrics_text(eplb_metrics *metrics,
                              const char **text,
                              size_t *length);

/**
 * Gives the handle back.
 *
 * \param metrics  not to be used again, nor the text that it lent; NULL is allowed
 */
EPLB_API
void eplb_metrics_destroy(eplb_metrics *metrics);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif /* EPLB_H */
