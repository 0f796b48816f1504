#ifndef MOE_ENGINE_REPORT_H
#define MOE_ENGINE_REPORT_H

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine.h"
#include "model/batch.h"

/// The work of a rank in a run, and on rank 0, once gathered, that of all ranks.
class report {
  public:
    /// `num_layers` MoE layers, the first of them `first_layer`.
    report(size_t first_layer, size_t num_layers) : first_layer_(first_layer), num_layers_(num_layers) {}

    void add(const batch &sequences, const step_result &result, size_t vocab_size);
    /// After the last iteration: the time of all iterations, and of eplb's calls in them.
    void add_times(double seconds, double eplb_seconds);
    /// Of rank 0: all ranks make the same plans.
    void add_rebalancing(const rebalance_totals &totals, int64_t bytes_received) {
        rebalancing_ = totals;
        bytes_moved_ = bytes_received;
    }
    /// To rank 0.
    void gather(transport &transport);

    // Of rank 0.
    double perplexity() const;
    /// One line on what rebalancing did, if it was on.
    void print_rebalancing() const;
    /// As JSON.
    void save(const std::string &path, size_t num_slots) const;

    /// Of this rank, or once gathered of all.
    int64_t num_tokens() const { return num_tokens_; }

  private:
    size_t first_layer_, num_layers_, num_ranks_ = 1;
    /// Tokens served: [ranks][iterations][layers]
    std::vector<int64_t> served_;
    int64_t num_tokens_ = 0, num_predicted_ = 0;
    double nats_ = 0;                               // of the tokens predicted
    double seconds_ = 0, eplb_seconds_ = 0;         // of all ranks together
    std::vector<double> steps_, steps_with_commit_; // seconds of this rank's steps
    std::vector<int64_t> moves_;                    // of all ranks, before each iteration
    std::optional<rebalance_totals> rebalancing_;
    int64_t bytes_moved_ = 0;
};

#endif
