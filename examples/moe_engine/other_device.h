// A device that is neither the host nor a CUDA device, as ROCm, Ascend or an accelerator of one's own: its
// own memory, its own queue, its own kernels. It is simulated on the host, and eplb knows nothing of it.
#ifndef MOE_ENGINE_OTHER_DEVICE_H
#define MOE_ENGINE_OTHER_DEVICE_H

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <vector>

/// Copies and kernels wait in a queue and run in order in synchronize(). Host memory that they use must live
/// until then. Addresses are those of the device: the host cannot read through them.
class other_device {
  public:
    void *allocate(size_t bytes);
    void free(void *memory);

    void copy_in(void *to, const void *from, size_t bytes);
    void copy_out(void *to, const void *from, size_t bytes);
    void fill_with_zeros(void *to, size_t bytes);

    /// Ids of a batch, [num_tokens][choices]: those after the first *num_valid tokens are padding.
    struct batch {
        const int32_t *ids, *num_valid;
        size_t num_tokens, choices;
    };

    /// Adds to the counter of each id.
    void count(const batch &ids, int32_t *counters, size_t num_counters);

    /// A layer's tables of eplb_dispatch_get_tables(), in this device's memory.
    struct tables {
        const int32_t *replica_count, *replica_start, *slot_ids;
        size_t num_experts, num_slots;
    };

    /// EPLB_RULE_ROUND_ROBIN, by docs/routing.md.
    void route_round_robin(const batch &expert_ids, const tables &tables, size_t offset, int32_t *slot_ids);

    void synchronize();

  private:
    template <class T> T *at(const T *address, size_t count) const;
    size_t valid_ids(const batch &batch) const;

    std::map<uintptr_t, std::vector<char>> blocks_; // By address.
    uintptr_t next_ = 0;
    std::vector<std::function<void()>> queue_;
};

#endif
