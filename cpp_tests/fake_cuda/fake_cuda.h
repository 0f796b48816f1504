// Functions of the fake driver for tests, beyond CUDA's. A genuine driver lacks them: load them with
// fake_cuda_controls, so that the same test runs on both.
#pragma once

#include <cstddef>

#include <dlfcn.h>

extern "C" {
#pragma GCC visibility push(default)

/// Not 0: operations run when they are needed. 0: they run at once. The initial value is that of
/// EPLB_FAKE_CUDA in the environment: immediate (the default) or deferred.
void fake_cuda_set_deferred(int deferred);

/// Number of operations that have not run.
size_t fake_cuda_pending();

/// Makes the n-th driver call from now return `error`, counted from 1 over all threads; 0: none. All calls
/// except cuGetErrorName and cuGetErrorString count. A failing call does nothing, but still releases objects.
void fake_cuda_fail_call(size_t n, int error);

/// Whether that call was made.
int fake_cuda_fault_fired();

/// Number of driver calls so far, over all threads.
size_t fake_cuda_calls();

/// The calls of this thread since it last cleared the log, in order. Writes up to `capacity` names and
/// returns the number of calls.
size_t fake_cuda_log(const char **names, size_t capacity);
void fake_cuda_log_clear();

/// Number of contexts (a primary one as often as it is retained), modules, streams, events, graphs,
/// executable graphs and allocations. If any is left at exit, the process fails with status 97, unless the
/// environment has EPLB_FAKE_CUDA_LEAKS=allow.
size_t fake_cuda_live_objects();

/// Sets the version of CUDA that the driver supports: 11080 for 11.8.
void fake_cuda_set_version(int version);

/// Sets the newest version of PTX that the driver accepts.
void fake_cuda_set_newest_ptx(int major, int minor);

/// Sets the result of loading a fatbin, as if it had no code for this GPU; 0: success.
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
    X(fake_cuda_set_version)                                                                                 \
    X(fake_cuda_set_newest_ptx)                                                                              \
    X(fake_cuda_refuse_fatbins)

/// The functions above.
struct fake_cuda_controls {
#define MEMBER(name) decltype(&::name) name;
    FAKE_CUDA_FUNCTIONS(MEMBER)
#undef MEMBER

    /// Returns false on a genuine driver, and sets all of them to NULL.
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
