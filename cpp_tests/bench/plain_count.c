/* The loop that an engine would write without eplb: the baseline of counting. */
#include "plain_count.h"

size_t plain_count_int32(const int32_t *ids, size_t num_ids, uint32_t *counts, int32_t num_experts) {
    size_t ignored = 0;
    for (size_t i = 0; i < num_ids; i++) {
        if (ids[i] >= 0 && ids[i] < num_experts) {
            counts[ids[i]]++;
        } else {
            ignored++;
        }
    }
    return ignored;
}

size_t plain_count_int64(const int64_t *ids, size_t num_ids, uint32_t *counts, int64_t num_experts) {
    size_t ignored = 0;
    for (size_t i = 0; i < num_ids; i++) {
        if (ids[i] >= 0 && ids[i] < num_experts) {
            counts[ids[i]]++;
        } else {
            ignored++;
        }
    }
    return ignored;
}
