#ifndef EPLB_BENCH_PLAIN_ROUTE_H
#define EPLB_BENCH_PLAIN_ROUTE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The dispatch tables of a layer. */
struct plain_tables {
    const int32_t *replica_count, *replica_start, *slot_ids;
    int32_t num_experts, num_slots;
};

/* Both read [num_ids] ids and write as many slots. `seen` is [num_experts]. */
void plain_round_robin(const struct plain_tables *tables, const int32_t *ids, size_t num_ids, int32_t *slots,
                       uint32_t *seen);
void plain_token_hash(const struct plain_tables *tables, const int32_t *ids, size_t num_ids, size_t choices,
                      int32_t *slots);

#ifdef __cplusplus
}
#endif

#endif
