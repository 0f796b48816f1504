#include <eplb.h>
#include <stdio.h>

// Loads a placement of 8 experts in 10 slots on 2 ranks, and routes 3 tokens of layer 3 on rank 0.
int main(void) {
    const int32_t chosen[3][2] = {{0, 5}, {5, 2}, {5, 7}}; // [num_tokens][experts_per_token]
    int32_t slots[3][2];
    const eplb_expert_ids expert_ids = {chosen, EPLB_DTYPE_INT32, 0};
    const eplb_slot_ids slot_ids = {slots, EPLB_DTYPE_INT32, 0};
    const int32_t *experts = NULL;
    size_t num_slots = 0;
    eplb_placement *placement = NULL;
    eplb_dispatch *dispatch = NULL;
    eplb_placement_load_options options = EPLB_PLACEMENT_LOAD_OPTIONS_INIT;
    options.num_experts = 8;
    options.num_ranks = 2;
    eplb_dispatch_config config = EPLB_DISPATCH_CONFIG_INIT; // config.rank: 0
    config.num_ranks = 2;
    config.experts_per_token = 2;
    eplb_status status = eplb_placement_load("moe_load_balancer.yaml", &options, &placement);
    if (status == EPLB_STATUS_OK) // the weights to hold: experts[i] in slot i of this rank
        status = eplb_placement_rank_experts(placement, 3, config.rank, &experts, &num_slots);
    if (status == EPLB_STATUS_OK)
        status = eplb_dispatch_create(placement, &config, &dispatch);
    if (status == EPLB_STATUS_OK) // each step, after the layer's router
        status = eplb_dispatch_route(dispatch, 3, &expert_ids, 3, NULL, &slot_ids, NULL);
    for (int i = 0; status == EPLB_STATUS_OK && i < 6; i++) // slot s is on rank s / num_slots
        printf("expert %d: slot %d\n", chosen[i / 2][i % 2], slots[i / 2][i % 2]);
    if (status != EPLB_STATUS_OK)
        fprintf(stderr, "%s: %s\n", eplb_status_string(status), eplb_last_error_message());
    eplb_dispatch_destroy(dispatch);
    eplb_placement_destroy(placement);
    return status != EPLB_STATUS_OK;
}
