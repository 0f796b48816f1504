#include "state.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include <unistd.h>

#include "fake_cuda.h"

namespace fake_cuda {
namespace {

bool environment_says(const char *name, const char *value) {
    const char *found = std::getenv(name);
    return found != nullptr && std::strcmp(found, value) == 0;
}

// Never destroyed: static destructors of the program, which may run later, still release objects.
state *instance = nullptr;

std::vector<std::pair<const char *, size_t>> live_objects() {
    const state &s = driver_state();
    const auto created = [](const auto &entry) { return !entry.second->primary; };
    const auto on_host = [](const auto &entry) { return entry.second.on_host; };
    const auto host_allocations = size_t(std::count_if(s.allocations.begin(), s.allocations.end(), on_host));
    return {
        {"contexts", size_t(std::count_if(s.contexts.begin(), s.contexts.end(), created))},
        {"primary contexts retained", s.devices[0].retained + s.devices[1].retained},
        {"modules", s.modules.size()},
        {"streams", s.streams.size()},
        {"events", s.events.size()},
        {"graphs", s.graphs.size()},
        {"executable graphs", s.graph_execs.size()},
        {"device allocations", s.allocations.size() - host_allocations},
        {"host allocations", host_allocations},
    };
}

/// Runs after all static destructors of the process, or when the library is unloaded.
__attribute__((destructor)) void report_leaks() {
    if (instance == nullptr) {
        return;
    }
    std::ostringstream left;
    for (const auto &[kind, count] : live_objects()) {
        if (count != 0) {
            left << (left.tellp() == 0 ? "" : ", ") << count << " " << kind;
        }
    }
    const bool failed = left.tellp() != 0 && !environment_says("EPLB_FAKE_CUDA_LEAKS", "allow");
    if (failed) {
        std::fprintf(stderr, "fake_cuda: left at exit: %s\n", left.str().c_str());
    }
    for (const auto &[address, allocation] : instance->allocations) {
        std::free(reinterpret_cast<void *>(address));
    }
    delete instance;
    instance = nullptr;
    if (failed) {
        std::fflush(nullptr);
        _exit(97);
    }
}

} // namespace

void fail(CUresult error) { throw call_failure{error}; }

state &driver_state() {
    static std::once_flag once;
    std::call_once(once, [] {
        instance = new state;
        instance->deferred = environment_says("EPLB_FAKE_CUDA", "deferred");
    });
    return *instance;
}

thread &this_thread() {
    // A number, since thread_local objects are destroyed before the static destructors run.
    static std::atomic<uint64_t> last{0};
    thread_local const uint64_t number = ++last;
    thread &thread = driver_state().threads[number];
    thread.number = number;
    return thread;
}

CUresult begin_call(const char *name) {
    state &s = driver_state();
    this_thread().log.push_back(name);
    if (++s.calls != s.failing_call) {
        return CUDA_SUCCESS;
    }
    s.fault_fired = true;
    return s.fault;
}

} // namespace fake_cuda

using namespace fake_cuda;

namespace {

std::lock_guard<std::mutex> lock() { return std::lock_guard(driver_state().mutex); }

} // namespace

void fake_cuda_set_deferred(int deferred) {
    const auto guard = lock();
    driver_state().deferred = deferred != 0;
}

size_t fake_cuda_pending() {
    const auto guard = lock();
    size_t pending = 0;
    for (const auto &[handle, context] : driver_state().contexts) {
        pending += context->pending.size();
    }
    return pending;
}

void fake_cuda_fail_call(size_t n, int error) {
    const auto guard = lock();
    driver_state().failing_call = n == 0 ? 0 : driver_state().calls + n;
    driver_state().fault = CUresult(error);
    driver_state().fault_fired = false;
}

int fake_cuda_fault_fired() {
    const auto guard = lock();
    return driver_state().fault_fired;
}

size_t fake_cuda_calls() {
    const auto guard = lock();
    return driver_state().calls;
}

size_t fake_cuda_log(const char **names, size_t capacity) {
    const auto guard = lock();
    const auto &log = this_thread().log;
    std::copy_n(log.begin(), std::min(capacity, log.size()), names);
    return log.size();
}

void fake_cuda_log_clear() {
    const auto guard = lock();
    this_thread().log.clear();
}

size_t fake_cuda_live_objects() {
    const auto guard = lock();
    size_t live = 0;
    for (const auto &[kind, count] : live_objects()) {
        live += count;
    }
    return live;
}

void fake_cuda_set_version(int version) {
    const auto guard = lock();
    driver_state().version = version;
}

void fake_cuda_set_newest_ptx(int major, int minor) {
    const auto guard = lock();
    driver_state().newest_ptx = {major, minor};
}

void fake_cuda_refuse_fatbins(int error) {
    const auto guard = lock();
    driver_state().fatbins = CUresult(error);
}
