#ifndef EPLB_BENCH_PLAIN_COUNT_H
#define EPLB_BENCH_PLAIN_COUNT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Counts [num_ids] ids and returns the number of invalid ones. */
size_t plain_count_int32(const int32_t *ids, size_t num_ids, uint32_t *counts, int32_t num_experts);
size_t plain_count_int64(const int64_t *ids, size_t num_ids, uint32_t *counts, int64_t num_experts);

#ifdef __cplusplus
}
#endif

#endif
