// All that the driver knows: objects by handle, one lock, what each thread does.
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

#include "cuda_driver.h"
#include "emulation.h"

namespace fake_cuda {

/// Thrown by whatever finds that a call must return an error; call() catches it.
struct refusal {
    CUresult error;
};

[[noreturn]] void refuse(CUresult error);

struct context {
    int device;
    bool primary;
    CUcontext handle = nullptr;
    /// Of the first kernel that failed: from then on of every call.
    CUresult failure = CUDA_SUCCESS;
    std::shared_ptr<struct stream> legacy;
    /// The default streams of threads that asked for theirs.
    std::map<std::thread::id, std::shared_ptr<struct stream>> per_thread;
    /// Submitted and not yet run, in order.
    std::vector<std::shared_ptr<struct operation>> pending;
};

/// Work of a stream. It runs when it must, after what it depends on.
struct operation {
    fake_cuda::context *context;
    std::function<void()> work;
    std::vector<std::shared_ptr<operation>> after;
    /// Of a stream that orders with the legacy one, or of that itself.
    bool blocking;
    bool done = false;
    std::chrono::steady_clock::time_point finished;
};

/// Nodes refer to earlier ones.
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
    /// While it captures: into what, and behind which nodes.
    std::shared_ptr<fake_cuda::capture> capture;
    std::vector<size_t> behind;
};

struct event {
    fake_cuda::context *context;
    bool timing;
    /// NULL: never recorded outside a capture.
    std::shared_ptr<operation> recorded;
    /// If last recorded in a capture: which, and behind which nodes.
    std::shared_ptr<fake_cuda::capture> capture;
    std::vector<size_t> behind;
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

/// Objects by handle. A handle is never used again, whatever the kind, so that of a dead or of another object
/// is known for what it is.
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
            refuse(otherwise);
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
    bool initialized = false;
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
    /// By their addresses.
    std::map<uintptr_t, allocation> allocations;

    size_t calls = 0;
    /// The call of this number fails.
    size_t failing_call = 0;
    CUresult fault = CUDA_SUCCESS;
    bool fault_fired = false;

    std::pair<int, int> newest_ptx = {99, 0};
    CUresult fatbins = CUDA_SUCCESS;
    /// Of the order in which kernels run their threads, and graphs what they leave open.
    std::mt19937_64 random;
};

state &the();
fake_cuda::thread &this_thread();

/// Counts and logs a call; returns the fault that it is to have.
CUresult begin_call(const char *name);

/// A driver call: `work` under the lock, unless a fault is due.
template <class Work> CUresult call(const char *name, Work work) {
    const std::lock_guard lock(the().mutex);
    const CUresult fault = begin_call(name);
    if (fault != CUDA_SUCCESS) {
        return fault;
    }
    try {
        work();
        return CUDA_SUCCESS;
    } catch (const refusal &refusal) {
        return refusal.error;
    }
}

/// One that gives something back: it does even while it returns "error codes from previous, asynchronous
/// launches".
template <class Work> CUresult call_that_gives_back(const char *name, Work work) {
    const std::lock_guard lock(the().mutex);
    const CUresult fault = begin_call(name);
    try {
        work();
        return fault;
    } catch (const refusal &refusal) {
        return fault != CUDA_SUCCESS ? fault : refusal.error;
    }
}

/// Through a pointer of the caller's, which must not be NULL.
template <class T> void give(T *out, T value) {
    if (out == nullptr) {
        refuse(CUDA_ERROR_INVALID_VALUE);
    }
    *out = value;
}

// context.cpp

/// This thread's, refused if there is none, it is destroyed, or a kernel failed in it.
context &current_context();
/// The same, whatever failed in it: to give things back.
context &current_context_even_failed();
void refuse_if_failed(const context &context);

// stream.cpp

/// NULL and CU_STREAM_LEGACY are the current context's legacy stream, CU_STREAM_PER_THREAD is this thread's
/// own there.
stream &stream_of(CUstream handle);
/// Runs `work` in `stream`, now or when somebody needs it, or captures it.
void submit(stream &stream, std::function<void()> work, std::vector<std::shared_ptr<operation>> after = {});
/// Runs an operation and all that it depends on; NULL: nothing.
void finish(const std::shared_ptr<operation> &operation);
/// Runs all that the context has.
void finish_all(context &context);
/// Runs all that `stream` has; for the legacy stream this includes the blocking ones.
void finish(stream &stream);

// capture.cpp

/// For calls that might synchronise behind a capture's back.
void refuse_unsafe_call();
/// For use of the legacy stream, which would wait for each blocking stream.
void refuse_legacy_during_capture(const stream &stream);
/// For waiting for what a capture only records.
void refuse_to_wait_for(const stream &stream);
void refuse_if_invalid(const capture &capture);
void invalidate(capture &capture);
void run(const graph &graph);

} // namespace fake_cuda
