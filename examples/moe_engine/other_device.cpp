#include "other_device.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace {

/// No address of the host begins like this: a host that reads it crashes.
constexpr uintptr_t device_memory = uintptr_t(0x0dad) << 48;
constexpr size_t alignment = 256;

} // namespace

void *other_device::allocate(size_t bytes) {
    const uintptr_t address = device_memory + next_;
    next_ += (bytes / alignment + 2) * alignment; // A gap, so that no access runs into the next block.
    blocks_.emplace(address, std::vector<char>(bytes));
    return reinterpret_cast<void *>(address);
}

void other_device::free(void *memory) {
    synchronize();
    blocks_.erase(reinterpret_cast<uintptr_t>(memory));
}

/// What the device's address means here. Throws for an address outside of the device's memory.
template <class T> T *other_device::at(const T *address, size_t count) const {
    const auto first = reinterpret_cast<uintptr_t>(address);
    const auto after = blocks_.upper_bound(first);
    if (after != blocks_.begin()) {
        const auto &[start, block] = *std::prev(after);
        if (first - start + count * sizeof(T) <= block.size()) {
            return reinterpret_cast<T *>(const_cast<char *>(block.data()) + (first - start));
        }
    }
    throw std::runtime_error("--device other: not an address of the device");
}

void other_device::copy_in(void *to, const void *from, size_t bytes) {
    queue_.emplace_back([=] { std::memcpy(at(static_cast<char *>(to), bytes), from, bytes); });
}

void other_device::copy_out(void *to, const void *from, size_t bytes) {
    queue_.emplace_back([=] { std::memcpy(to, at(static_cast<const char *>(from), bytes), bytes); });
}

void other_device::fill_with_zeros(void *to, size_t bytes) {
    queue_.emplace_back([=] { std::memset(at(static_cast<char *>(to), bytes), 0, bytes); });
}

size_t other_device::valid_ids(const batch &batch) const {
    return std::min(static_cast<size_t>(std::max(*at(batch.num_valid, 1), 0)), batch.num_tokens) *
           batch.choices;
}

void other_device::count(const batch &ids, int32_t *counters, size_t num_counters) {
    queue_.emplace_back([=] {
        const int32_t *id = at(ids.ids, ids.num_tokens * ids.choices);
        int32_t *counter = at(counters, num_counters);
        for (size_t i = 0; i < valid_ids(ids); i++) {
            if (static_cast<size_t>(id[i]) < num_counters) {
                counter[id[i]]++;
            }
        }
    });
}

void other_device::route_round_robin(const batch &expert_ids, const tables &tables, size_t offset,
                                     int32_t *slot_ids) {
    queue_.emplace_back([=] {
        constexpr size_t block = 1024;
        const size_t num_ids = expert_ids.num_tokens * expert_ids.choices, valid = valid_ids(expert_ids);
        const int32_t *expert = at(expert_ids.ids, num_ids);
        const int32_t *count = at(tables.replica_count, tables.num_experts),
                      *start = at(tables.replica_start, tables.num_experts),
                      *slots = at(tables.slot_ids, tables.num_slots);
        int32_t *slot = at(slot_ids, num_ids);
        std::vector<size_t> before; // Equal ids earlier in the block.
        for (size_t i = 0; i < num_ids; i++) {
            if (i % block == 0) {
                before.assign(tables.num_experts, 0);
            }
            const auto id = static_cast<size_t>(expert[i]);
            if (i >= valid || id >= tables.num_experts) {
                slot[i] = static_cast<int32_t>(tables.num_slots);
                continue;
            }
            const size_t replica = (before[id]++ + i / block + offset) % static_cast<size_t>(count[id]);
            slot[i] = slots[static_cast<size_t>(start[id]) + replica];
        }
    });
}

void other_device::synchronize() {
    for (const std::function<void()> &work : std::exchange(queue_, {})) {
        work();
    }
}
