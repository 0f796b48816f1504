// The signature of every function, written by hand. A change here is a change of the interface: see
// CONTRIBUTING.md.
#include <eplb_live.h>

#include <type_traits>

#define SIGNATURE(function, ...) static_assert(std::is_same_v<decltype(&function), __VA_ARGS__>, #function)

// Library
SIGNATURE(eplb_status_string, const char *(*)(int32_t));
SIGNATURE(eplb_abi_version, uint32_t (*)());
SIGNATURE(eplb_version_string, const char *(*)());
SIGNATURE(eplb_last_error_message, const char *(*)());
SIGNATURE(eplb_set_log_callback, eplb_status (*)(eplb_log_callback, void *));
static_assert(std::is_same_v<eplb_log_callback, void (*)(void *, int32_t, const char *)>);

// Devices and streams
SIGNATURE(eplb_cuda_available, int32_t (*)());

// Recorder
SIGNATURE(eplb_recorder_config_from_env, eplb_status (*)(eplb_recorder_config *));
SIGNATURE(eplb_recorder_memory_required, eplb_status (*)(const eplb_recorder_config *, size_t *, size_t *));
SIGNATURE(eplb_recorder_create, eplb_status (*)(const eplb_recorder_config *, eplb_recorder **));
SIGNATURE(eplb_recorder_register_buffer, eplb_status (*)(eplb_recorder *, int32_t, const eplb_expert_ids *,
                                                         uint32_t, const int32_t *, struct CUstream_st *));
SIGNATURE(eplb_recorder_begin_iteration, eplb_status (*)(eplb_recorder *, int64_t, struct CUstream_st *));
SIGNATURE(eplb_recorder_count,
          eplb_status (*)(const eplb_recorder *, int32_t, uint32_t, struct CUstream_st *));
SIGNATURE(eplb_recorder_count_ids, eplb_status (*)(const eplb_recorder *, int32_t, const eplb_expert_ids *,
                                                   uint32_t, const int32_t *, struct CUstream_st *));
SIGNATURE(eplb_recorder_add_counts,
          eplb_status (*)(const eplb_recorder *, int32_t, const void *, eplb_dtype, CUstream_st *));
SIGNATURE(eplb_recorder_dump, eplb_status (*)(eplb_recorder *, struct CUstream_st *));
SIGNATURE(eplb_recorder_flush, eplb_status (*)(const eplb_recorder *, int64_t));
SIGNATURE(eplb_recorder_set_paused, eplb_status (*)(eplb_recorder *, uint32_t, struct CUstream_st *));
SIGNATURE(eplb_recorder_reset, eplb_status (*)(eplb_recorder *, struct CUstream_st *));
SIGNATURE(eplb_recorder_rearm, eplb_status (*)(eplb_recorder *, int64_t, int64_t, struct CUstream_st *));
SIGNATURE(eplb_recorder_get_info,
          eplb_status (*)(const eplb_recorder *, eplb_recorder_info *, uint64_t *, size_t));
SIGNATURE(eplb_recorder_destroy, void (*)(eplb_recorder *));

// Placement
SIGNATURE(eplb_placement_create, eplb_status (*)(const eplb_placement_config *, const int32_t *, size_t,
                                                 const int32_t *, eplb_placement **));
SIGNATURE(eplb_placement_load,
          eplb_status (*)(const char *, const eplb_placement_load_options *, eplb_placement **));
SIGNATURE(eplb_placement_save, eplb_status (*)(const eplb_placement *, const char *));
SIGNATURE(eplb_placement_get_info, eplb_status (*)(const eplb_placement *, eplb_placement_info *));
SIGNATURE(eplb_placement_rank_experts,
          eplb_status (*)(const eplb_placement *, int32_t, uint32_t, const int32_t **, size_t *));
SIGNATURE(eplb_placement_distinct_experts,
          eplb_status (*)(const eplb_placement *, int32_t, uint32_t, int32_t *, size_t, size_t *));
SIGNATURE(eplb_placement_layer_experts,
          eplb_status (*)(const eplb_placement *, int32_t, const int32_t **, size_t *));
SIGNATURE(eplb_placement_validate,
          eplb_status (*)(const eplb_placement *, eplb_placement_issue *, size_t, size_t *));
SIGNATURE(eplb_placement_hash, eplb_status (*)(const eplb_placement *, uint64_t *));
SIGNATURE(eplb_placement_destroy, void (*)(eplb_placement *));

// Dispatch
SIGNATURE(eplb_dispatch_memory_required,
          eplb_status (*)(const eplb_placement *, const eplb_dispatch_config *, size_t *));
SIGNATURE(eplb_dispatch_create,
          eplb_status (*)(const eplb_placement *, const eplb_dispatch_config *, eplb_dispatch **));
SIGNATURE(eplb_dispatch_get_tables, eplb_status (*)(const eplb_dispatch *, int32_t, eplb_dispatch_tables *));
SIGNATURE(eplb_dispatch_get_info, eplb_status (*)(const eplb_dispatch *, eplb_dispatch_info *));
SIGNATURE(eplb_dispatch_register_rank_counts,
          eplb_status (*)(eplb_dispatch *, int32_t, const void *, int32_t));
SIGNATURE(eplb_dispatch_route,
          eplb_status (*)(const eplb_dispatch *, int32_t, const eplb_expert_ids *, uint32_t, const int32_t *,
                          const eplb_slot_ids *, struct CUstream_st *));
SIGNATURE(eplb_dispatch_route_and_count,
          eplb_status (*)(const eplb_dispatch *, const eplb_recorder *, int32_t, const eplb_expert_ids *,
                          uint32_t, const int32_t *, const eplb_slot_ids *, struct CUstream_st *));
SIGNATURE(eplb_dispatch_destroy, void (*)(eplb_dispatch *));

// Statistics
SIGNATURE(eplb_stats_load, eplb_status (*)(const char *, const eplb_stats_options *, eplb_stats **));
SIGNATURE(eplb_stats_create, eplb_status (*)(const eplb_stats_config *, const void *, eplb_stats **));
SIGNATURE(eplb_stats_get_info, eplb_status (*)(const eplb_stats *, eplb_stats_info *));
SIGNATURE(eplb_stats_layer_loads, eplb_status (*)(const eplb_stats *, int32_t, size_t, size_t, double *));
SIGNATURE(eplb_stats_destroy, void (*)(eplb_stats *));

// Solving
SIGNATURE(eplb_solve, eplb_status (*)(const eplb_placement_config *, const eplb_solve_options *,
                                      const int32_t *, size_t, const double *, size_t, eplb_placement **));
SIGNATURE(eplb_deepseek_rebalance,
          eplb_status (*)(const eplb_placement_config *, const eplb_solve_options *, const double *, size_t,
                          size_t, int32_t *, int32_t *, int32_t *));
SIGNATURE(eplb_suggest_num_slots, eplb_status (*)(uint32_t, uint32_t, uint32_t, uint32_t *, uint32_t *));

// Generating
SIGNATURE(eplb_generate, eplb_status (*)(const eplb_generate_config *, const eplb_stats_options *,
                                         const eplb_solve_options *, eplb_generate_report *));
static_assert(std::is_same_v<eplb_progress_callback, int32_t (*)(void *, int32_t, uint64_t, uint64_t)>);

// Evaluation
SIGNATURE(eplb_placement_evaluate,
          eplb_status (*)(const eplb_placement *, int32_t, const double *, size_t, size_t,
                          const eplb_solve_options *, eplb_placement_evaluation *));
SIGNATURE(eplb_placement_expected_load, eplb_status (*)(const eplb_placement *, const eplb_dispatch_config *,
                                                        int32_t, const int64_t *, int32_t, double *));
SIGNATURE(eplb_placement_routed_load,
          eplb_status (*)(const eplb_placement *, const eplb_dispatch_config *, int32_t,
                          const eplb_expert_ids *, const uint32_t *, int32_t, double *));

// Exchange
SIGNATURE(eplb_stats_load_file, eplb_status (*)(const char *, const eplb_file_options *, eplb_stats **));
SIGNATURE(eplb_placement_load_file,
          eplb_status (*)(const char *, const eplb_file_options *, eplb_placement **));
SIGNATURE(eplb_stats_save_file, eplb_status (*)(const eplb_stats *, const char *, const eplb_file_options *));
SIGNATURE(eplb_placement_save_file,
          eplb_status (*)(const eplb_placement *, const char *, const eplb_file_options *));

// Metrics
SIGNATURE(eplb_metrics_create, eplb_status (*)(eplb_metrics **));
SIGNATURE(eplb_metrics_add_recorder,
          eplb_status (*)(eplb_metrics *, const eplb_recorder *, const eplb_metrics_label *, size_t));
SIGNATURE(eplb_metrics_add_placement,
          eplb_status (*)(eplb_metrics *, const eplb_placement *, const eplb_metrics_label *, size_t));
SIGNATURE(eplb_metrics_add_dispatch,
          eplb_status (*)(eplb_metrics *, const eplb_dispatch *, const eplb_metrics_label *, size_t));
SIGNATURE(eplb_metrics_set_layer_series, eplb_status (*)(eplb_metrics *, uint32_t));
SIGNATURE(eplb_metrics_text, eplb_status (*)(eplb_metrics *, const char **, size_t *));
SIGNATURE(eplb_metrics_destroy, void (*)(eplb_metrics *));

// Live rebalancing
SIGNATURE(eplb_recorder_snapshot, eplb_status (*)(eplb_recorder *, int64_t *, uint32_t, CUstream_st *));
SIGNATURE(eplb_dispatch_stage_layer,
          eplb_status (*)(const eplb_dispatch *, const eplb_plan *, int32_t, CUstream_st *));
SIGNATURE(eplb_dispatch_update_layer,
          eplb_status (*)(const eplb_dispatch *, const eplb_plan *, int32_t, CUstream_st *));
SIGNATURE(eplb_dispatch_commit_layer, eplb_status (*)(const eplb_dispatch *, int32_t, CUstream_st *));
SIGNATURE(eplb_dispatch_host_memory_required,
          eplb_status (*)(const eplb_placement *, const eplb_dispatch_config *, size_t *));
SIGNATURE(eplb_dispatch_get_generation, eplb_status (*)(const eplb_dispatch *, int32_t, uint64_t *));
SIGNATURE(eplb_dispatch_set_active_ranks,
          eplb_status (*)(const eplb_dispatch *, const uint8_t *, uint32_t, CUstream_st *));
SIGNATURE(eplb_plan_create, eplb_status (*)(const eplb_placement *, const eplb_placement *,
                                            const eplb_plan_options *, eplb_plan **));
SIGNATURE(eplb_plan_get_info, eplb_status (*)(const eplb_plan *, eplb_plan_info *));
SIGNATURE(eplb_plan_layer_info, eplb_status (*)(const eplb_plan *, int32_t, eplb_planned_layer *));
SIGNATURE(eplb_plan_layer_experts,
          eplb_status (*)(const eplb_plan *, int32_t, uint32_t, const int32_t **, size_t *));
SIGNATURE(eplb_plan_transfers,
          eplb_status (*)(const eplb_plan *, int32_t, int32_t, eplb_transfer *, size_t, size_t *));
SIGNATURE(eplb_plan_num_readers, eplb_status (*)(const eplb_plan *, int32_t, uint32_t, uint32_t *));
SIGNATURE(eplb_keep_reason_string, const char *(*)(int32_t));
SIGNATURE(eplb_plan_destroy, void (*)(eplb_plan *));
SIGNATURE(eplb_rebalancer_create,
          eplb_status (*)(const eplb_rebalancer_config *, const eplb_placement *, eplb_rebalancer **));
SIGNATURE(eplb_rebalancer_observe,
          eplb_status (*)(eplb_rebalancer *, const int64_t *, uint32_t, uint64_t, int32_t));
SIGNATURE(eplb_rebalancer_plan, eplb_status (*)(eplb_rebalancer *, const eplb_plan_limits *, eplb_plan **));
SIGNATURE(eplb_rebalancer_commit_layer, eplb_status (*)(eplb_rebalancer *, const eplb_plan *, int32_t));
SIGNATURE(eplb_rebalancer_abort, eplb_status (*)(eplb_rebalancer *, const eplb_plan *));
SIGNATURE(eplb_rebalancer_placement, eplb_status (*)(const eplb_rebalancer *, eplb_placement **));
SIGNATURE(eplb_rebalancer_set_active_ranks, eplb_status (*)(eplb_rebalancer *, const uint8_t *, uint32_t));
SIGNATURE(eplb_rebalancer_get_info, eplb_status (*)(const eplb_rebalancer *, eplb_rebalancer_info *));
SIGNATURE(eplb_rebalancer_reset, eplb_status (*)(eplb_rebalancer *, const eplb_placement *));
SIGNATURE(eplb_metrics_add_rebalancer,
          eplb_status (*)(eplb_metrics *, const eplb_rebalancer *, const eplb_metrics_label *, size_t));
SIGNATURE(eplb_rebalancer_destroy, void (*)(eplb_rebalancer *));

// The enumerations, which are of 32 bits in C and C++.
#define ENUMERATION(name) static_assert(std::is_same_v<name, int32_t>, #name)
ENUMERATION(eplb_status);
ENUMERATION(eplb_buffering);
ENUMERATION(eplb_decision);
ENUMERATION(eplb_keep_reason);
ENUMERATION(eplb_transfer_kind);
ENUMERATION(eplb_log_level);
ENUMERATION(eplb_dtype);
ENUMERATION(eplb_id_kind);
ENUMERATION(eplb_recorder_state);
ENUMERATION(eplb_missing_layers);
ENUMERATION(eplb_issue_kind);
ENUMERATION(eplb_rule);
ENUMERATION(eplb_policy);
ENUMERATION(eplb_objective);
ENUMERATION(eplb_phase);
ENUMERATION(eplb_file_format);
