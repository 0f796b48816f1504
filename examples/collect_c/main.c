/* Step 1 on the host: counts the experts that the routers of 4 ranks choose, as an engine would.
 *
 *   EXPERT_STATISTIC_ITER_RANGE=100-200 EXPERT_STATISTIC_PATH=expert_statistic collect_c
 *
 * Without the first variable it counts nothing. An engine on GPUs makes the same calls: it sets
 * config.device, passes device memory and its streams, and may capture the counting in CUDA graphs.
 */
#include <eplb.h>
#include <stdio.h>
#include <stdlib.h>

enum { RANKS = 4, LAYERS = 3, EXPERTS = 64, CHOICES = 6, MAX_TOKENS = 32, ITERATIONS = 210 };

static const int32_t layer_ids[LAYERS] = {1, 2, 5};

static void check(eplb_status status) {
    if (status != EPLB_STATUS_OK) {
        fprintf(stderr, "%s: %s\n", eplb_status_string(status), eplb_last_error_message());
        exit(1);
    }
}

/* Stands for a router. scripts/check_format.py computes the same. */
static int32_t chosen_expert(int rank, int iteration, int layer, int token, int choice) {
    const uint32_t mixed = (uint32_t)(rank * 7919 + iteration * 104729 + layer * 1299709 + token * 15485863 +
                                      choice * 32452843) *
                           2654435761u;
    return (int32_t)(mixed >> 26);
}

/* One rank of an engine: the ids of each layer, and the number of valid tokens. */
struct engine_rank {
    int32_t expert_ids[LAYERS][MAX_TOKENS * CHOICES];
    int32_t num_valid;
    eplb_recorder *recorder;
};

static void run_layer(struct engine_rank *self, int rank, int iteration, int layer) {
    for (int i = 0; i < MAX_TOKENS * CHOICES; i++) {
        self->expert_ids[layer][i] =
            chosen_expert(rank, iteration, layer_ids[layer], i / CHOICES, i % CHOICES);
    }
}

int main(void) {
    static struct engine_rank engine[RANKS];
    for (int rank = 0; rank < RANKS; rank++) {
        eplb_recorder_config config = EPLB_RECORDER_CONFIG_INIT;
        config.rank = (uint32_t)rank;
        config.num_ranks = RANKS;
        config.num_experts = EXPERTS;
        config.experts_per_token = CHOICES;
        config.layer_ids = layer_ids;
        config.num_layers = LAYERS;
        config.run_id = "collect_c";
        check(eplb_recorder_config_from_env(&config));
        check(eplb_recorder_create(&config, &engine[rank].recorder));
        for (int layer = 0; layer < LAYERS; layer++) {
            const eplb_expert_ids expert_ids = {engine[rank].expert_ids[layer], EPLB_DTYPE_INT32, 0};
            check(eplb_recorder_register_buffer(engine[rank].recorder, layer_ids[layer], &expert_ids,
                                                MAX_TOKENS, &engine[rank].num_valid, NULL));
        }
    }

    for (int iteration = 0; iteration < ITERATIONS; iteration++) {
        for (int rank = 0; rank < RANKS; rank++) {
            struct engine_rank *self = &engine[rank];
            check(eplb_recorder_begin_iteration(self->recorder, iteration, NULL));
            self->num_valid = (iteration + rank) % (MAX_TOKENS + 1);
            for (int layer = 0; layer < LAYERS; layer++) {
                run_layer(self, rank, iteration, layer);
                check(eplb_recorder_count(self->recorder, layer_ids[layer], MAX_TOKENS, NULL));
            }
        }
    }

    for (int rank = 0; rank < RANKS; rank++) {
        eplb_recorder_info info = EPLB_RECORDER_INFO_INIT;
        check(eplb_recorder_get_info(engine[rank].recorder, &info, NULL, 0));
        if (info.state == EPLB_RECORDER_STATE_COUNTING) {
            /* The run ends within the range: the dump is marked as incomplete. */
            check(eplb_recorder_dump(engine[rank].recorder, NULL));
        }
        check(eplb_recorder_flush(engine[rank].recorder, -1));
        printf("rank %d: %llu ids counted in iterations %lld..%lld, %llu of padding\n", rank,
               (unsigned long long)info.ids_counted, (long long)info.counted_start,
               (long long)info.counted_stop, (unsigned long long)info.ids_padding);
        eplb_recorder_destroy(engine[rank].recorder);
    }
    return 0;
}
