//! The recorder: counting routed experts, step 1.

use std::ffi::{c_char, c_void};
use std::path::Path;
use std::time::Duration;

use super::boundary::{
    Growing, array, borrowed, boundary, config, copy_out, destroy, growing_out, layer_numbers, number, out,
    text,
};
use super::device::{CUstream_st, ids, place, stream};
use super::stats::counted;
use super::status::eplb_status;
use crate::device::Memory;
use crate::error::{Error, Result};
use crate::stats::{Info, IterationRange, Recorder, RecorderConfig, State};

/// Counts which experts the router chose, on a device and in the order of the engine's streams, and dumps the counts.
///
/// What an engine does, each step:
///
/// ```c
/// // Before the step's work, on the main stream, outside of graphs:
/// eplb_recorder_begin_iteration(recorder, iteration, stream);
/// // After each layer's router, on any stream that waits for the main one, captured or not:
/// eplb_recorder_count(recorder, layer, num_tokens, layer_stream);
/// // The main stream waits for the layers' streams, as it does anyway before it uses their results.
/// ```
///
/// Beginning iteration iter_stop starts the dump. With no iterations to count, as without EXPERT_STATISTIC_ITER_RANGE, every
/// call succeeds at once and does nothing.
///
/// Any thread may call; calls take turns. Hot calls allocate nothing, wait for nothing, read nothing back, and may be captured:
/// one graph serves counting and not counting, and any iteration, since the kernels read on the device which row of the window
/// is being counted into. An id outside [0, num_experts) is never counted but reported.
pub struct eplb_recorder(pub(super) Recorder);

/// What to count, and where. Initialise with EPLB_RECORDER_CONFIG_INIT, and have eplb_recorder_config_from_env() fill in what
/// the operator asks for. Zero is a field's default where it has one.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_recorder_config {
    /// sizeof(eplb_recorder_config)
    pub struct_size: usize,
    /// Directory of the dump, UTF-8; created if missing, shared by all ranks. Must be given if there are iterations.
    pub path: *const c_char,
    /// First iteration to count.
    pub iter_start: i64,
    /// First iteration not to count any more; 0: count nothing, and let every call succeed and do nothing.
    pub iter_stop: i64,
    /// This rank of the expert-parallel group.
    pub rank: u32,
    /// Ranks of the group.
    pub num_ranks: u32,
    /// Experts of a layer; where slots are counted, slots of all ranks together.
    pub num_experts: u32,
    /// Experts that each token chooses (the router's top-k).
    pub experts_per_token: u32,
    /// The layers that this rank counts, by the model's numbers: int32 [num_layers].
    pub layer_ids: *const i32,
    /// Layers that this rank counts.
    pub num_layers: usize,
    /// Where the ids are: EPLB_DEVICE_HOST, which is the default of _INIT; EPLB_DEVICE_CURRENT; or the ordinal of a CUDA device,
    /// of which 0 is one.
    pub device: i32,
    /// What the ids are: an eplb_counted. Slots where a placement is in force.
    pub counted: i32,
    /// Tokens of a layer in an iteration at most; 0: so few that no expert is chosen 2^32 times. Beyond that counts take 64
    /// bits. A count that overflows all the same is noticed, and its dump refused.
    pub max_tokens_per_iteration: u64,
    /// Tells one run from another, so that a reader refuses a mix: the same on all ranks, UTF-8. May be NULL.
    pub run_id: *const c_char,
    /// Memory of the device to use instead of the library's own, aligned to 16 bytes, at least as large as
    /// eplb_recorder_memory_required() says; yours, and used until the recorder is destroyed. Creating the recorder clears it,
    /// in the order of no stream of yours: what was to be done with it must have been done. May be NULL.
    pub workspace: *mut c_void,
    /// Bytes of `workspace`.
    pub workspace_bytes: usize,
}

// SAFETY: `repr(C)`, `struct_size` first, integers and pointers only.
unsafe impl Growing for eplb_recorder_config {}

/// What a recorder is doing.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum eplb_recorder_state {
    /// It has no iterations to count: every call succeeds and does nothing.
    Off = 0,
    /// No iteration of its range has begun.
    Waiting = 1,
    /// Some have.
    Counting = 2,
    /// The dump is being written.
    Dumping = 3,
    /// The dump is there, whole and synced to disk.
    Dumped = 4,
    /// The dump could not be written, and the counts are still there: eplb_recorder_flush() tries again. Where it could not even
    /// be started, eplb_recorder_dump() does, and so does the next eplb_recorder_begin_iteration().
    Failed = 5,
    /// A call to the driver failed while counting, and the counts are not those of the iterations any more.
    /// eplb_recorder_reset() starts anew.
    Lost = 6,
    /// The range had passed before any of its iterations began: nothing is counted, and calls succeed.
    Missed = 7,
}

/// How far a recorder is. Initialise with EPLB_RECORDER_INFO_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_recorder_info {
    /// sizeof(eplb_recorder_info)
    pub struct_size: usize,
    /// An eplb_recorder_state.
    pub state: i32,
    /// In states EPLB_RECORDER_STATE_FAILED and _LOST, the eplb_status of the cause; EPLB_STATUS_CUDA in others where the
    /// device could not be asked, so that the sums below are those of an earlier look; otherwise EPLB_STATUS_OK.
    pub error_status: i32,
    /// The iteration begun last; -1: none.
    pub iteration: i64,
    /// First iteration counted.
    pub iter_start: i64,
    /// The one after the last that was counted; iter_start where none was.
    pub iter_stop: i64,
    /// Ids counted, over all layers.
    pub ids_counted: u64,
    /// Ids of valid tokens that were not counted, since they name no expert.
    pub ids_out_of_range: u64,
    /// Ids of the tokens after the valid ones, which were not looked at.
    pub ids_padding: u64,
    /// Memory held on the device, in bytes.
    pub workspace_bytes: usize,
    /// Host memory held for the copy back, in bytes.
    pub host_bytes: usize,
    /// The message that belongs to error_status, shortened to fit.
    pub error_message: [c_char; 512],
    /// First iteration that the recorder is there to count; 0 where it is off.
    pub range_start: i64,
    /// The one after the last that it is there to count; 0 where it is off.
    pub range_stop: i64,
    /// Iterations from iter_start to iter_stop that never began, and count as empty.
    pub iterations_skipped: u64,
    /// Dumps that were written since the recorder was created; eplb_recorder_reset() leaves it as it is.
    pub dumps_written: u64,
    /// Tries at a dump that failed, to start it or to write it, since the recorder was created.
    pub dumps_failed: u64,
    /// Layers of the config; 0 where the recorder is off.
    pub num_layers: u32,
    /// Layers with a buffer that eplb_recorder_register_buffer() named.
    pub num_registered_layers: u32,
}

// SAFETY: `repr(C)`, `struct_size` first, integers only.
unsafe impl Growing for eplb_recorder_info {}

/// Fills in what the operator asks for in the environment, as TensorRT-LLM has it: EXPERT_STATISTIC_ITER_RANGE=100-200 counts
/// iterations 100 to 199, and EXPERT_STATISTIC_PATH is the dump's directory. Without the first, iter_start and iter_stop become
/// 0, which is a recorder that does nothing; without the second, path stays as it is.
///
/// \param config  from EPLB_RECORDER_CONFIG_INIT; its path then points into the environment, which must not be changed before
///                eplb_recorder_create()
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT for a range such as 100-50 or abc, with a message naming the variable
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_config_from_env(config: *mut eplb_recorder_config) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for the config.
        let (filled, place) = unsafe { (self::config(config, "config")?, growing_out(config, "config")?) };
        // SAFETY: the caller's promise that nobody changes the environment meanwhile.
        let (range, path) =
            unsafe { (variable(c"EXPERT_STATISTIC_ITER_RANGE"), variable(c"EXPERT_STATISTIC_PATH")) };
        // SAFETY: as above.
        let range = unsafe {
            path.map(|path| text(path, "EXPERT_STATISTIC_PATH")).transpose()?;
            iteration_range(range)?
        };
        place.set(eplb_recorder_config {
            iter_start: number(range.start, "iter_start")?,
            iter_stop: number(range.stop, "iter_stop")?,
            path: path.unwrap_or(filled.path),
            ..filled
        });
        Ok(())
    })
}

/// What a variable of the environment is set to; empty is as good as not at all.
///
/// # Safety
/// Nobody changes the environment while the string is used.
unsafe fn variable(name: &std::ffi::CStr) -> Option<*const c_char> {
    // SAFETY: the caller's promise.
    let value = unsafe { libc::getenv(name.as_ptr()) }.cast_const();
    // SAFETY: a string, which has at least its end.
    (!value.is_null() && unsafe { *value } != 0).then_some(value)
}

/// # Safety
/// As for [`variable`], whose result it takes.
unsafe fn iteration_range(value: Option<*const c_char>) -> Result<IterationRange> {
    let Some(value) = value else { return Ok(IterationRange { start: 0, stop: 0 }) };
    // SAFETY: the caller's promise.
    unsafe { text(value, "EXPERT_STATISTIC_ITER_RANGE") }?
        .parse()
        .map_err(|e| Error::InvalidArgument(format!("EXPERT_STATISTIC_ITER_RANGE: {e}")))
}

/// The memory that a recorder takes, before it is created. It takes no more afterwards.
///
/// \param config           that of eplb_recorder_create(); path may be NULL, and the workspace is not looked at
/// \param workspace_bytes  receives the bytes on the device: iterations x layers x experts x 4, or 8, and a little more
/// \param host_bytes       receives the bytes of host memory for the copy back, page-locked where the device is CUDA's
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT or EPLB_STATUS_OUT_OF_MEMORY for what no recorder could be created with
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_memory_required(
    config: *const eplb_recorder_config,
    workspace_bytes: *mut usize,
    host_bytes: *mut usize,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (config, workspace, host) = unsafe {
            (
                self::config(config, "config")?,
                out(workspace_bytes, "workspace_bytes")?,
                out(host_bytes, "host_bytes")?,
            )
        };
        // SAFETY: the caller's promise for what the config points to.
        let required = unsafe { with_config(&config, |config| config.memory_required()) }?;
        workspace.set(required.workspace_bytes);
        host.set(required.host_bytes);
        Ok(())
    })
}

/// Creates a recorder and takes all that it will need: memory, the kernels, the rank's file in the dump's directory, and a
/// thread that sleeps until the dump. The primary context of a device given by its ordinal is retained until
/// eplb_recorder_destroy().
///
/// \param config    from EPLB_RECORDER_CONFIG_INIT; what it points to is copied, but for the workspace
/// \param recorder  receives the handle, which goes back by eplb_recorder_destroy()
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT; EPLB_STATUS_WRITE_FAILED where the directory could not be written
///         to, or a recorder of the same rank is there already; EPLB_STATUS_OUT_OF_MEMORY; EPLB_STATUS_NO_DRIVER;
///         EPLB_STATUS_CUDA; EPLB_STATUS_SYSTEM
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_create(
    config: *const eplb_recorder_config,
    recorder: *mut *mut eplb_recorder,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (config, recorder) = unsafe { (self::config(config, "config")?, out(recorder, "recorder")?) };
        let workspace = (!config.workspace.is_null())
            // SAFETY: the caller's promise for the workspace.
            .then(|| unsafe { Memory::caller_provided(config.workspace as u64, config.workspace_bytes) });
        // SAFETY: the caller's promise for what the config points to.
        let created = unsafe { with_config(&config, |config| Recorder::create(config, workspace)) }?;
        recorder.give(eplb_recorder(created));
        Ok(())
    })
}

/// Names the place where a layer's router writes its chosen ids, for eplb_recorder_count(). A second call for a layer replaces
/// the first; CUDA graphs that were captured before keep the buffer that they were captured with.
///
/// \param recorder    the recorder
/// \param layer       the layer's number
/// \param expert_ids  device memory, [max_tokens][experts_per_token], `dtype`; yours, and must live while it is counted
/// \param dtype       an eplb_dtype
/// \param max_tokens  tokens that the buffer has room for
/// \param num_valid   device memory, int32: how many of the tokens are valid, read whenever the kernel runs, counting or not, so
///                    that padding is not counted; NULL: all
/// \param stream      a stream on which the layer will be counted: it is checked to be one of the recorder's device
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer and for memory that the device cannot read;
///         EPLB_STATUS_CUDA
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_register_buffer(
    recorder: *mut eplb_recorder,
    layer: i32,
    expert_ids: *const c_void,
    dtype: i32,
    max_tokens: u32,
    num_valid: *const i32,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (recorder, ids, stream) = unsafe {
            (
                &borrowed(recorder, "recorder")?.0,
                ids(expert_ids, dtype, max_tokens, num_valid)?,
                self::stream(stream),
            )
        };
        recorder.register_buffer(number(layer, "layer")?, ids, max_tokens, stream)
    })
}

/// Begins an iteration: what is counted after this call, in the order of `stream`, belongs to it. Call it once an iteration,
/// before the iteration's work is launched; every stream that counts must be ordered after it, and before the next one. A write
/// of 4 bytes in stream order, where anything changes at all.
///
/// The first iteration at or after iter_stop starts the dump: the counts are copied back once `stream` has come this far, and
/// written by a thread of the recorder's; `stream` waits for neither. What the dump comes to is told by eplb_recorder_flush() and
/// eplb_recorder_get_info(), not here.
///
/// \param recorder   the recorder
/// \param iteration  the engine's number of it, never lower than that before; a number that is left out counts as empty, and
///                   those from iter_stop on, or after a dump, count nothing
/// \param stream     the engine's main stream, not being captured
/// \return EPLB_STATUS_OK; EPLB_STATUS_CAPTURING or EPLB_STATUS_INVALID_ARGUMENT, and what is counted still belongs to the
///         iteration before; EPLB_STATUS_CUDA, and counts may be lost: see EPLB_RECORDER_STATE_LOST
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_begin_iteration(
    recorder: *mut eplb_recorder,
    iteration: i64,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (recorder, stream) = unsafe { (&borrowed(recorder, "recorder")?.0, self::stream(stream)) };
        recorder.begin_iteration(number(iteration, "iteration")?, stream)
    })
}

/// Counts the ids in a layer's registered buffer. Hot: may be captured by a CUDA graph, which then counts this buffer and this
/// number of tokens at each replay; how many of them are valid is read anew each time.
///
/// \param recorder    the recorder
/// \param layer       the layer's number
/// \param num_tokens  tokens in the buffer, padding included; not above max_tokens
/// \param stream      ordered after the router's work
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT; EPLB_STATUS_CUDA
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_count(
    recorder: *mut eplb_recorder,
    layer: i32,
    num_tokens: u32,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (recorder, stream) = unsafe { (&borrowed(recorder, "recorder")?.0, self::stream(stream)) };
        recorder.count(number(layer, "layer")?, num_tokens, stream)
    })
}

/// Counts the ids in any buffer, for engines whose buffers move. A layer that is counted twice in an iteration, in chunks or by
/// multi-token prediction, adds up. Hot: may be captured by a CUDA graph, which then reads the same buffer at each replay.
///
/// \param recorder    the recorder
/// \param layer       the layer's number
/// \param expert_ids  device memory, [num_tokens][experts_per_token], `dtype`; yours, and must live until the kernel has run.
///                    Unlike in eplb_recorder_register_buffer(), memory that the device cannot read is not noticed here: the
///                    kernel would fault
/// \param dtype       an eplb_dtype
/// \param num_tokens  tokens in the buffer, padding included
/// \param num_valid   device memory, int32: how many of the tokens are valid; NULL: all
/// \param stream      ordered after the router's work
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT; EPLB_STATUS_CUDA
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_count_ids(
    recorder: *mut eplb_recorder,
    layer: i32,
    expert_ids: *const c_void,
    dtype: i32,
    num_tokens: u32,
    num_valid: *const i32,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (recorder, ids, stream) = unsafe {
            (
                &borrowed(recorder, "recorder")?.0,
                ids(expert_ids, dtype, num_tokens, num_valid)?,
                self::stream(stream),
            )
        };
        recorder.count_ids(number(layer, "layer")?, &ids, num_tokens, stream)
    })
}

/// Ends counting before the range has passed and starts the dump of what was counted so far, for a run that ends early. The dump
/// says what is missing: readers take it only when asked for iterations that it has. Returns at once; eplb_recorder_flush()
/// waits. Where a dump was started already it does nothing; where that failed to start, it tries again.
///
/// \param recorder  the recorder
/// \param stream    ordered after all that was counted, and not being captured
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT where no iteration of the range has begun; EPLB_STATUS_CAPTURING;
///         EPLB_STATUS_CUDA
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_dump(
    recorder: *mut eplb_recorder,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (recorder, stream) = unsafe { (&borrowed(recorder, "recorder")?.0, self::stream(stream)) };
        recorder.dump(stream)
    })
}

/// Waits for a dump that was started. A failure is returned once; the next call tries again, since the counts stay on the device
/// until a dump of them succeeds. Where none was started there is nothing to wait for; one that could not be started, because the
/// driver refused, is tried again by eplb_recorder_dump(), which has a stream.
///
/// \param recorder    the recorder
/// \param timeout_ms  how long to wait, in milliseconds; 0: not at all; negative: as long as it takes
/// \return EPLB_STATUS_OK, and the dump, if one was started, is on disk; EPLB_STATUS_NOT_READY; what the dump failed with, such
///         as EPLB_STATUS_WRITE_FAILED; EPLB_STATUS_INVALID_DUMP where counts overflowed or went on meanwhile
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_flush(recorder: *mut eplb_recorder, timeout_ms: i64) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promise for the handle.
        let recorder = &unsafe { borrowed(recorder, "recorder") }?.0;
        recorder.flush(u64::try_from(timeout_ms).ok().map(Duration::from_millis))
    })
}

/// Forgets all counts and begins anew, after a warm-up or a dump: any iteration may begin next.
///
/// \param recorder  the recorder
/// \param stream    ordered after all that was counted and before all that will be, and not being captured
/// \return EPLB_STATUS_OK; EPLB_STATUS_NOT_READY while a dump is being written; EPLB_STATUS_CAPTURING;
///         EPLB_STATUS_WRITE_FAILED where another recorder has taken the rank's file since the last dump; EPLB_STATUS_CUDA
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_reset(
    recorder: *mut eplb_recorder,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (recorder, stream) = unsafe { (&borrowed(recorder, "recorder")?.0, self::stream(stream)) };
        recorder.reset(stream)
    })
}

/// Tells how far a recorder is. Looks at sums on the device on a stream of its own: what counting streams have not done yet is
/// not in them. A device that cannot be asked any more leaves them as they were at the last look, and error_status says so.
///
/// \param recorder      the recorder
/// \param info          from EPLB_RECORDER_INFO_INIT; receives the numbers
/// \param layer_tokens  receives the valid tokens counted of each layer, in the order of the config's layer_ids: [num_layers];
///                      may be NULL where num_layers is 0
/// \param num_layers    that of the config, as a check, or 0
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_get_info(
    recorder: *const eplb_recorder,
    info: *mut eplb_recorder_info,
    layer_tokens: *mut u64,
    num_layers: usize,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (recorder, info) = unsafe { (&borrowed(recorder, "recorder")?.0, growing_out(info, "info")?) };
        let found = recorder.info()?;
        let tokens = found.layer_tokens(num_layers)?;
        let found = info_of(&found)?;
        // SAFETY: the caller's promise of [num_layers], which is how many there are.
        unsafe { copy_out(&tokens, layer_tokens, "layer_tokens") }?;
        info.set(found);
        Ok(())
    })
}

/// Waits for a dump that was started, and gives the handle back. Work that counts must have ended on the device, and graphs
/// with counts in them must not be replayed any more. In a process that fork() made it leaves everything to the parent.
///
/// \param recorder  not to be used again; NULL is allowed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_destroy(recorder: *mut eplb_recorder) {
    // SAFETY: the caller's promise that the handle is live and not used again.
    unsafe { destroy(recorder) }
}

/// Hands what a config says to `use_it`.
///
/// # Safety
/// What the config points to is as its documentation says.
unsafe fn with_config<T>(
    config: &eplb_recorder_config,
    use_it: impl FnOnce(&RecorderConfig) -> Result<T>,
) -> Result<T> {
    // SAFETY: the caller's promise.
    let (layers, path, run_id) = unsafe {
        let given = |string: *const c_char| (!string.is_null()).then_some(string);
        (
            array(config.layer_ids, Some(config.num_layers), "config->layer_ids")?,
            given(config.path).map(|path| text(path, "config->path")).transpose()?,
            given(config.run_id).map(|run_id| text(run_id, "config->run_id")).transpose()?,
        )
    };
    use_it(&RecorderConfig {
        path: path.map(Path::new),
        iterations: iterations(config)?,
        rank: config.rank,
        num_ranks: config.num_ranks as usize,
        num_experts: config.num_experts as usize,
        experts_per_token: config.experts_per_token as usize,
        layers: &layer_numbers(layers)?,
        counted: counted(config.counted)?,
        place: place(config.device)?,
        max_tokens_per_iteration: config.max_tokens_per_iteration,
        run_id,
    })
}

fn iterations(config: &eplb_recorder_config) -> Result<Option<IterationRange>> {
    let (start, stop) = (number(config.iter_start, "iter_start")?, number(config.iter_stop, "iter_stop")?);
    match (start, stop) {
        (0, 0) => Ok(None),
        (start, stop) if start < stop => Ok(Some(IterationRange { start, stop })),
        (start, stop) => Err(Error::InvalidArgument(format!(
            "iter_start is {start} and iter_stop {stop}; iter_start must be the lower one, or both 0 to count nothing"
        ))),
    }
}

fn info_of(found: &Info) -> Result<eplb_recorder_info> {
    let totals = found.sum();
    let message = found.error.as_ref().map(ToString::to_string).unwrap_or_default();
    Ok(eplb_recorder_info {
        struct_size: 0,
        state: match found.state {
            State::Off => eplb_recorder_state::Off,
            State::Waiting => eplb_recorder_state::Waiting,
            State::Counting => eplb_recorder_state::Counting,
            State::Dumping => eplb_recorder_state::Dumping,
            State::Dumped => eplb_recorder_state::Dumped,
            State::Failed => eplb_recorder_state::Failed,
            State::Lost => eplb_recorder_state::Lost,
            State::Missed => eplb_recorder_state::Missed,
        } as i32,
        error_status: found.error.as_ref().map_or(eplb_status::Ok, eplb_status::of) as i32,
        iteration: found.iteration.map_or(Ok(-1), |iteration| number(iteration, "iteration"))?,
        iter_start: number(found.held.start, "iter_start")?,
        iter_stop: number(found.held.stop, "iter_stop")?,
        // Read while kernels run, sums of the same ids may be a little apart.
        ids_counted: totals.ids.saturating_sub(totals.out_of_range),
        ids_out_of_range: totals.out_of_range,
        ids_padding: totals.padding,
        workspace_bytes: found.memory.workspace_bytes,
        host_bytes: found.memory.host_bytes,
        error_message: c_text(&message),
        range_start: number(found.range.start, "range_start")?,
        range_stop: number(found.range.stop, "range_stop")?,
        iterations_skipped: found.skipped,
        dumps_written: found.dumps.written,
        dumps_failed: found.dumps.failed,
        num_layers: number(found.layers.len(), "num_layers")?,
        num_registered_layers: number(found.registered_layers, "num_registered_layers")?,
    })
}

/// As much of `text` as fits with a NUL behind it, cut between characters.
fn c_text<const LEN: usize>(text: &str) -> [c_char; LEN] {
    let mut chars = [0; LEN];
    let fits = text.char_indices().map(|(start, c)| start + c.len_utf8()).take_while(|&end| end < LEN).last();
    for (to, from) in chars.iter_mut().zip(text.as_bytes()[..fits.unwrap_or(0)].iter()) {
        *to = *from as c_char;
    }
    chars
}
