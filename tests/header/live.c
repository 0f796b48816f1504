#include <eplb_live.h>
#include <stdio.h>
#include <string.h>

// What the engine has: its collectives, and a way to move the weights of an expert. Here is one rank.
static void sum_over_ranks(int64_t *counts, size_t size) { (void)counts, (void)size; }
static void max_over_ranks(uint64_t *words, size_t size) { (void)words, (void)size; }
static void move_weights(const eplb_transfer *t) {
    printf("expert %d from slot %d to slot %d\n", t->expert, t->src_slot, t->dst_slot);
}

// Every 4 iterations: balances the 4 experts of layer 3, of which the router mostly chooses 0 and 1.
int main(void) {
    const int32_t layer = 3, slot_experts[] = {0, 1, 2, 3}, chosen[] = {0, 1, 0, 1, 0, 1, 2, 3};
    const eplb_expert_ids ids = {chosen, EPLB_DTYPE_INT32, 0}; // [8][1]
    eplb_recorder *recorder = NULL;
    eplb_placement *placement = NULL;
    eplb_dispatch *dispatch = NULL;
    eplb_rebalancer *rebalancer = NULL;
    eplb_placement_config shape = EPLB_PLACEMENT_CONFIG_INIT;
    shape.num_experts = 4, shape.num_ranks = 2;
    eplb_recorder_config counting = EPLB_RECORDER_CONFIG_INIT;
    counting.num_ranks = 2, counting.num_experts = 4, counting.experts_per_token = 1;
    counting.layer_ids = &layer, counting.num_layers = 1, counting.rolling_iterations = 8;
    eplb_dispatch_config routing = EPLB_DISPATCH_CONFIG_INIT;
    routing.num_ranks = 2, routing.experts_per_token = 1, routing.live = 1;
    eplb_rebalancer_config planning = EPLB_REBALANCER_CONFIG_INIT;
    planning.experts_per_token = 1, planning.min_tokens = -1, planning.noise = -1; // so few tokens
    eplb_plan_limits limits = EPLB_PLAN_LIMITS_INIT;
    limits.max_layer_moves = 2;
    eplb_status s = eplb_placement_create(&shape, &layer, 1, slot_experts, &placement);
    if (s == EPLB_STATUS_OK) s = eplb_recorder_create(&counting, &recorder);
    if (s == EPLB_STATUS_OK) s = eplb_dispatch_create(placement, &routing, &dispatch);
    if (s == EPLB_STATUS_OK) s = eplb_rebalancer_create(&planning, placement, &rebalancer);
    for (int64_t iteration = 0; s == EPLB_STATUS_OK && iteration < 8; iteration++) {
        s = eplb_recorder_begin_iteration(recorder, iteration, NULL);
        if (s == EPLB_STATUS_OK) s = eplb_recorder_count_ids(recorder, layer, &ids, 8, NULL, NULL);
        if (s != EPLB_STATUS_OK || iteration % 4 != 3) continue;

        int64_t counts[1][4]; // 1. Counts of all ranks, on every rank
        s = eplb_recorder_snapshot(recorder, counts[0], 1, NULL);
        sum_over_ranks(counts[0], 4);
        if (s == EPLB_STATUS_OK) s = eplb_rebalancer_observe(rebalancer, counts[0], 1, 32, 0);
        eplb_plan *plan = NULL; // 2. A plan, on every rank, and whether it is the same one
        eplb_plan_info info = EPLB_PLAN_INFO_INIT;
        if (s == EPLB_STATUS_OK) s = eplb_rebalancer_plan(rebalancer, &limits, &plan);
        if (s == EPLB_STATUS_OK) s = eplb_plan_get_info(plan, &info);
        uint64_t words[2] = {EPLB_PLAN_DISAGREE, EPLB_PLAN_DISAGREE};
        if (s == EPLB_STATUS_OK) memcpy(words, info.agreement, sizeof words);
        max_over_ranks(words, 2);
        const int agree = words[0] == ~words[1]; // otherwise: abort, and reset from rank 0's placement
        if (s == EPLB_STATUS_OK) printf("%s\n", info.message);
        for (size_t i = 0; s == EPLB_STATUS_OK && agree && i < info.num_layers; i++) {
            const int32_t changed = info.layer_ids[i]; // 3. Each layer at its own pace
            eplb_transfer transfers[4];
            size_t num_transfers = 0;
            s = eplb_plan_transfers(plan, changed, -1, transfers, 4, &num_transfers); // -1: of all
            for (size_t t = 0; s == EPLB_STATUS_OK && t < num_transfers; t++)
                move_weights(&transfers[t]);
            // 4. When it has arrived everywhere, at the same step: staging to slots, then the table
            if (s == EPLB_STATUS_OK) s = eplb_dispatch_update_layer(dispatch, plan, changed, NULL);
            if (s == EPLB_STATUS_OK) s = eplb_rebalancer_commit_layer(rebalancer, plan, changed);
        }
        eplb_plan_destroy(plan);
    }
    if (s != EPLB_STATUS_OK)
        fprintf(stderr, "%s: %s\n", eplb_status_string(s), eplb_last_error_message());
    eplb_rebalancer_destroy(rebalancer);
    eplb_dispatch_destroy(dispatch);
    eplb_placement_destroy(placement);
    eplb_recorder_destroy(recorder);
    return s != EPLB_STATUS_OK;
}
