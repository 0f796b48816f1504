// A dispatch with a wrong table: the slots of two experts of layer 2 are swapped. The linker's --wrap puts it
// into a separate engine. For the host, where the slots are written when the call returns.
#include <eplb.h>

extern "C" eplb_status __real_eplb_dispatch_route_and_count(const eplb_dispatch *, const eplb_recorder *,
                                                            int32_t, const eplb_expert_ids *, uint32_t,
                                                            const int32_t *, const eplb_slot_ids *,
                                                            CUstream_st *);

extern "C" eplb_status __wrap_eplb_dispatch_route_and_count(const eplb_dispatch *dispatch,
                                                            const eplb_recorder *recorder, int32_t layer,
                                                            const eplb_expert_ids *expert_ids,
                                                            uint32_t num_tokens, const int32_t *num_valid,
                                                            const eplb_slot_ids *slot_ids,
                                                            CUstream_st *stream) {
    const eplb_status status = __real_eplb_dispatch_route_and_count(dispatch, recorder, layer, expert_ids,
                                                                    num_tokens, num_valid, slot_ids, stream);
    if (layer == 2) {
        eplb_dispatch_tables tables = EPLB_DISPATCH_TABLES_INIT;
        eplb_dispatch_get_tables(dispatch, layer, &tables);
        const int32_t one = tables.slot_ids[tables.replica_start[7]],
                      other = tables.slot_ids[tables.replica_start[8]];
        auto *slots = static_cast<int32_t *>(slot_ids->data);
        for (int32_t *slot = slots; slot != slots + size_t(*num_valid) * 8; slot++) {
            *slot = *slot == one ? other : *slot == other ? one : *slot;
        }
    }
    return status;
}
