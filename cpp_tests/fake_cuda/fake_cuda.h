// What a test asks of our driver beyond CUDA. A genuine driver has none of it: look the functions up by
// fake_cuda_controls, and the same test runs on both.
#pragma once

#include <cstddef>

#include <dlfcn.h>

extern "C" {
#pragma GCC visibility push(default)

/// Not 0: operations wait until somebody needs them. 0: they run at once. At first as EPLB_FAKE_CUDA in the
/// environment says: immediate (or nothing) or deferred.
void fake_cuda_set_deferred(int deferred);

/// Operations that nobody has needed yet.
size_t fake_cuda_pending();

/// Lets the n-th driver call from now return `error`, counted from 1 over all threads; 0: none. All calls
/// count but cuGetErrorName and cuGetErrorString. Calls that give something back do so all the same, others
/// do nothing.
void fake_cuda_fail_call(size_t n, int error);

/// Whether that call has come.
int fake_cuda_fault_fired();

/// Driver calls so far, of all threads.
size_t fake_cuda_calls();

/// The calls of this thread since it last cleared them, in order: writes up to `capacity` names, returns how
/// many there are.
size_t fake_cuda_log(const char **names, size_t capacity);
void fake_cuda_log_clear();

/// Contexts (a primary one as often as it is retained), modules, streams, events, graphs, executable graphs
/// and allocations. Some left at exit fail the process with status 97, unless the environment has
/// EPLB_FAKE_CUDA_LEAKS=allow.
size_t fake_cuda_live_objects();

/// The newest PTX that the driver reads.
void fake_cuda_set_newest_ptx(int major, int minor);

/// What loading a fatbin returns, as if it held nothing for this GPU; 0: success.
void fake_cuda_refuse_fatbins(int error);

#pragma GCC visibility pop
}

#define FAKE_CUDA_FUNCTIONS(X)                                                                               \
    X(fake_cuda_set_deferred)                                                                                \
    X(fake_cuda_pending)                                                                                     \
    X(fake_cuda_fail_call)                                                                                   \
    X(fake_cuda_fault_fired)                                                                                 \
    X(fake_cuda_calls)                                                                                       \
    X(fake_cuda_log)                                                                                         \
    X(fake_cuda_log_clear)                                                                                   \
    X(fake_cuda_live_objects)                                                                                \
    X(fake_cuda_set_newest_ptx)                                                                              \
    X(fake_cuda_refuse_fatbins)

/// The functions above.
struct fake_cuda_controls {
#define MEMBER(name) decltype(&::name) name;
    FAKE_CUDA_FUNCTIONS(MEMBER)
#undef MEMBER

    /// False, and all of them NULL, on a genuine driver.
    bool load() {
        void *library = dlopen("libcuda.so.1", RTLD_NOW);
        bool complete = library != nullptr;
#define LOAD(name)                                                                                           \
    name = library == nullptr ? nullptr : reinterpret_cast<decltype(name)>(dlsym(library, #name));           \
    complete = complete && name != nullptr;
        FAKE_CUDA_FUNCTIONS(LOAD)
#undef LOAD
        return complete;
    }
};
