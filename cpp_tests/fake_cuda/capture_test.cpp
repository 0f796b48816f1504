// Stream capture: the graph that it creates, and the calls that it forbids.
#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <thread>

#include "cuda_driver.h"
#include "fake_cuda.h"

namespace {

#define OK(call) ASSERT_EQ(call, CUDA_SUCCESS)

class Capture : public testing::Test {
  protected:
    void SetUp() override {
        OK(cuInit(0));
        OK(cuCtxCreate_v2(&context, 0, 0));
        OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
        OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
        OK(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
        OK(cuEventCreate(&fork, CU_EVENT_DISABLE_TIMING));
        OK(cuEventCreate(&join, CU_EVENT_DISABLE_TIMING));
        OK(cuModuleLoadData(&module, ".version 7.0"));
        OK(cuModuleGetFunction(&append, module, "fake_cuda_append"));
        OK(cuMemAlloc_v2(&memory, sizeof(unsigned)));
        OK(cuMemsetD8_v2(memory, 0, sizeof(unsigned)));
    }
    void TearDown() override {
        fake_cuda_set_deferred(0);
        OK(cuCtxDestroy_v2(context));
        if (exec != nullptr) {
            OK(cuGraphExecDestroy(exec));
        }
        EXPECT_EQ(fake_cuda_live_objects(), 0u);
    }

    CUresult digit(unsigned digit, CUstream on) {
        unsigned ten = 10;
        void *parameters[] = {&memory, &ten, &digit};
        return cuLaunchKernel(append, 1, 1, 1, 1, 1, 1, 0, on, parameters, nullptr);
    }
    unsigned digits() const { return *reinterpret_cast<unsigned *>(memory); }

    void begin(CUstream on, CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL) {
        OK(cuStreamBeginCapture_v2(on, mode));
    }
    /// Ends the capture of a stream, and expects `error`.
    void end(CUstream on, CUresult with) {
        CUgraph graph = reinterpret_cast<CUgraph>(1);
        EXPECT_EQ(cuStreamEndCapture(on, &graph), with);
        EXPECT_EQ(graph, nullptr);
    }
    /// Ends the capture and instantiates the graph.
    void end(CUstream on) {
        CUgraph graph;
        OK(cuStreamEndCapture(on, &graph));
        OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
        OK(cuGraphDestroy(graph));
    }
    CUstreamCaptureStatus status(CUstream of) {
        CUstreamCaptureStatus status;
        EXPECT_EQ(cuStreamIsCapturing(of, &status), CUDA_SUCCESS);
        return status;
    }

    CUcontext context;
    CUstream stream, other, blocking;
    CUevent fork, join;
    CUmodule module;
    CUfunction append;
    CUdeviceptr memory;
    CUgraphExec exec = nullptr;
};

TEST_F(Capture, ReplaysAnyNumberOfTimes) {
    EXPECT_EQ(status(stream), CU_STREAM_CAPTURE_STATUS_NONE);
    begin(stream);
    EXPECT_EQ(status(stream), CU_STREAM_CAPTURE_STATUS_ACTIVE);
    OK(digit(1, stream));
    OK(digit(2, stream));
    EXPECT_EQ(digits(), 0u);
    end(stream);
    EXPECT_EQ(digits(), 0u);
    OK(cuGraphLaunch(exec, stream));
    EXPECT_EQ(digits(), 12u);
    fake_cuda_set_deferred(1);
    OK(digit(3, other));
    OK(cuGraphLaunch(exec, other));
    EXPECT_EQ(digits(), 12u);
    OK(cuStreamSynchronize(other));
    EXPECT_EQ(digits(), 12312u);
}

TEST_F(Capture, JoinsStreamsThroughEvents) {
    begin(stream);
    OK(digit(1, stream));
    OK(cuEventRecord(fork, stream));
    OK(cuStreamWaitEvent(other, fork, 0));
    EXPECT_EQ(status(other), CU_STREAM_CAPTURE_STATUS_ACTIVE);
    OK(digit(2, stream));
    OK(digit(3, other));
    OK(cuEventRecord(join, other));
    OK(cuStreamWaitEvent(stream, join, 0));
    OK(digit(4, stream));
    end(stream);
    EXPECT_EQ(status(other), CU_STREAM_CAPTURE_STATUS_NONE);
    std::set<unsigned> orders;
    for (int i = 0; i < 50; i++) {
        OK(cuMemsetD32Async(memory, 0, 1, stream));
        OK(cuGraphLaunch(exec, stream));
        orders.insert(digits());
    }
    EXPECT_EQ(orders, (std::set<unsigned>{1234, 1324})) << "2 and 3 may run in either order";
}

TEST_F(Capture, RecordsMemsetsAndCopies) {
    CUdeviceptr copy;
    OK(cuMemAlloc_v2(&copy, sizeof(unsigned)));
    begin(stream);
    OK(cuMemsetD32Async(memory, 7, 1, stream));
    OK(cuMemcpyDtoDAsync_v2(copy, memory, sizeof(unsigned), stream));
    end(stream);
    for (int i = 0; i < 2; i++) {
        OK(cuMemsetD8_v2(copy, 0, sizeof(unsigned)));
        OK(cuGraphLaunch(exec, stream));
        EXPECT_EQ(*reinterpret_cast<unsigned *>(copy), 7u);
    }
    OK(cuMemFree_v2(copy));
    EXPECT_EQ(cuGraphLaunch(exec, stream), CUDA_ERROR_ILLEGAL_ADDRESS);
}

TEST_F(Capture, RecordsGraphs) {
    begin(stream);
    OK(digit(1, stream));
    end(stream);
    const CUgraphExec inner = exec;
    begin(stream);
    OK(cuGraphLaunch(inner, stream));
    OK(digit(2, stream));
    end(stream);
    OK(cuGraphExecDestroy(inner));
    OK(cuGraphLaunch(exec, stream));
    EXPECT_EQ(digits(), 12u);
}

TEST_F(Capture, UnsafeCallsInvalidateIt) {
    CUdeviceptr allocated;
    void *host;
    CUmodule loaded;
    unsigned copied;
    const std::function<CUresult()> of_each_kind[] = {
        [&] { return cuMemAlloc_v2(&allocated, 1); },
        [&] { return cuMemFree_v2(memory); },
        [&] { return cuMemHostAlloc(&host, 1, 0); },
        [&] { return cuEventQuery(join); },
        [&] { return cuModuleLoadData(&loaded, ".version 7.0"); },
        [&] { return cuMemcpyDtoH_v2(&copied, memory, sizeof copied); },
        [&] { return cuMemsetD8_v2(memory, 0, 1); },
        [&] { return cuStreamSynchronize(other); },
        [&] { return cuCtxSynchronize(); },
        [&] { return cuStreamQuery(stream); },
        [&] { return cuStreamSynchronize(stream); },
    };
    for (const auto &unsafe : of_each_kind) {
        begin(stream);
        EXPECT_EQ(unsafe(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        EXPECT_EQ(status(stream), CU_STREAM_CAPTURE_STATUS_INVALIDATED);
        EXPECT_EQ(digit(1, stream), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        end(stream, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        EXPECT_EQ(status(stream), CU_STREAM_CAPTURE_STATUS_NONE);
    }
}

/// The result of an allocation in this thread with capture mode `thread_mode`.
CUresult allocate(CUstreamCaptureMode thread_mode) {
    EXPECT_EQ(cuThreadExchangeStreamCaptureMode(&thread_mode), CUDA_SUCCESS);
    CUdeviceptr memory;
    const CUresult result = cuMemAlloc_v2(&memory, 1);
    EXPECT_EQ(cuThreadExchangeStreamCaptureMode(&thread_mode), CUDA_SUCCESS);
    return result;
}

TEST_F(Capture, UnsafeCallsDependOnTheModesOfCaptureAndThread) {
    constexpr auto global = CU_STREAM_CAPTURE_MODE_GLOBAL;
    constexpr auto thread_local_ = CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    constexpr auto relaxed = CU_STREAM_CAPTURE_MODE_RELAXED;
    for (const auto capture_mode : {global, thread_local_, relaxed}) {
        for (const auto thread_mode : {global, thread_local_, relaxed}) {
            for (const bool same_thread : {true, false}) {
                begin(stream, capture_mode);
                CUresult result;
                if (same_thread) {
                    result = allocate(thread_mode);
                } else {
                    std::thread([&] {
                        OK(cuCtxSetCurrent(context));
                        result = allocate(thread_mode);
                    }).join();
                }
                const bool forbidden = same_thread ? capture_mode != relaxed && thread_mode != relaxed
                                                   : capture_mode == global && thread_mode == global;
                EXPECT_EQ(result, forbidden ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS)
                    << capture_mode << " " << thread_mode << " " << same_thread;
                CUgraph graph;
                EXPECT_EQ(cuStreamEndCapture(stream, &graph),
                          forbidden ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS);
                if (!forbidden) {
                    OK(cuGraphDestroy(graph));
                }
            }
        }
    }
}

TEST_F(Capture, WaitingForACapturingStreamFailsInAnyMode) {
    CUstreamCaptureMode relaxed = CU_STREAM_CAPTURE_MODE_RELAXED;
    OK(cuThreadExchangeStreamCaptureMode(&relaxed));
    begin(stream, CU_STREAM_CAPTURE_MODE_RELAXED);
    EXPECT_EQ(cuCtxSynchronize(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    end(stream, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    begin(stream, CU_STREAM_CAPTURE_MODE_RELAXED);
    OK(cuEventRecord(fork, stream));
    EXPECT_EQ(cuEventQuery(fork), CUDA_ERROR_CAPTURED_EVENT);
    end(stream, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    OK(cuThreadExchangeStreamCaptureMode(&relaxed));
}

TEST_F(Capture, ForbidsTheLegacyStreamForBlockingStreamsOnly) {
    begin(stream);
    OK(digit(1, nullptr));
    end(stream);
    EXPECT_EQ(digits(), 1u) << "the legacy stream does not wait for non-blocking streams";

    CUstreamCaptureStatus unused;
    begin(blocking);
    EXPECT_EQ(cuStreamIsCapturing(nullptr, &unused), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    EXPECT_EQ(status(blocking), CU_STREAM_CAPTURE_STATUS_ACTIVE);
    EXPECT_EQ(digit(1, nullptr), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    end(blocking, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    EXPECT_EQ(cuStreamBeginCapture_v2(nullptr, CU_STREAM_CAPTURE_MODE_GLOBAL),
              CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    EXPECT_EQ(digits(), 1u);
}

TEST_F(Capture, EndsOnlyInItsFirstStream) {
    EXPECT_EQ(cuStreamEndCapture(stream, nullptr), CUDA_ERROR_INVALID_VALUE);
    end(stream, CUDA_ERROR_ILLEGAL_STATE);
    begin(stream);
    EXPECT_EQ(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_ERROR_ILLEGAL_STATE);
    OK(cuEventRecord(fork, stream));
    OK(cuStreamWaitEvent(other, fork, 0));
    end(other, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    std::thread([&] {
        OK(cuCtxSetCurrent(context));
        end(stream, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    }).join();
    OK(digit(1, other));
    end(stream, CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    EXPECT_EQ(status(other), CU_STREAM_CAPTURE_STATUS_NONE);
}

TEST_F(Capture, RejectsDependenciesOnUncapturedWork) {
    OK(cuEventRecord(fork, other));
    begin(stream);
    EXPECT_EQ(cuStreamWaitEvent(stream, fork, 0), CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    end(stream, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

    begin(stream);
    begin(other);
    OK(cuEventRecord(fork, other));
    EXPECT_EQ(cuStreamWaitEvent(stream, fork, 0), CUDA_ERROR_STREAM_CAPTURE_MERGE);
    end(stream, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    end(other, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

} // namespace
