#include "device.h"

#include <cstdlib>
#include <new>
#include <stdexcept>

#include <dlfcn.h>
#include <eplb.h>

/// The functions of the driver that the engine needs, as CUDA's cuda.h declares them.
struct cuda_driver {
    int (*cuInit)(unsigned flags);
    int (*cuDeviceGetCount)(int *count);
    int (*cuDeviceGetUuid)(char *uuid, int device);
    int (*cuDevicePrimaryCtxRetain)(CUctx_st **context, int device);
    int (*cuDevicePrimaryCtxRelease_v2)(int device);
    int (*cuCtxSetCurrent)(CUctx_st *context);
    int (*cuMemAlloc_v2)(uint64_t *memory, size_t bytes);
    int (*cuMemFree_v2)(uint64_t memory);
    int (*cuMemHostAlloc)(void **memory, size_t bytes, unsigned flags);
    int (*cuMemFreeHost)(void *memory);
    int (*cuMemcpyHtoDAsync_v2)(uint64_t to, const void *from, size_t bytes, CUstream_st *stream);
    int (*cuMemcpyDtoHAsync_v2)(void *to, uint64_t from, size_t bytes, CUstream_st *stream);
    int (*cuStreamCreate)(CUstream_st **stream, unsigned flags);
    int (*cuStreamSynchronize)(CUstream_st *stream);
    int (*cuStreamQuery)(CUstream_st *stream);
    int (*cuStreamDestroy_v2)(CUstream_st *stream);
    int (*cuStreamBeginCapture_v2)(CUstream_st *stream, int mode);
    int (*cuStreamEndCapture)(CUstream_st *stream, struct CUgraph_st **graph);
    int (*cuGraphInstantiateWithFlags)(CUgraphExec_st **exec, struct CUgraph_st *graph,
                                       unsigned long long flags);
    int (*cuGraphDestroy)(struct CUgraph_st *graph);
    int (*cuGraphLaunch)(CUgraphExec_st *exec, CUstream_st *stream);
    int (*cuGraphExecDestroy)(CUgraphExec_st *exec);

    cuda_driver() {
        void *library = dlopen("libcuda.so.1", RTLD_NOW);
        if (library == nullptr) {
            throw std::runtime_error(std::string("--device cuda: no driver: ") + dlerror());
        }
        const auto find = [library](auto &function, const char *name) {
            function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
            if (function == nullptr) {
                throw std::runtime_error(std::string("--device cuda: the driver has no ") + name);
            }
        };
#define FIND(name) find(name, #name)
        FIND(cuInit);
        FIND(cuDeviceGetCount);
        FIND(cuDeviceGetUuid);
        FIND(cuDevicePrimaryCtxRetain);
        FIND(cuDevicePrimaryCtxRelease_v2);
        FIND(cuCtxSetCurrent);
        FIND(cuMemAlloc_v2);
        FIND(cuMemFree_v2);
        FIND(cuMemHostAlloc);
        FIND(cuMemFreeHost);
        FIND(cuMemcpyHtoDAsync_v2);
        FIND(cuMemcpyDtoHAsync_v2);
        FIND(cuStreamCreate);
        FIND(cuStreamSynchronize);
        FIND(cuStreamQuery);
        FIND(cuStreamDestroy_v2);
        FIND(cuStreamBeginCapture_v2);
        FIND(cuStreamEndCapture);
        FIND(cuGraphInstantiateWithFlags);
        FIND(cuGraphDestroy);
        FIND(cuGraphLaunch);
        FIND(cuGraphExecDestroy);
#undef FIND
    }
};

namespace {

constexpr unsigned non_blocking = 1; // CU_STREAM_NON_BLOCKING
constexpr int not_ready = 600;       // CUDA_ERROR_NOT_READY
constexpr int thread_local_mode = 1; // CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other ranks are unaffected.

void check(int result, const char *call) {
    if (result != 0) {
        throw std::runtime_error(std::string(call) + " failed with CUDA error " + std::to_string(result));
    }
}

} // namespace

device::device(const std::string &name, int rank) : ordinal_(EPLB_DEVICE_HOST) {
    if (name == "host") {
        return;
    }
    if (name == "other") {
        other_ = std::make_unique<other_device>();
        return;
    }
    if (name != "cuda") {
        throw std::invalid_argument("--device " + name + ": host, cuda or other expected");
    }
    driver_ = std::make_unique<cuda_driver>();
    int count = 0;
    check(driver_->cuInit(0), "cuInit");
    check(driver_->cuDeviceGetCount(&count), "cuDeviceGetCount");
    if (count == 0) {
        throw std::runtime_error("--device cuda: the driver sees no GPU");
    }
    ordinal_ = rank % count;
    check(driver_->cuDevicePrimaryCtxRetain(&context_, ordinal_), "cuDevicePrimaryCtxRetain");
    check(driver_->cuCtxSetCurrent(context_), "cuCtxSetCurrent");
    check(driver_->cuStreamCreate(&stream_, non_blocking), "cuStreamCreate");
}

device::~device() {
    if (driver_ == nullptr) {
        return;
    }
    for (const auto &[key, graph] : graphs_) {
        driver_->cuGraphExecDestroy(graph);
    }
    if (stream_ != nullptr) {
        driver_->cuStreamDestroy_v2(stream_);
    }
    if (context_ != nullptr) {
        driver_->cuDevicePrimaryCtxRelease_v2(ordinal_);
    }
}

void device::replay(size_t key, const std::function<void()> &work) {
    if (driver_ == nullptr) {
        work();
        return;
    }
    CUgraphExec_st *&exec = graphs_[key];
    if (exec == nullptr) {
        struct CUgraph_st *graph = nullptr;
        check(driver_->cuStreamBeginCapture_v2(stream_, thread_local_mode), "cuStreamBeginCapture");
        try {
            work();
        } catch (...) { // While the stream is capturing, nothing can be released.
            driver_->cuStreamEndCapture(stream_, &graph);
            throw;
        }
        check(driver_->cuStreamEndCapture(stream_, &graph), "cuStreamEndCapture");
        const int instantiated = driver_->cuGraphInstantiateWithFlags(&exec, graph, 0);
        check(driver_->cuGraphDestroy(graph), "cuGraphDestroy");
        check(instantiated, "cuGraphInstantiate");
    }
    check(driver_->cuGraphLaunch(exec, stream_), "cuGraphLaunch");
}

void device::synchronize() const {
    if (other_ != nullptr) {
        other_->synchronize();
    } else if (driver_ != nullptr) {
        check(driver_->cuStreamSynchronize(stream_), "cuStreamSynchronize");
    }
}

bool device::is_busy() const {
    if (driver_ == nullptr) {
        return false;
    }
    const int state = driver_->cuStreamQuery(stream_);
    if (state != not_ready) {
        check(state, "cuStreamQuery");
    }
    return state == not_ready;
}

std::string device::uuid() const {
    char uuid[16];
    if (driver_ == nullptr) {
        return "";
    }
    check(driver_->cuDeviceGetUuid(uuid, ordinal_), "cuDeviceGetUuid");
    return std::string(uuid, sizeof uuid);
}

void *device::allocate(size_t bytes, bool on_host) const {
    if (other_ != nullptr && !on_host) {
        return other_->allocate(bytes);
    }
    if (driver_ == nullptr) {
        return ::operator new(bytes);
    }
    if (on_host) {
        void *memory = nullptr; // Page-locked, so that copies can be captured.
        check(driver_->cuMemHostAlloc(&memory, bytes, 0), "cuMemHostAlloc");
        return memory;
    }
    uint64_t memory = 0;
    check(driver_->cuMemAlloc_v2(&memory, bytes), "cuMemAlloc");
    return reinterpret_cast<void *>(memory);
}

void device::free(void *memory, bool on_host) const {
    if (other_ != nullptr && !on_host) {
        other_->free(memory);
    } else if (driver_ == nullptr) {
        ::operator delete(memory);
    } else if (on_host) {
        driver_->cuMemFreeHost(memory);
    } else {
        driver_->cuMemFree_v2(reinterpret_cast<uint64_t>(memory));
    }
}

void device::copy(void *to, const void *from, size_t bytes, bool to_host) const {
    if (other_ != nullptr) {
        to_host ? other_->copy_out(to, from, bytes) : other_->copy_in(to, from, bytes);
        return;
    }
    if (driver_ == nullptr) {
        return;
    }
    if (to_host) {
        check(driver_->cuMemcpyDtoHAsync_v2(to, reinterpret_cast<uint64_t>(from), bytes, stream_),
              "cuMemcpyDtoHAsync");
    } else {
        check(driver_->cuMemcpyHtoDAsync_v2(reinterpret_cast<uint64_t>(to), from, bytes, stream_),
              "cuMemcpyHtoDAsync");
    }
}
