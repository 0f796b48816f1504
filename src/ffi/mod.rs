//! The C boundary: one file per C object. Each function converts its arguments and makes one call.
//!
//! Types carry their C names, and their documentation is the headers': `include/eplb.h`, `include/eplb_tools.h` and
//! `include/eplb_live.h` are generated from these files. Functions rely on what the header requires of callers: a pointer that is not NULL points to
//! what its type says, for as long as the call runs.
//!
//! The library's other `unsafe` is in `device`, where recorder and dispatch use the caller's device addresses, and around a
//! thread's signal mask.
#![allow(non_camel_case_types, reason = "types carry the names of the C interface")]
#![allow(
    clippy::missing_safety_doc,
    reason = "the documentation is the header's, whose conventions state it once"
)]

mod boundary;
mod device;
mod dispatch;
mod evaluation;
mod exchange;
mod generate;
mod library;
mod live_dispatch;
mod live_metrics;
mod live_recorder;
mod metrics;
mod placement;
mod plan;
mod rebalancer;
mod recorder;
mod recorder_config;
mod recorder_info;
mod solve;
mod stats;
mod status;

/// Every function's signature as Rust compiles it; cpp_tests/signatures.cpp has them as C++ reads them. A change here is a
/// change of the interface: see CONTRIBUTING.md.
#[cfg(test)]
mod signatures {
    use std::ffi::{c_char, c_void};

    use super::device::*;
    use super::dispatch::*;
    use super::evaluation::*;
    use super::exchange::*;
    use super::generate::*;
    use super::library::*;
    use super::live_dispatch::*;
    use super::live_metrics::*;
    use super::live_recorder::*;
    use super::metrics::*;
    use super::placement::*;
    use super::plan::*;
    use super::rebalancer::*;
    use super::recorder::*;
    use super::recorder_config::*;
    use super::recorder_info::*;
    use super::solve::*;
    use super::stats::*;
    use super::status::*;

    const _: Option<unsafe extern "C" fn(*mut c_void, eplb_log_level, *const c_char)> =
        None::<_> as eplb_log_callback;
    const _: Option<unsafe extern "C" fn(*mut c_void, eplb_phase, u64, u64) -> i32> =
        None::<_> as eplb_progress_callback;

    const _: extern "C" fn() -> u32 = eplb_abi_version;
    const _: extern "C" fn() -> *const c_char = eplb_version_string;
    const _: extern "C" fn() -> *const c_char = eplb_last_error_message;
    const _: extern "C" fn(eplb_log_callback, *mut c_void) -> eplb_status = eplb_set_log_callback;

    const _: extern "C" fn(eplb_status) -> *const c_char = eplb_status_string;

    const _: extern "C" fn() -> i32 = eplb_cuda_available;

    const _: unsafe extern "C" fn(*mut eplb_recorder_config) -> eplb_status = eplb_recorder_config_from_env;
    const _: unsafe extern "C" fn(*const eplb_recorder_config, *mut usize, *mut usize) -> eplb_status =
        eplb_recorder_memory_required;
    const _: unsafe extern "C" fn(*const eplb_recorder_config, *mut *mut eplb_recorder) -> eplb_status =
        eplb_recorder_create;
    const _: unsafe extern "C" fn(
        *mut eplb_recorder,
        i32,
        *const eplb_expert_ids,
        u32,
        *const i32,
        *mut CUstream_st,
    ) -> eplb_status = eplb_recorder_register_buffer;
    const _: unsafe extern "C" fn(*mut eplb_recorder, i64, *mut CUstream_st) -> eplb_status =
        eplb_recorder_begin_iteration;
    const _: unsafe extern "C" fn(*const eplb_recorder, i32, u32, *mut CUstream_st) -> eplb_status =
        eplb_recorder_count;
    const _: unsafe extern "C" fn(
        *const eplb_recorder,
        i32,
        *const eplb_expert_ids,
        u32,
        *const i32,
        *mut CUstream_st,
    ) -> eplb_status = eplb_recorder_count_ids;
    const _: unsafe extern "C" fn(
        *const eplb_recorder,
        i32,
        *const c_void,
        eplb_dtype,
        *mut CUstream_st,
    ) -> eplb_status = eplb_recorder_add_counts;
    const _: unsafe extern "C" fn(*mut eplb_recorder, *mut CUstream_st) -> eplb_status = eplb_recorder_dump;
    const _: unsafe extern "C" fn(*const eplb_recorder, i64) -> eplb_status = eplb_recorder_flush;
    const _: unsafe extern "C" fn(*mut eplb_recorder, i64, i64, *mut CUstream_st) -> eplb_status =
        eplb_recorder_rearm;
    const _: unsafe extern "C" fn(*mut eplb_recorder, u32, *mut CUstream_st) -> eplb_status =
        eplb_recorder_set_paused;
    const _: unsafe extern "C" fn(*mut eplb_recorder, *mut CUstream_st) -> eplb_status = eplb_recorder_reset;
    const _: unsafe extern "C" fn(
        *const eplb_recorder,
        *mut eplb_recorder_info,
        *mut u64,
        usize,
    ) -> eplb_status = eplb_recorder_get_info;
    const _: unsafe extern "C" fn(*mut eplb_recorder) = eplb_recorder_destroy;

    const _: unsafe extern "C" fn(
        *const eplb_placement_config,
        *const i32,
        usize,
        *const i32,
        *mut *mut eplb_placement,
    ) -> eplb_status = eplb_placement_create;
    const _: unsafe extern "C" fn(
        *const c_char,
        *const eplb_placement_load_options,
        *mut *mut eplb_placement,
    ) -> eplb_status = eplb_placement_load;
    const _: unsafe extern "C" fn(*const eplb_placement, *const c_char) -> eplb_status = eplb_placement_save;
    const _: unsafe extern "C" fn(*const eplb_placement, *mut eplb_placement_info) -> eplb_status =
        eplb_placement_get_info;
    const _: unsafe extern "C" fn(
        *const eplb_placement,
        i32,
        u32,
        *mut *const i32,
        *mut usize,
    ) -> eplb_status = eplb_placement_rank_experts;
    const _: unsafe extern "C" fn(
        *const eplb_placement,
        i32,
        u32,
        *mut i32,
        usize,
        *mut usize,
    ) -> eplb_status = eplb_placement_distinct_experts;
    const _: unsafe extern "C" fn(*const eplb_placement, i32, *mut *const i32, *mut usize) -> eplb_status =
        eplb_placement_layer_experts;
    const _: unsafe extern "C" fn(
        *const eplb_placement,
        *mut eplb_placement_issue,
        usize,
        *mut usize,
    ) -> eplb_status = eplb_placement_validate;
    const _: unsafe extern "C" fn(*const eplb_placement, *mut u64) -> eplb_status = eplb_placement_hash;
    const _: unsafe extern "C" fn(*mut eplb_placement) = eplb_placement_destroy;

    const _: unsafe extern "C" fn(
        *const eplb_placement,
        *const eplb_dispatch_config,
        *mut usize,
    ) -> eplb_status = eplb_dispatch_memory_required;
    const _: unsafe extern "C" fn(
        *const eplb_placement,
        *const eplb_dispatch_config,
        *mut *mut eplb_dispatch,
    ) -> eplb_status = eplb_dispatch_create;
    const _: unsafe extern "C" fn(*const eplb_dispatch, i32, *mut eplb_dispatch_tables) -> eplb_status =
        eplb_dispatch_get_tables;
    const _: unsafe extern "C" fn(*const eplb_dispatch, *mut eplb_dispatch_info) -> eplb_status =
        eplb_dispatch_get_info;
    const _: unsafe extern "C" fn(*mut eplb_dispatch, i32, *const c_void, eplb_dtype) -> eplb_status =
        eplb_dispatch_register_rank_counts;
    const _: unsafe extern "C" fn(
        *const eplb_dispatch,
        i32,
        *const eplb_expert_ids,
        u32,
        *const i32,
        *const eplb_slot_ids,
        *mut CUstream_st,
    ) -> eplb_status = eplb_dispatch_route;
    const _: unsafe extern "C" fn(
        *const eplb_dispatch,
        *const eplb_recorder,
        i32,
        *const eplb_expert_ids,
        u32,
        *const i32,
        *const eplb_slot_ids,
        *mut CUstream_st,
    ) -> eplb_status = eplb_dispatch_route_and_count;
    const _: unsafe extern "C" fn(*mut eplb_dispatch) = eplb_dispatch_destroy;

    const _: unsafe extern "C" fn(*mut eplb_recorder, *mut i64, u32, *mut CUstream_st) -> eplb_status =
        eplb_recorder_snapshot;
    const _: unsafe extern "C" fn(
        *const eplb_dispatch,
        *const eplb_plan,
        i32,
        *mut CUstream_st,
    ) -> eplb_status = eplb_dispatch_stage_layer;
    const _: unsafe extern "C" fn(
        *const eplb_dispatch,
        *const eplb_plan,
        i32,
        *mut CUstream_st,
    ) -> eplb_status = eplb_dispatch_update_layer;
    const _: unsafe extern "C" fn(*const eplb_dispatch, i32, *mut CUstream_st) -> eplb_status =
        eplb_dispatch_commit_layer;
    const _: unsafe extern "C" fn(
        *const eplb_placement,
        *const eplb_dispatch_config,
        *mut usize,
    ) -> eplb_status = eplb_dispatch_host_memory_required;
    const _: unsafe extern "C" fn(*const eplb_dispatch, i32, *mut u64) -> eplb_status =
        eplb_dispatch_get_generation;
    const _: unsafe extern "C" fn(*const eplb_dispatch, *const u8, u32, *mut CUstream_st) -> eplb_status =
        eplb_dispatch_set_active_ranks;

    const _: unsafe extern "C" fn(
        *const eplb_placement,
        *const eplb_placement,
        *const eplb_plan_options,
        *mut *mut eplb_plan,
    ) -> eplb_status = eplb_plan_create;
    const _: unsafe extern "C" fn(*const eplb_plan, *mut eplb_plan_info) -> eplb_status = eplb_plan_get_info;
    const _: unsafe extern "C" fn(*const eplb_plan, i32, *mut eplb_planned_layer) -> eplb_status =
        eplb_plan_layer_info;
    const _: unsafe extern "C" fn(*const eplb_plan, i32, u32, *mut *const i32, *mut usize) -> eplb_status =
        eplb_plan_layer_experts;
    const _: unsafe extern "C" fn(
        *const eplb_plan,
        i32,
        i32,
        *mut eplb_transfer,
        usize,
        *mut usize,
    ) -> eplb_status = eplb_plan_transfers;
    const _: unsafe extern "C" fn(*const eplb_plan, i32, u32, *mut u32) -> eplb_status =
        eplb_plan_num_readers;
    const _: unsafe extern "C" fn(*mut eplb_plan) = eplb_plan_destroy;

    const _: unsafe extern "C" fn(
        *const eplb_rebalancer_config,
        *const eplb_placement,
        *mut *mut eplb_rebalancer,
    ) -> eplb_status = eplb_rebalancer_create;
    const _: unsafe extern "C" fn(*mut eplb_rebalancer, *const i64, u32, u64, i32) -> eplb_status =
        eplb_rebalancer_observe;
    const _: unsafe extern "C" fn(
        *mut eplb_rebalancer,
        *const eplb_plan_limits,
        *mut *mut eplb_plan,
    ) -> eplb_status = eplb_rebalancer_plan;
    const _: unsafe extern "C" fn(*mut eplb_rebalancer, *const eplb_plan, i32) -> eplb_status =
        eplb_rebalancer_commit_layer;
    const _: unsafe extern "C" fn(*mut eplb_rebalancer, *const eplb_plan) -> eplb_status =
        eplb_rebalancer_abort;
    const _: unsafe extern "C" fn(*const eplb_rebalancer, *mut *mut eplb_placement) -> eplb_status =
        eplb_rebalancer_placement;
    const _: unsafe extern "C" fn(*mut eplb_rebalancer, *const u8, u32) -> eplb_status =
        eplb_rebalancer_set_active_ranks;
    const _: unsafe extern "C" fn(*const eplb_rebalancer, *mut eplb_rebalancer_info) -> eplb_status =
        eplb_rebalancer_get_info;
    const _: unsafe extern "C" fn(*mut eplb_rebalancer, *const eplb_placement) -> eplb_status =
        eplb_rebalancer_reset;
    const _: unsafe extern "C" fn(*mut eplb_rebalancer) = eplb_rebalancer_destroy;

    const _: unsafe extern "C" fn(
        *const c_char,
        *const eplb_stats_options,
        *mut *mut eplb_stats,
    ) -> eplb_status = eplb_stats_load;
    const _: unsafe extern "C" fn(
        *const eplb_stats_config,
        *const c_void,
        *mut *mut eplb_stats,
    ) -> eplb_status = eplb_stats_create;
    const _: unsafe extern "C" fn(*const eplb_stats, *mut eplb_stats_info) -> eplb_status =
        eplb_stats_get_info;
    const _: unsafe extern "C" fn(*const eplb_stats, i32, usize, usize, *mut f64) -> eplb_status =
        eplb_stats_layer_loads;
    const _: unsafe extern "C" fn(*mut eplb_stats) = eplb_stats_destroy;

    const _: unsafe extern "C" fn(
        *const eplb_placement,
        i32,
        *const f64,
        usize,
        usize,
        *const eplb_solve_options,
        *mut eplb_placement_evaluation,
    ) -> eplb_status = eplb_placement_evaluate;
    const _: unsafe extern "C" fn(
        *const eplb_placement,
        *const eplb_dispatch_config,
        i32,
        *const i64,
        i32,
        *mut f64,
    ) -> eplb_status = eplb_placement_expected_load;
    const _: unsafe extern "C" fn(
        *const eplb_placement,
        *const eplb_dispatch_config,
        i32,
        *const eplb_expert_ids,
        *const u32,
        i32,
        *mut f64,
    ) -> eplb_status = eplb_placement_routed_load;

    const _: unsafe extern "C" fn(
        *const eplb_placement_config,
        *const eplb_solve_options,
        *const i32,
        usize,
        *const f64,
        usize,
        *mut *mut eplb_placement,
    ) -> eplb_status = eplb_solve;
    const _: unsafe extern "C" fn(
        *const eplb_placement_config,
        *const eplb_solve_options,
        *const f64,
        usize,
        usize,
        *mut i32,
        *mut i32,
        *mut i32,
    ) -> eplb_status = eplb_deepseek_rebalance;
    const _: unsafe extern "C" fn(u32, u32, u32, *mut u32, *mut u32) -> eplb_status = eplb_suggest_num_slots;

    const _: unsafe extern "C" fn(
        *const eplb_generate_config,
        *const eplb_stats_options,
        *const eplb_solve_options,
        *mut eplb_generate_report,
    ) -> eplb_status = eplb_generate;

    const _: unsafe extern "C" fn(
        *const c_char,
        *const eplb_file_options,
        *mut *mut eplb_stats,
    ) -> eplb_status = eplb_stats_load_file;
    const _: unsafe extern "C" fn(
        *const c_char,
        *const eplb_file_options,
        *mut *mut eplb_placement,
    ) -> eplb_status = eplb_placement_load_file;
    const _: unsafe extern "C" fn(*const eplb_stats, *const c_char, *const eplb_file_options) -> eplb_status =
        eplb_stats_save_file;
    const _: unsafe extern "C" fn(
        *const eplb_placement,
        *const c_char,
        *const eplb_file_options,
    ) -> eplb_status = eplb_placement_save_file;

    const _: unsafe extern "C" fn(*mut *mut eplb_metrics) -> eplb_status = eplb_metrics_create;
    const _: unsafe extern "C" fn(
        *mut eplb_metrics,
        *const eplb_recorder,
        *const eplb_metrics_label,
        usize,
    ) -> eplb_status = eplb_metrics_add_recorder;
    const _: unsafe extern "C" fn(
        *mut eplb_metrics,
        *const eplb_placement,
        *const eplb_metrics_label,
        usize,
    ) -> eplb_status = eplb_metrics_add_placement;
    const _: unsafe extern "C" fn(
        *mut eplb_metrics,
        *const eplb_dispatch,
        *const eplb_metrics_label,
        usize,
    ) -> eplb_status = eplb_metrics_add_dispatch;
    const _: unsafe extern "C" fn(*mut eplb_metrics, u32) -> eplb_status = eplb_metrics_set_layer_series;
    const _: unsafe extern "C" fn(
        *mut eplb_metrics,
        *const eplb_rebalancer,
        *const eplb_metrics_label,
        usize,
    ) -> eplb_status = eplb_metrics_add_rebalancer;
    const _: unsafe extern "C" fn(*mut eplb_metrics, *mut *const c_char, *mut usize) -> eplb_status =
        eplb_metrics_text;
    const _: unsafe extern "C" fn(*mut eplb_metrics) = eplb_metrics_destroy;
}
