// What rebalancing does when ranks disagree, or one dies.
#include <cstdio>

#include "rebalance.h"

/// All ranks start again from rank 0's placement, and forget what they have observed.
void rebalance::start_again() {
    const eplb::placement mine = rebalancer_.placement();
    if (!agree(mine.hash(), ~mine.hash())) {
        throw std::runtime_error("the ranks have different experts in force: restart the engine");
    }
    plan_.reset();
    totals_.aborted++;
    rebalancer_.reset(mine);
    rebalancer_.set_active_ranks(active_); // The reset made all ranks active.
    if (engine_.ranks.rank() == 0) {
        std::fprintf(
            stderr, "the ranks made different plans from different counts: nothing moved, all start again\n");
    }
}

/// The others route around it at once, and the next plans use the slots that are left. A rank that is killed
/// here goes on joining collectives, without tokens, as a process that dies would end an MPI job.
void rebalance::kill(int rank) {
    active_[static_cast<size_t>(rank)] = 0;
    plan_.reset(); // It ends with the call of set_active_ranks().
    try {
        eplb::set_active_ranks(engine_.dispatch, active_, engine_.forward.stream());
        rebalancer_.set_active_ranks(active_);
    } catch (const eplb::error &error) {
        if (error.status() == EPLB_STATUS_NO_REPLICA) {
            throw lost_experts("rank " + std::to_string(rank) + " died: " + error.what());
        }
        throw;
    }
    for (size_t layer = 0; layer < engine_.layers.size(); layer++) {
        engine_.on_commit(layer);
        if (is_dead()) {
            engine_.experts[layer].clear();
        }
    }
}
