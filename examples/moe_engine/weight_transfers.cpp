#include "weight_transfers.h"

#include <cstdio>

bool weight_transfers::run(const std::vector<eplb_transfer> &transfers, const eplb_planned_layer &plan,
                           routed_experts &experts) {
    const int rank = transport_.rank();
    const bool is_staged = plan.buffering == EPLB_BUFFERING_STAGED;
    bool is_right = true;
    auto next = transfers.begin();
    // In a round a rank sends to one rank at most, and receives from one at most. Transfers within the rank
    // follow, since they may copy what has just arrived.
    for (uint32_t round = 0; round < plan.num_rounds; round++) {
        std::vector<char> sent;
        int to = -1, from = -1;
        const auto first = next;
        for (; next != transfers.end() && next->round == round; next++) {
            if (next->src_rank == rank && next->dst_rank != rank) {
                to = next->dst_rank;
                sent = experts.pack(local(experts, next->src_slot), next->expert);
                if (num_sent_++ == spoilt_) {
                    sent.back() ^= 1;
                }
            } else if (next->dst_rank == rank && next->src_rank >= 0 && next->src_rank != rank) {
                from = next->src_rank;
            }
        }
        const std::vector<char> arrived =
            nccl_ != nullptr ? nccl_->send_receive(sent, to, from, experts.packed_bytes())
                             : transport_.send_receive(sent, to, from, experts.packed_bytes());
        bytes_received_ += static_cast<int64_t>(arrived.size());
        for (auto transfer = first; transfer != next; transfer++) {
            if (transfer->dst_rank == rank && !receive(*transfer, arrived, is_staged, experts)) {
                is_right = false;
            }
        }
    }
    return is_right;
}

bool weight_transfers::receive(const eplb_transfer &transfer, const std::vector<char> &arrived,
                               bool is_staged, routed_experts &experts) const {
    const size_t slot = local(experts, transfer.dst_slot);
    switch (transfer.kind) {
    case EPLB_TRANSFER_KIND_HOST: // No rank has it: as when the engine starts.
        experts.load(model_, slot, transfer.expert, is_staged);
        return true;
    case EPLB_TRANSFER_KIND_LOCAL:
        experts.copy(local(experts, transfer.src_slot), slot, transfer.expert, is_staged);
        return true;
    default:
        break;
    }
    if (experts.unpack(arrived, slot, transfer.expert, is_staged)) {
        return true;
    }
    std::fprintf(stderr, "rank %d: layer %d, expert %d arrived from rank %d with other bytes; %s\n",
                 transport_.rank(), transfer.layer, transfer.expert, transfer.src_rank,
                 is_staged ? "the layer stays as it is" : "it is loaded again");
    if (!is_staged) { // What the slot held is not needed any more, so the layer goes on.
        experts.load(model_, slot, transfer.expert, false);
    }
    return !is_staged;
}

/// A rank's spare slot follows its own slots; in a plan those of all ranks follow all slots.
size_t weight_transfers::local(const routed_experts &experts, int32_t slot) const {
    const size_t of_rank = experts.num_slots(), all = of_rank * static_cast<size_t>(transport_.num_ranks());
    const auto place = static_cast<size_t>(slot);
    return place < all ? place % of_rank : of_rank;
}
