#ifndef MOE_ENGINE_WEIGHT_TRANSFERS_H
#define MOE_ENGINE_WEIGHT_TRANSFERS_H

#include <eplb_live.hpp>
#include <vector>

#include "model/model.h"
#include "nccl.h"
#include "routed_experts.h"
#include "transport.h"

/// Moves the weights of experts between ranks, as a plan of eplb says.
class weight_transfers {
  public:
    /// `spoilt` is the number, among the experts that this rank sends, of the one that gets a wrong bit; -1:
    /// none.
    /// `most_bytes` of an expert travel by NCCL where `device` is a GPU that no other rank has.
    weight_transfers(const model &model, transport &transport, const device &device, size_t most_bytes,
                     int64_t spoilt)
        : model_(model), transport_(transport), nccl_(nccl::connect(transport, device, most_bytes)),
          spoilt_(spoilt) {}

    /// Carries out the transfers of a layer in which this rank takes part, round by round. All ranks call it
    /// together. Returns false if an expert for staging arrived with other bytes than its sender loaded.
    bool run(const std::vector<eplb_transfer> &transfers, const eplb_planned_layer &plan,
             routed_experts &experts);

    int64_t bytes_received() const { return bytes_received_; }
    bool by_nccl() const { return nccl_ != nullptr; }

  private:
    bool receive(const eplb_transfer &transfer, const std::vector<char> &arrived, bool is_staged,
                 routed_experts &experts) const;
    size_t local(const routed_experts &experts, int32_t slot) const;

    const model &model_;
    transport &transport_;
    std::unique_ptr<nccl> nccl_;
    int64_t spoilt_, num_sent_ = 0, bytes_received_ = 0;
};

#endif
