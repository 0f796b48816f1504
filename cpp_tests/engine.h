// The part of an inference engine that the tests need: memory, streams and graphs, on the host or on a CUDA
// device. EPLB_TEST_DEVICE selects it: host (the default), or cuda, with a genuine driver or fake_cuda.
#ifndef EPLB_TESTS_ENGINE_H
#define EPLB_TESTS_ENGINE_H

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <eplb.h>

#include "fake_cuda/cuda_driver.h"
#include "fake_cuda/fake_cuda.h"

class engine {
  public:
    /// The one of the process.
    static engine &get() {
        static engine instance;
        return instance;
    }

    bool is_cuda() const { return cuda_; }
    /// For eplb's configs.
    int32_t device() const { return cuda_ ? 0 : EPLB_DEVICE_HOST; }
    /// Requires is_cuda().
    const cuda_driver &driver() const { return driver_; }
    CUcontext context() const { return context_; }
    /// NULL on a genuine driver.
    const fake_cuda_controls *fake() const { return fake_ ? &controls_ : nullptr; }

    /// Call it on each thread that uses the device.
    void attach_thread() const {
        if (cuda_) {
            check(driver_.cuCtxSetCurrent(context_), "cuCtxSetCurrent");
        }
    }

    static void check(CUresult result, const char *call) {
        if (result != CUDA_SUCCESS) {
            throw std::runtime_error(std::string(call) + " returned " + std::to_string(result));
        }
    }

  private:
    engine() {
        const char *name = std::getenv("EPLB_TEST_DEVICE");
        cuda_ = name != nullptr && std::strcmp(name, "cuda") == 0;
        if (!cuda_) {
            return;
        }
        if (!driver_.load()) {
            throw std::runtime_error("EPLB_TEST_DEVICE is cuda, but there is no driver");
        }
        fake_ = controls_.load();
        check(driver_.cuInit(0), "cuInit");
        check(driver_.cuDevicePrimaryCtxRetain(&context_, 0), "cuDevicePrimaryCtxRetain");
        attach_thread();
    }
    ~engine() {
        if (cuda_) {
            driver_.cuDevicePrimaryCtxRelease_v2(0);
        }
    }

    bool cuda_ = false, fake_ = false;
    cuda_driver driver_ = {};
    fake_cuda_controls controls_ = {};
    CUcontext context_ = nullptr;
};

/// A stream; NULL on the host.
class engine_stream {
  public:
    engine_stream() {
        if (engine::get().is_cuda()) {
            engine::check(engine::get().driver().cuStreamCreate(&stream_, CU_STREAM_NON_BLOCKING),
                          "cuStreamCreate");
        }
    }
    ~engine_stream() {
        if (stream_ != nullptr) {
            engine::get().driver().cuStreamDestroy_v2(stream_);
        }
    }
    engine_stream(const engine_stream &) = delete;
    engine_stream &operator=(const engine_stream &) = delete;

    operator CUstream() const { return stream_; }

    void synchronize() const {
        if (stream_ != nullptr) {
            engine::check(engine::get().driver().cuStreamSynchronize(stream_), "cuStreamSynchronize");
        }
    }

    /// Later work of this stream waits for the earlier work of `other`.
    void wait_for(const engine_stream &other) const {
        if (stream_ == nullptr) {
            return;
        }
        const cuda_driver &driver = engine::get().driver();
        CUevent event = nullptr;
        engine::check(driver.cuEventCreate(&event, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
        engine::check(driver.cuEventRecord(event, other), "cuEventRecord");
        engine::check(driver.cuStreamWaitEvent(stream_, event, 0), "cuStreamWaitEvent");
        engine::check(driver.cuEventDestroy_v2(event), "cuEventDestroy");
    }

  private:
    CUstream stream_ = nullptr;
};

/// An array on the device.
template <class T> class engine_array {
  public:
    explicit engine_array(size_t size) : size_(size) {
        if (engine::get().is_cuda()) {
            CUdeviceptr memory = 0;
            engine::check(engine::get().driver().cuMemAlloc_v2(&memory, size * sizeof(T)), "cuMemAlloc");
            data_ = reinterpret_cast<T *>(memory);
        } else {
            data_ = static_cast<T *>(std::malloc(size * sizeof(T)));
        }
    }
    ~engine_array() {
        if (engine::get().is_cuda()) {
            engine::get().driver().cuMemFree_v2(reinterpret_cast<CUdeviceptr>(data_));
        } else {
            std::free(data_);
        }
    }
    engine_array(const engine_array &) = delete;
    engine_array &operator=(const engine_array &) = delete;

    T *data() const { return data_; }
    size_t size() const { return size_; }

    /// Copies in stream order. `values` must live until the copy is done.
    void upload(const std::vector<T> &values, CUstream stream) const {
        if (values.empty()) {
            return;
        }
        if (engine::get().is_cuda()) {
            engine::check(engine::get().driver().cuMemcpyHtoDAsync_v2(reinterpret_cast<CUdeviceptr>(data_),
                                                                      values.data(),
                                                                      values.size() * sizeof(T), stream),
                          "cuMemcpyHtoDAsync");
        } else {
            std::memcpy(data_, values.data(), values.size() * sizeof(T));
        }
    }

  private:
    T *data_ = nullptr;
    size_t size_;
};

/// Work that is captured once and replayed: a CUDA graph; on the host the work itself.
class engine_graph {
  public:
    engine_graph(const engine_stream &stream, std::function<void()> work) {
        if (!engine::get().is_cuda()) {
            work_ = std::move(work);
            return;
        }
        const cuda_driver &driver = engine::get().driver();
        CUgraph graph = nullptr;
        engine::check(driver.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL),
                      "cuStreamBeginCapture");
        work();
        engine::check(driver.cuStreamEndCapture(stream, &graph), "cuStreamEndCapture");
        engine::check(driver.cuGraphInstantiateWithFlags(&exec_, graph, 0), "cuGraphInstantiate");
        engine::check(driver.cuGraphDestroy(graph), "cuGraphDestroy");
    }
    ~engine_graph() {
        if (exec_ != nullptr) {
            engine::get().driver().cuGraphExecDestroy(exec_);
        }
    }
    engine_graph(const engine_graph &) = delete;
    engine_graph &operator=(const engine_graph &) = delete;

    void replay(const engine_stream &stream) const {
        if (exec_ != nullptr) {
            engine::check(engine::get().driver().cuGraphLaunch(exec_, stream), "cuGraphLaunch");
        } else {
            work_();
        }
    }

  private:
    std::function<void()> work_;
    CUgraphExec exec_ = nullptr;
};

#endif
