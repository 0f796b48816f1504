/* The loops that an engine would write without eplb: the baselines of routing. */
#include "plain_route.h"

#include <string.h>

void plain_round_robin(const struct plain_tables *tables, const int32_t *ids, size_t num_ids, int32_t *slots,
                       uint32_t *seen) {
    for (size_t i = 0; i < num_ids; i++) {
        if (i % 1024 == 0) {
            memset(seen, 0, (size_t)tables->num_experts * sizeof *seen);
        }
        const int32_t id = ids[i];
        if (id < 0 || id >= tables->num_experts) {
            slots[i] = tables->num_slots;
            continue;
        }
        const uint32_t replica = (seen[id]++ + (uint32_t)(i / 1024)) % (uint32_t)tables->replica_count[id];
        slots[i] = tables->slot_ids[tables->replica_start[id] + (int32_t)replica];
    }
}

void plain_token_hash(const struct plain_tables *tables, const int32_t *ids, size_t num_ids, size_t choices,
                      int32_t *slots) {
    for (size_t token = 0; token < num_ids / choices; token++) {
        const uint32_t hash = (uint32_t)token * 2654435769u;
        for (size_t i = token * choices; i < (token + 1) * choices; i++) {
            const int32_t id = ids[i];
            if (id < 0 || id >= tables->num_experts) {
                slots[i] = tables->num_slots;
                continue;
            }
            const uint32_t replica = hash % (uint32_t)tables->replica_count[id];
            slots[i] = tables->slot_ids[tables->replica_start[id] + (int32_t)replica];
        }
    }
}
