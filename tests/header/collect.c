#include <eplb.h>
#include <stdio.h>

// Counts the experts that two layers' routers choose in iterations 0 and 1, and dumps the counts.
int main(void) {
    const int32_t layer_ids[] = {3, 4};
    const int32_t chosen[3][2] = {{0, 5}, {5, 2}, {5, 7}}; // [num_tokens][experts_per_token]
    const eplb_expert_ids expert_ids = {chosen, EPLB_DTYPE_INT32, 0};
    eplb_recorder *recorder = NULL;
    eplb_recorder_config config = EPLB_RECORDER_CONFIG_INIT; // config.device: EPLB_DEVICE_HOST
    config.num_ranks = 1;
    config.num_experts = 8;
    config.experts_per_token = 2;
    config.layer_ids = layer_ids;
    config.num_layers = 2;
    config.path = "expert_statistic";
    config.iter_stop = 2; // or from the environment: eplb_recorder_config_from_env(&config)
    eplb_status status = eplb_recorder_create(&config, &recorder);
    for (int64_t iteration = 0; status == EPLB_STATUS_OK && iteration <= 2; iteration++) {
        status = eplb_recorder_begin_iteration(recorder, iteration, NULL); // 2 starts the dump
        for (int i = 0; status == EPLB_STATUS_OK && i < 2; i++)            // after each layer's router
            status = eplb_recorder_count_ids(recorder, layer_ids[i], &expert_ids, 3, NULL, NULL);
    }
    if (status == EPLB_STATUS_OK)
        status = eplb_recorder_flush(recorder, -1); // waits until the dump is on disk
    if (status != EPLB_STATUS_OK)
        fprintf(stderr, "%s: %s\n", eplb_status_string(status), eplb_last_error_message());
    eplb_recorder_destroy(recorder);
    return status != EPLB_STATUS_OK;
}
