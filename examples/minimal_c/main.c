/* Turns a dump into a configuration file, and prints the experts that rank 0 must hold.
 *
 *   minimal_c data/dumps/dsv2lite-translation 8 72 moe_load_balancer.yaml
 */
#include <eplb_tools.h>
#include <stdio.h>
#include <stdlib.h>

static void check(eplb_status status) {
    if (status != EPLB_STATUS_OK) {
        fprintf(stderr, "%s: %s\n", eplb_status_string(status), eplb_last_error_message());
        exit(1);
    }
}

static int32_t show_progress(void *user_data, eplb_phase phase, uint64_t done, uint64_t total) {
    (void)user_data;
    if (phase == EPLB_PHASE_READ && done == total) {
        printf("read %llu bytes of counts\n", (unsigned long long)total);
    }
    return 0; /* continue */
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: %s DUMP EP_SIZE NUM_SLOTS OUTPUT\n", argv[0]);
        return 2;
    }

    /* Step 2: generate. */
    eplb_generate_config config = EPLB_GENERATE_CONFIG_INIT;
    config.expert_statistic_path = argv[1];
    config.num_ranks = (uint32_t)atoi(argv[2]);
    config.num_slots = (uint32_t)atoi(argv[3]);
    config.output_path = argv[4];
    config.progress = show_progress;
    eplb_solve_options solve_options = EPLB_SOLVE_OPTIONS_INIT;
    solve_options.policy = EPLB_POLICY_TRTLLM;
    eplb_generate_report report = EPLB_GENERATE_REPORT_INIT;
    check(eplb_generate(&config, NULL, &solve_options, &report));
    printf("imbalance ratio over %u layers: %.4f before, %.4f after\n", report.num_layers,
           report.imbalance_before, report.imbalance_after);

    /* Step 3: load the file and print the experts that rank 0 must hold in the first layer. */
    eplb_placement_load_options options = EPLB_PLACEMENT_LOAD_OPTIONS_INIT;
    options.num_experts = report.num_experts;
    options.num_ranks = report.num_ranks;
    eplb_placement *placement = NULL;
    check(eplb_placement_load(argv[4], &options, &placement));
    eplb_placement_info info = EPLB_PLACEMENT_INFO_INIT;
    check(eplb_placement_get_info(placement, &info));
    const int32_t *experts = NULL;
    check(eplb_placement_rank_experts(placement, info.layer_ids[0], 0, &experts, NULL));
    printf("rank 0, layer %d holds experts", info.layer_ids[0]);
    for (uint32_t i = 0; i < info.slots_per_rank; i++) {
        printf(" %d", experts[i]);
    }
    printf("\n");
    eplb_placement_destroy(placement);
    return 0;
}
