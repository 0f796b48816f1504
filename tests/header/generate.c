#include <eplb_tools.h>
#include <stdio.h>

// Turns a dump into a configuration file for 2 ranks with 10 slots.
int main(void) {
    eplb_generate_config config = EPLB_GENERATE_CONFIG_INIT;
    eplb_solve_options options = EPLB_SOLVE_OPTIONS_INIT;
    eplb_generate_report report = EPLB_GENERATE_REPORT_INIT;
    config.expert_statistic_path = "expert_statistic";
    config.output_path = "moe_load_balancer.yaml";
    config.num_ranks = 2;
    config.num_slots = 10;
    options.policy = EPLB_POLICY_SEARCH;
    if (eplb_generate(&config, NULL, &options, &report) != EPLB_STATUS_OK) {
        fprintf(stderr, "%s\n", eplb_last_error_message());
        return 1;
    }
    printf("imbalance ratio: %.3f, was %.3f\n", report.imbalance_after, report.imbalance_before);
    return 0;
}
