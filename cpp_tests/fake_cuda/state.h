// The state of the driver: objects by handle, one lock, and the state of each thread.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <sys/types.h>

#include "cuda_driver.h"
#include "emulation.h"

namespace fake_cuda {

/// Makes the driver call return an error: fail() throws it, call() catches it.
struct call_failure {
    CUresult error;
};

[[noreturn]] void fail(CUresult error);

struct context {
    int device;
    bool primary;
    CUcontext handle = nullptr;
    /// The error of the first kernel that failed. Every later call returns it.
    CUresult failure = CUDA_SUCCESS;
    std::shared_ptr<struct stream> legacy;
    /// The per-thread default streams, created on first use.
    std::map<std::thread::id, std::shared_ptr<struct stream>> per_thread;
    /// Operations that were submitted and have not run, in order.
    std::vector<std::shared_ptr<struct operation>> pending;
};

/// An operation of a stream. It runs when it is needed, after those that it depends on.
struct operation {
    fake_cuda::context *context;
    std::function<void()> work;
    std::vector<std::shared_ptr<operation>> after;
    /// Whether it orders with the legacy stream.
    bool blocking;
    bool done = false;
    std::chrono::steady_clock::time_point finished;
};

/// A node depends on earlier nodes only.
struct graph {
    struct node {
        std::function<void()> work;
        std::vector<size_t> after;
    };
    std::vector<node> nodes;
};

struct capture {
    const struct stream *origin;
    CUstreamCaptureMode mode;
    uint64_t thread;
    bool invalid = false;
    fake_cuda::graph graph;
};

struct stream {
    fake_cuda::context *context;
    bool blocking;
    bool legacy;
    std::shared_ptr<operation> last;
    /// During a capture: the capture, and the nodes that the next node depends on.
    std::shared_ptr<fake_cuda::capture> capture;
    std::vector<size_t> last_nodes;
};

struct event {
    fake_cuda::context *context;
    bool timing;
    /// NULL if never recorded outside a capture.
    std::shared_ptr<operation> recorded;
    /// If last recorded in a capture: the capture, and the nodes that a waiting node depends on.
    std::shared_ptr<fake_cuda::capture> capture;
    std::vector<size_t> last_nodes;
};

struct module {
    fake_cuda::context *context;
};

struct function {
    fake_cuda::context *context;
    std::shared_ptr<fake_cuda::module> module;
    std::string name;
    const emulation::kernel *kernel;
};

struct graph_exec {
    fake_cuda::graph graph;
};

struct allocation {
    fake_cuda::context *context;
    size_t size;
    bool on_host;
};

inline uintptr_t new_handle() {
    static uintptr_t last = 0xcda0000;
    return last += 16;
}

/// Objects by handle. Handles of all kinds are unique and never reused, so that a handle of a destroyed
/// object or of another kind is an error.
template <class Handle, class Object> class handles {
  public:
    using pointer = std::shared_ptr<Object>;

    Handle add(pointer object) {
        const auto handle = reinterpret_cast<Handle>(new_handle());
        objects.emplace(handle, std::move(object));
        return handle;
    }
    const pointer &get(Handle handle, CUresult otherwise = CUDA_ERROR_INVALID_HANDLE) const {
        const auto found = objects.find(handle);
        if (found == objects.end()) {
            fail(otherwise);
        }
        return found->second;
    }
    void erase(Handle handle) { objects.erase(handle); }
    template <class Predicate> void erase_if(Predicate predicate) {
        for (auto next = objects.begin(); next != objects.end();) {
            next = predicate(*next->second) ? objects.erase(next) : std::next(next);
        }
    }
    size_t size() const { return objects.size(); }
    auto begin() const { return objects.begin(); }
    auto end() const { return objects.end(); }

  private:
    std::map<Handle, pointer> objects;
};

struct thread {
    uint64_t number;
    std::vector<CUcontext> contexts;
    CUstreamCaptureMode capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
    std::vector<const char *> log;
};

struct device {
    CUcontext primary = nullptr;
    size_t retained = 0;
};

struct state {
    std::mutex mutex;
    /// The process that called cuInit. A fork of it can neither use the driver nor initialise it again.
    pid_t initialized_by = 0;
    int version = 12000;
    bool deferred = false;
    std::map<uint64_t, fake_cuda::thread> threads;
    std::array<device, 2> devices;

    handles<CUcontext, context> contexts;
    handles<CUstream, stream> streams;
    handles<CUevent, event> events;
    handles<CUmodule, module> modules;
    handles<CUfunction, function> functions;
    handles<CUgraph, graph> graphs;
    handles<CUgraphExec, graph_exec> graph_execs;
    /// Allocations by address.
    std::map<uintptr_t, allocation> allocations;

    size_t calls = 0;
    /// The number of the call that fails.
    size_t failing_call = 0;
    CUresult fault = CUDA_SUCCESS;
    bool fault_fired = false;

    std::pair<int, int> newest_ptx = {99, 0};
    CUresult fatbins = CUDA_SUCCESS;
    /// Chooses the order of a kernel's threads, and of graph nodes that do not depend on each other.
    std::mt19937_64 random;
};

state &driver_state();
fake_cuda::thread &this_thread();

/// Counts and logs a call. Returns the fault to inject into it.
CUresult begin_call(const char *name);

/// Runs `work` of a driver call under the lock, unless a fault is injected.
template <class Work> CUresult call(const char *name, Work work) {
    const std::lock_guard lock(driver_state().mutex);
    const CUresult fault = begin_call(name);
    if (fault != CUDA_SUCCESS) {
        return fault;
    }
    try {
        work();
        return CUDA_SUCCESS;
    } catch (const call_failure &failure) {
        return failure.error;
    }
}

/// The same for a call that releases an object. It does so even if it returns "error codes from previous,
/// asynchronous launches".
template <class Work> CUresult call_that_releases(const char *name, Work work) {
    const std::lock_guard lock(driver_state().mutex);
    const CUresult fault = begin_call(name);
    try {
        work();
        return fault;
    } catch (const call_failure &failure) {
        return fault != CUDA_SUCCESS ? fault : failure.error;
    }
}

/// Fails if this process has not initialised the driver.
void check_initialized();

/// Writes a result through the caller's pointer, which must not be NULL.
template <class T> void store(T *out, T value) {
    if (out == nullptr) {
        fail(CUDA_ERROR_INVALID_VALUE);
    }
    *out = value;
}

// context.cpp

/// The context of this thread. Fails without one, if it is destroyed, or if a kernel failed in it.
context &current_context();
/// The same, even if a kernel failed in it: for calls that release objects.
context &current_context_even_failed();
void check_not_failed(const context &context);

// stream.cpp

/// NULL and CU_STREAM_LEGACY are the legacy stream of the current context. CU_STREAM_PER_THREAD is its
/// default stream of this thread.
stream &stream_of(CUstream handle);
/// Captures `work`, or runs it in `stream`: at once, or if deferred when it is needed.
void submit(stream &stream, std::function<void()> work, std::vector<std::shared_ptr<operation>> after = {});
/// Runs an operation and those that it depends on. Does nothing for NULL.
void finish(const std::shared_ptr<operation> &operation);
/// Runs all pending operations of the context.
void finish_all(context &context);
/// Runs all pending operations of `stream`; for the legacy stream also those of blocking streams.
void finish(stream &stream);

// capture.cpp

/// Fails if a capture forbids calls that may synchronise implicitly.
void check_call_is_safe();
/// Fails if `stream` is the legacy stream and would wait for a blocking stream that captures.
void check_legacy_is_allowed(const stream &stream);
/// Fails if `stream` captures: its work does not run, so it cannot be waited for.
void check_can_wait_for(const stream &stream);
void check_is_valid(const capture &capture);
void invalidate(capture &capture);
void run(const graph &graph);

} // namespace fake_cuda
