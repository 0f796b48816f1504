#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <sstream>
#include <vector>

#include <ucontext.h>

#include "checkers.h"
#include "cuda_emulation.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

// Each kernel file declares it with its own name and type: EMULATION_SHARED_MEMORY.
extern "C" {
alignas(16) unsigned char emulation_shared_memory[emulation::shared_capacity];
}

namespace emulation {
namespace {

enum class state { ready, at_barrier, in_collective, exited };

struct thread {
    dim3 index;
    size_t number;
    emulation::state state;
    ucontext_t context;
    void *fake_stack;
    /// Where it waits. `mask` and `value` are set in collectives only.
    site at;
    unsigned mask;
    uint64_t value;
    /// The result of its last collective.
    lane_values received;
};

/// The fibers' stacks, reused by later launches.
std::vector<std::unique_ptr<fiber_stack>> stacks;

std::map<std::string, kernel> &kernels() {
    static std::map<std::string, kernel> by_name;
    return by_name;
}

class block_runner {
  public:
    block_runner(size_t num_threads, const std::function<void()> &body, const options &options)
        : body(body), options(options), random(options.seed), threads(num_threads) {
        while (stacks.size() < num_threads) {
            stacks.push_back(std::make_unique<fiber_stack>());
        }
    }

    void run();
    /// Called by the running fiber. Returns when it is resumed.
    void suspend(emulation::state new_state);
    void preempt();
    const lane_values &exchange(const site &at, unsigned mask, uint64_t value);

    thread *running = nullptr;
    std::mt19937_64 &generator() { return random; }

  private:
    static void fiber();
    void start(thread &thread);
    void resume(thread &thread);
    void make_ready(thread &thread);
    void complete_collectives(const thread &of_this_warp);
    void pass_barrier();
    [[noreturn]] void fail(const std::string &what) const;

    const std::function<void()> &body;
    const emulation::options &options;
    std::mt19937_64 random;
    std::vector<thread> threads;
    std::vector<thread *> ready;
    std::exception_ptr failure;

    ucontext_t scheduler;
    const void *scheduler_stack = nullptr;
    size_t scheduler_stack_size = 0;
};

block_runner *runner = nullptr;

void block_runner::start(thread &thread) {
    thread.number = size_t(&thread - threads.data());
    const unsigned number = unsigned(thread.number);
    thread.index = {number % blockDim.x, number / blockDim.x % blockDim.y, number / blockDim.x / blockDim.y};
    thread.fake_stack = nullptr;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = stacks[thread.number]->data();
    thread.context.uc_stack.ss_size = fiber_stack::size;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, fiber, 0);
    make_ready(thread);
}

void block_runner::make_ready(thread &thread) {
    thread.state = state::ready;
    ready.push_back(&thread);
}

void block_runner::resume(thread &thread) {
    running = &thread;
    threadIdx = thread.index;
    void *fake_stack = nullptr;
    before_switch(&fake_stack, stacks[thread.number]->data(), fiber_stack::size);
    swapcontext(&scheduler, &thread.context);
    after_switch(fake_stack, nullptr, nullptr);
}

void block_runner::suspend(emulation::state new_state) {
    thread &self = *running;
    self.state = new_state;
    before_switch(new_state == state::exited ? nullptr : &self.fake_stack, scheduler_stack,
                  scheduler_stack_size);
    swapcontext(&self.context, &scheduler);
    after_switch(self.fake_stack, nullptr, nullptr);
}

/// The entry point of each fiber. It never returns, since a fiber has no caller.
void block_runner::fiber() {
    after_switch(nullptr, &runner->scheduler_stack, &runner->scheduler_stack_size);
    try {
        runner->body();
    } catch (...) {
        runner->failure = std::current_exception();
    }
    runner->suspend(state::exited);
}

void block_runner::run() {
    for (thread &thread : threads) {
        start(thread);
    }
    size_t exited = 0;
    while (exited < threads.size()) {
        if (ready.empty()) {
            pass_barrier();
        }
        std::swap(ready[random() % ready.size()], ready.back());
        thread &next = *ready.back();
        ready.pop_back();
        resume(next);
        if (failure) {
            std::rethrow_exception(failure);
        }
        if (next.state == state::ready) {
            ready.push_back(&next);
        } else if (next.state == state::exited) {
            exited++;
            complete_collectives(next);
        }
    }
}

/// Called when no thread can run: all wait or have exited.
void block_runner::pass_barrier() {
    const site &at = threads[0].at;
    for (const thread &thread : threads) {
        if (thread.state == state::in_collective) {
            fail("deadlock");
        }
    }
    for (const thread &thread : threads) {
        if (thread.state != state::at_barrier || thread.at.file != at.file || thread.at.line != at.line) {
            fail("barrier divergence");
        }
    }
    for (thread &thread : threads) {
        make_ready(thread);
    }
}

void block_runner::preempt() {
    if (options.preempt_one_in != 0 && random() % options.preempt_one_in == 0) {
        suspend(state::ready);
    }
}

const lane_values &block_runner::exchange(const site &at, unsigned mask, uint64_t value) {
    thread &self = *running;
    self.at = at;
    self.mask = mask;
    self.value = value;
    self.state = state::in_collective;
    if ((mask >> self.number % 32 & 1) == 0) {
        fail("a lane calls " + std::string(at.what) + " with a mask that lacks it");
    }
    complete_collectives(self);
    // Suspend the last lane to arrive too, so that the next to run is chosen at random.
    suspend(self.state);
    return self.received;
}

/// A collective is complete once all lanes of its mask that have not exited called it with that mask.
void block_runner::complete_collectives(const thread &of_this_warp) {
    const size_t first = of_this_warp.number / 32 * 32;
    const size_t lanes = std::min<size_t>(32, threads.size() - first);
    for (size_t candidate = 0; candidate < lanes; candidate++) {
        const thread &caller = threads[first + candidate];
        if (caller.state != state::in_collective) {
            continue;
        }
        const site at = caller.at;
        const unsigned mask = caller.mask;
        const auto has_called = [&](const thread &thread) {
            return thread.state == state::in_collective && thread.mask == mask &&
                   std::strcmp(thread.at.what, at.what) == 0;
        };
        bool complete = true;
        lane_values all = {};
        for (size_t lane = 0; complete && lane < lanes; lane++) {
            const thread &thread = threads[first + lane];
            if ((mask >> lane & 1) == 0 || thread.state == state::exited) {
                continue;
            }
            complete = has_called(thread);
            all.arrived |= 1u << lane;
            all.values[lane] = thread.value;
        }
        for (size_t lane = 0; complete && lane < lanes; lane++) {
            thread &thread = threads[first + lane];
            if (all.arrived >> lane & 1) {
                thread.received = all;
                thread.state = state::ready;
                if (&thread != running) {
                    ready.push_back(&thread);
                }
            }
        }
    }
}

void block_runner::fail(const std::string &what) const {
    std::map<std::string, size_t> counts;
    for (const thread &thread : threads) {
        std::ostringstream place;
        if (thread.state == state::exited) {
            place << "exited";
        } else if (thread.state == state::ready) {
            place << "ready to run";
        } else {
            place << "in " << thread.at.what << " at " << thread.at.file << ":" << thread.at.line;
            if (thread.state == state::in_collective) {
                place << " for mask 0x" << std::hex << thread.mask;
            }
        }
        counts[place.str()]++;
    }
    std::ostringstream message;
    message << what << " in block (" << blockIdx.x << ", " << blockIdx.y << ", " << blockIdx.z << ")";
    for (const auto &[place, count] : counts) {
        message << "; " << count << " threads " << place;
    }
    throw error(message.str());
}

/// The dynamic shared memory of one launch. Memory beyond the requested size is inaccessible.
class shared_allocation {
  public:
    explicit shared_allocation(size_t size) : size(size) {
        forbid(emulation_shared_memory + size, sizeof emulation_shared_memory - size);
    }
    ~shared_allocation() { allow(emulation_shared_memory, sizeof emulation_shared_memory); }
    void fill_with_garbage(std::mt19937_64 &random) const {
        std::memset(emulation_shared_memory, int(random() % 255 + 1), size);
        mark_garbage(emulation_shared_memory, size);
    }

  private:
    size_t size;
};

} // namespace

void barrier(const site &at) {
    runner->running->at = at;
    runner->suspend(state::at_barrier);
}

const lane_values &exchange(const site &at, unsigned mask, uint64_t value) {
    return runner->exchange(at, mask, value);
}

unsigned lane() { return unsigned(runner->running->number % 32); }

void preempt() { runner->preempt(); }

void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()> &body,
            const options &options) {
    const uint64_t num_blocks = uint64_t(grid.x) * grid.y * grid.z;
    const uint64_t num_threads = uint64_t(block.x) * block.y * block.z;
    if (num_blocks == 0 || num_threads == 0 || num_threads > 1024 || shared_bytes > shared_capacity) {
        throw error("invalid launch: " + std::to_string(num_blocks) + " blocks of " +
                    std::to_string(num_threads) + " threads and " + std::to_string(shared_bytes) +
                    " bytes of shared memory");
    }
    static std::mutex mutex;
    const std::lock_guard lock(mutex);

    gridDim = grid;
    blockDim = block;
    block_runner blocks(num_threads, body, options);
    const shared_allocation shared(shared_bytes);
    std::vector<uint64_t> order(num_blocks);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), blocks.generator());
    runner = &blocks;
    try {
        for (const uint64_t block_number : order) {
            blockIdx = {unsigned(block_number % grid.x), unsigned(block_number / grid.x % grid.y),
                        unsigned(block_number / grid.x / grid.y)};
            shared.fill_with_garbage(blocks.generator());
            blocks.run();
        }
    } catch (...) {
        // Fibers that did not end leave frames and AddressSanitizer's marks on their stacks, which therefore
        // cannot be reused.
        stacks.clear();
        throw;
    }
}

const kernel *find(const std::string &name) {
    const auto found = kernels().find(name);
    return found == kernels().end() ? nullptr : &found->second;
}

bool add(const std::string &name, kernel kernel) { return kernels().emplace(name, std::move(kernel)).second; }

} // namespace emulation
