// A tool that embeds eplb: generates a configuration file with a progress bar, then loads and checks it as an
// engine would before its first token.
//
//   my_engine DUMP EP_SIZE NUM_SLOTS OUTPUT
#include <eplb_tools.hpp>

#include <cstdio>
#include <string>

namespace {

bool draw(eplb_phase phase, std::uint64_t done, std::uint64_t total) {
    constexpr std::size_t width = 40;
    const char *names[] = {"reading", "solving", "writing"};
    const std::size_t filled = total > 0 ? done * width / total : width;
    const std::string bar = std::string(filled, '#') + std::string(width - filled, '.');
    std::fprintf(stderr, "\r%s [%s]%s", names[phase], bar.c_str(), done == total ? "\n" : "");
    return true; // continue
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 5) {
        std::fprintf(stderr, "usage: %s DUMP EP_SIZE NUM_SLOTS OUTPUT\n", argv[0]);
        return 2;
    }
    try {
        eplb::generate_config config;
        config.expert_statistic_path = argv[1];
        config.num_ranks = static_cast<std::uint32_t>(std::stoul(argv[2]));
        config.num_slots = static_cast<std::uint32_t>(std::stoul(argv[3]));
        config.output_path = argv[4];
        config.solve.policy = EPLB_POLICY_TRTLLM;
        const eplb_generate_report report = eplb::generate(config, draw);
        std::printf("imbalance ratio: %.4f before, %.4f after\n", report.imbalance_before,
                    report.imbalance_after);

        eplb::placement_load_options options;
        options.num_experts = report.num_experts;
        options.num_ranks = report.num_ranks;
        const eplb::placement placement = eplb::placement::load(argv[4], options);
        for (const eplb_placement_issue &issue : placement.issues()) {
            std::printf("layer %d, rank %d: slot %d repeats expert %d of slot %d\n", issue.layer, issue.rank,
                        issue.slot, issue.expert, issue.other_slot);
        }
        std::printf("placement hash %016llx\n", static_cast<unsigned long long>(placement.hash()));
        return placement.hash() == report.hash ? 0 : 1;
    } catch (const std::exception &e) {
        std::fprintf(stderr, "error: %s\n", e.what());
        return 1;
    }
}
