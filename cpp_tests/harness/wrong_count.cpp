// A rank whose counts differ by one: rank 3 observes another count than the others. The linker's --wrap puts
// it into a separate engine.
#include <eplb_live.h>

#include <atomic>
#include <cstdlib>
#include <string>
#include <vector>

extern "C" eplb_status __real_eplb_rebalancer_observe(eplb_rebalancer *, const int64_t *, uint32_t, uint64_t,
                                                      int32_t);

namespace {
std::atomic<int> calls{0};
}

/// The ranks are threads, and the third call that comes is of some rank, in the first window.
extern "C" eplb_status __wrap_eplb_rebalancer_observe(eplb_rebalancer *rebalancer, const int64_t *counts,
                                                      uint32_t num_samples, uint64_t num_tokens,
                                                      int32_t phase) {
    eplb_rebalancer_info info = EPLB_REBALANCER_INFO_INIT;
    if (calls++ != 3 || eplb_rebalancer_get_info(rebalancer, &info) != EPLB_STATUS_OK) {
        return __real_eplb_rebalancer_observe(rebalancer, counts, num_samples, num_tokens, phase);
    }
    std::vector<int64_t> wrong(counts, counts + num_samples * info.num_layers * 256);
    wrong[0]++;
    return __real_eplb_rebalancer_observe(rebalancer, wrong.data(), num_samples, num_tokens, phase);
}
