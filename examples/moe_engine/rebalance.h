#ifndef MOE_ENGINE_REBALANCE_H
#define MOE_ENGINE_REBALANCE_H

#include <eplb_live.hpp>
#include <functional>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "device.h"
#include "model/model.h"
#include "routed_experts.h"
#include "transport.h"
#include "weight_transfers.h"

struct rebalance_options {
    /// Iterations from a plan to the next one; 0: the placement never changes.
    int64_t every = 0;
    /// Snapshots that a plan is made from.
    uint32_t window = 8;
    /// Most slots of a layer that receive an expert by a plan; 0: any.
    uint32_t max_moves = 0;
    /// Tokens of the hottest rank that a move must save until the next plan.
    double move_price = 0;
    eplb_buffering buffering = EPLB_BUFFERING_STAGED;
    /// The rank that dies, and when; -1: none.
    int kill_rank = -1;
    int64_t kill_iteration = -1;
    /// The number of the expert, among those that a rank sends, that arrives with a wrong bit; -1: none.
    int64_t spoil_transfer = -1;
};

/// The dead ranks held the last replica of an expert. The message names the experts.
struct lost_experts : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// The program's exit code for an error.
inline int exit_code(const std::exception &error) {
    return dynamic_cast<const lost_experts *>(&error) != nullptr ? 3 : 1;
}

/// What rebalancing did.
struct rebalance_totals {
    /// Plans that moved experts; layers that changed; slots of all ranks that received one; changes of
    /// tables; plans that ended early.
    int64_t plans = 0, layers = 0, moves = 0, commits = 0, aborted = 0;
    /// Weights travelled by NCCL.
    bool by_nccl = false;
    /// Time in eplb's calls.
    double eplb_seconds = 0;
    /// Plans that kept the placement, by reason.
    std::map<std::string, int64_t> kept;
};

/// Moves the experts of a running engine to where they are needed. All ranks make the same calls.
class rebalance {
  public:
    /// What the engine has. All must outlive this.
    struct engine_parts {
        const model &weights;
        transport &ranks;
        const device &forward;
        eplb::recorder &recorder;
        const eplb::dispatch &dispatch;
        const eplb::placement &placement;
        const std::vector<int32_t> &layers;
        std::vector<routed_experts> &experts; // of each layer
        /// Called after the table of a layer has changed.
        std::function<void(size_t layer)> on_commit;
    };
    rebalance(const rebalance_options &options, const engine_parts &engine, int ranks_per_node);

    /// Between two steps.
    void before_step(int64_t iteration);
    void after_step(int64_t iteration, size_t num_tokens);

    bool is_dead() const { return active_[static_cast<size_t>(engine_.ranks.rank())] == 0; }
    /// What is in force.
    eplb::placement placement() const { return rebalancer_.placement(); }
    const eplb::rebalancer &rebalancer() const { return rebalancer_; }
    const rebalance_totals &totals() const { return totals_; }
    /// Weights that this rank received from other ranks.
    int64_t bytes_received() const { return transfers_.bytes_received(); }

  private:
    void plan();
    bool agree(uint64_t first, uint64_t second) const;
    void start_again();
    void move_layer();
    void commit(int32_t layer);
    void kill(int rank);
    size_t index_of(int32_t layer) const;

    rebalance_options options_;
    engine_parts engine_;
    eplb::rebalancer rebalancer_;
    eplb::plan_limits limits_;
    mirrored<int64_t> counts_; // [layers][experts]
    int64_t tokens_ = 0;       // of this rank since the last snapshot
    std::optional<eplb::plan> plan_;
    std::vector<int32_t> layers_left_;
    std::vector<uint8_t> active_;
    weight_transfers transfers_;
    rebalance_totals totals_;
};

#endif
