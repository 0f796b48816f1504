#ifndef MOE_ENGINE_ENGINE_H
#define MOE_ENGINE_ENGINE_H

#include <eplb.hpp>
#include <memory>
#include <string>
#include <vector>

#include "device.h"
#include "model/model.h"
#include "rebalance.h"
#include "routed_experts.h"
#include "transport.h"

struct engine_options {
    /// The configuration file. Empty: E / ranks consecutive experts on each rank, one slot each.
    std::string moe_load_balancer;
    eplb_rule rule = EPLB_RULE_DEFAULT;
    /// The ids that the recorder counts.
    eplb_id_kind id_kind = EPLB_ID_KIND_EXPERT;
    /// Ranks that share a node, for EPLB_RULE_NEAREST; 0: all.
    int ranks_per_node = 0;
    /// host, cuda or other: where ids are counted and routed.
    std::string device = "host";
    /// What the counters of the other device are: EPLB_ADDED_COUNTS_...
    uint32_t added_counts = 0;
    /// Slots of all ranks without a configuration file; 0: one an expert.
    uint32_t num_slots = 0;
    rebalance_options rebalance;
    /// Most tokens of a rank in an iteration.
    size_t max_tokens = 0;
};

/// What a rank computed in an iteration.
struct step_result {
    std::vector<float> logits;                  // [num_tokens][vocab_size]
    std::vector<std::vector<int32_t>> topk_ids; // of each MoE layer, [num_tokens][num_experts_per_tok]
    std::vector<size_t> served;                 // of each MoE layer, the tokens that this rank served
    double seconds = 0;                         // the whole step, with what was moved before it
    bool has_commit = false;                    // whether a layer's table changed before it
    int64_t moves = 0;                          // slots of all ranks that received an expert before it
};

/// One rank of an expert-parallel engine: its own requests, and the experts in its slots for all requests.
class engine {
  public:
    engine(const model &model, transport &transport, const engine_options &options);

    /// One iteration, which all ranks do together; a rank may have no sequences in it.
    step_result step(int64_t iteration, const batch &sequences);

    /// After the last iteration: writes the dump if the range has not passed yet, and waits for it. Returns
    /// the error, if any, so that the run keeps its other results and other ranks write their dumps.
    std::string finish();

    /// The metrics of this rank, for Prometheus; at any time.
    std::string metrics() const;

    size_t num_slots() const { return num_slots_; }
    /// Whether this rank was killed: it has no requests any more.
    bool is_dead() const { return rebalance_ && rebalance_->is_dead(); }
    /// NULL without rebalancing.
    const rebalance *rebalancing() const { return rebalance_.get(); }
    /// Time spent in eplb's calls of step(); on a GPU, in the graphs with them.
    double eplb_seconds() const {
        return eplb_seconds_ + (rebalance_ ? rebalance_->totals().eplb_seconds : 0);
    }

  private:
    eplb::placement load_placement(const engine_options &options) const;
    void check_same_placement();
    eplb::recorder create_recorder(const engine_options &options) const;
    eplb::dispatch create_dispatch(const engine_options &options) const;
    const int32_t *route(int32_t layer, const std::vector<int32_t> &expert_ids);
    void forward(const batch &sequences, step_result &result);
    void prepare_other_device();
    void copy_tables(size_t layer);
    void route_on_other_device(size_t layer);
    void add_counters();
    int32_t *received_counters(size_t layer) const;

    const model &model_;
    transport &transport_;
    std::vector<int32_t> moe_layers_;
    eplb::placement placement_;
    uint32_t num_slots_;
    device device_;
    eplb::recorder recorder_;
    eplb::dispatch dispatch_;
    std::vector<routed_experts> experts_; // of each MoE layer
    std::unique_ptr<rebalance> rebalance_;

    // The graphs read and write these, so their addresses never change.
    uint32_t max_tokens_;
    mirrored<int32_t> expert_ids_, num_valid_, slot_ids_;

    // For the other device.
    engine_options options_;
    size_t num_counters_ = 0;
    std::unique_ptr<mirrored<int32_t>> counters_;                   // [MoE layers][num_counters_]
    std::vector<std::unique_ptr<mirrored<int32_t>>> tables_memory_; // of each MoE layer
    std::vector<other_device::tables> tables_;                      // of each MoE layer
    double eplb_seconds_ = 0;
};

#endif
