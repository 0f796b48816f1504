// Tests the fake driver: it behaves as CUDA's documentation specifies, and its controls work.
#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "cuda_driver.h"
#include "fake_cuda.h"

namespace {

#define OK(call) ASSERT_EQ(call, CUDA_SUCCESS)

class Fake : public testing::Test {
  protected:
    void SetUp() override {
        live = fake_cuda_live_objects();
        OK(cuInit(0));
        OK(cuCtxCreate_v2(&context, 0, 0));
        OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
        OK(cuModuleLoadData(&module, ".version 7.0\n.target sm_80\n"));
        OK(cuModuleGetFunction(&append, module, "fake_cuda_append"));
        OK(cuMemAlloc_v2(&memory, sizeof(unsigned)));
        OK(cuMemsetD32Async(memory, 0, 1, stream));
        OK(cuStreamSynchronize(stream));
    }
    void TearDown() override {
        fake_cuda_set_deferred(0);
        EXPECT_EQ(cuMemFree_v2(memory), last_result);
        EXPECT_EQ(cuModuleUnload(module), last_result);
        EXPECT_EQ(cuStreamDestroy_v2(stream), last_result);
        EXPECT_EQ(cuCtxDestroy_v2(context), CUDA_SUCCESS);
        EXPECT_EQ(fake_cuda_live_objects(), live);
    }

    /// Appends a decimal digit to the number in `memory`, which shows the order of the launches.
    CUresult digit(unsigned digit, CUstream on) {
        unsigned ten = 10;
        void *parameters[] = {&memory, &ten, &digit};
        return cuLaunchKernel(append, 1, 1, 1, 1, 1, 1, 0, on, parameters, nullptr);
    }
    CUresult digit(unsigned which) { return digit(which, stream); }
    /// Reads the number without waiting.
    unsigned digits() const { return *reinterpret_cast<unsigned *>(memory); }

    size_t live = 0;
    CUcontext context;
    CUstream stream;
    CUmodule module;
    CUfunction append;
    CUdeviceptr memory;
    /// The result of calls that release objects: the error of a failed kernel.
    CUresult last_result = CUDA_SUCCESS;
};

TEST_F(Fake, RunsImmediatelyByDefault) {
    OK(digit(1));
    EXPECT_EQ(digits(), 1u);
    EXPECT_EQ(cuStreamQuery(stream), CUDA_SUCCESS);
}

TEST_F(Fake, DeferredWorkRunsWhenNeeded) {
    CUstream other;
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    fake_cuda_set_deferred(1);
    OK(digit(1));
    OK(digit(2, other));
    EXPECT_EQ(digits(), 0u);
    EXPECT_EQ(fake_cuda_pending(), 2u);
    EXPECT_EQ(cuStreamQuery(stream), CUDA_ERROR_NOT_READY);
    OK(cuStreamSynchronize(other));
    EXPECT_EQ(digits(), 2u);
    OK(cuCtxSynchronize());
    EXPECT_EQ(digits(), 21u);
    EXPECT_EQ(cuStreamQuery(stream), CUDA_SUCCESS);
    // Work runs even if its stream is destroyed before.
    OK(digit(3, other));
    OK(cuStreamDestroy_v2(other));
    OK(cuCtxSynchronize());
    EXPECT_EQ(digits(), 213u);
}

TEST_F(Fake, DeferredWorkOrdersThroughEvents) {
    CUstream other;
    CUevent event, never;
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    OK(cuEventCreate(&never, CU_EVENT_DEFAULT));
    fake_cuda_set_deferred(1);
    OK(digit(1));
    OK(cuEventRecord(event, stream));
    OK(digit(2)); // After the event.
    OK(cuStreamWaitEvent(other, event, 0));
    OK(cuStreamWaitEvent(other, never, 0));
    OK(digit(3, other));
    EXPECT_EQ(cuEventQuery(event), CUDA_ERROR_NOT_READY);
    EXPECT_EQ(cuEventQuery(never), CUDA_SUCCESS);
    OK(cuStreamSynchronize(other));
    EXPECT_EQ(digits(), 13u);
    OK(cuEventRecord(event, stream));
    OK(cuEventSynchronize(event));
    EXPECT_EQ(digits(), 132u);
    OK(cuEventDestroy_v2(event));
    OK(cuEventDestroy_v2(never));
    OK(cuStreamDestroy_v2(other));
}

TEST_F(Fake, ThreadsWaitForWorkOfOtherThreads) {
    CUevent event;
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    fake_cuda_set_deferred(1);
    std::thread([&] {
        OK(cuCtxSetCurrent(context));
        OK(digit(1));
        OK(cuEventRecord(event, stream));
    }).join();
    OK(cuEventSynchronize(event));
    EXPECT_EQ(digits(), 1u);
    OK(cuEventDestroy_v2(event));
}

TEST_F(Fake, TheLegacyStreamOrdersWithBlockingStreamsOnly) {
    CUstream blocking;
    OK(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
    fake_cuda_set_deferred(1);
    OK(digit(1, blocking));
    OK(digit(2, nullptr));
    OK(digit(9));
    OK(digit(3, blocking));
    OK(cuStreamSynchronize(blocking));
    EXPECT_EQ(digits(), 123u);
    OK(digit(4, blocking));
    unsigned copied = 0;
    OK(cuMemcpyDtoH_v2(&copied, memory, sizeof copied));
    EXPECT_EQ(copied, 1234u);
    OK(cuStreamSynchronize(stream));
    EXPECT_EQ(digits(), 12349u);
    OK(cuStreamDestroy_v2(blocking));
}

TEST_F(Fake, MeasuresTimeBetweenEvents) {
    CUevent start, end;
    OK(cuEventCreate(&start, CU_EVENT_DEFAULT));
    OK(cuEventCreate(&end, CU_EVENT_DEFAULT));
    float milliseconds = -1;
    EXPECT_EQ(cuEventElapsedTime(&milliseconds, start, end), CUDA_ERROR_INVALID_HANDLE);
    OK(cuEventRecord(start, stream));
    OK(digit(1));
    OK(cuEventRecord(end, stream));
    OK(cuEventElapsedTime(&milliseconds, start, end));
    EXPECT_GT(milliseconds, 0);
    OK(cuEventDestroy_v2(start));
    OK(cuEventDestroy_v2(end));
}

TEST_F(Fake, MemoryIsCheckedAndCopied) {
    CUdeviceptr device, too_much;
    void *host;
    OK(cuMemAlloc_v2(&device, 100));
    OK(cuMemHostAlloc(&host, 100, CU_MEMHOSTALLOC_PORTABLE));
    std::memset(host, 7, 100);
    char pageable[100] = {};
    OK(cuMemsetD8_v2(device, 3, 100));
    OK(cuMemcpyHtoDAsync_v2(device, host, 50, stream));
    OK(cuMemcpyDtoHAsync_v2(pageable, device, 100, stream));
    EXPECT_EQ(pageable[49] * 10 + pageable[50], 73);
    OK(cuMemcpyDtoDAsync_v2(device + 50, device, 50, stream));
    OK(cuMemcpyDtoH_v2(pageable, device + 50, 50));
    EXPECT_EQ(pageable[49], 7);
    OK(cuMemcpyHtoD_v2(device, pageable + 90, 1));

    EXPECT_EQ(cuMemcpyHtoD_v2(device + 1, pageable, 100), CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(cuMemsetD8_v2(device + 100, 0, 1), CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(cuMemsetD8_v2(reinterpret_cast<CUdeviceptr>(pageable), 0, 1), CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(cuMemsetD32Async(device + 1, 0, 1, stream), CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(cuMemFree_v2(device + 1), CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(cuMemFreeHost(reinterpret_cast<void *>(device)), CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(cuMemAlloc_v2(&too_much, 0), CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(cuMemAlloc_v2(&too_much, size_t(1) << 40), CUDA_ERROR_OUT_OF_MEMORY);

    int ordinal = -1;
    CUmemorytype type;
    OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, reinterpret_cast<CUdeviceptr>(host)));
    EXPECT_EQ(type, CU_MEMORYTYPE_HOST);
    OK(cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, memory));
    EXPECT_EQ(ordinal, 0);
    EXPECT_EQ(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
                                    reinterpret_cast<CUdeviceptr>(pageable)),
              CUDA_ERROR_INVALID_VALUE);
    OK(cuMemFreeHost(host));
    OK(cuMemFree_v2(device));
}

TEST_F(Fake, PinnedCopiesWaitAndPageableOnesDoNot) {
    void *pinned;
    OK(cuMemHostAlloc(&pinned, sizeof(unsigned), 0));
    std::memset(pinned, 0, sizeof(unsigned));
    fake_cuda_set_deferred(1);
    OK(digit(1));
    OK(cuMemcpyDtoHAsync_v2(pinned, memory, sizeof(unsigned), stream));
    EXPECT_EQ(*static_cast<unsigned *>(pinned), 0u);
    unsigned pageable = 0;
    OK(cuMemcpyDtoHAsync_v2(&pageable, memory, sizeof(unsigned), stream));
    EXPECT_EQ(*static_cast<unsigned *>(pinned), 1u);
    EXPECT_EQ(pageable, 1u);
    OK(cuMemFreeHost(pinned));
}

TEST_F(Fake, HandlesAreChecked) {
    CUstream dead;
    OK(cuStreamCreate(&dead, CU_STREAM_DEFAULT));
    OK(cuStreamDestroy_v2(dead));
    EXPECT_EQ(digit(1, dead), CUDA_ERROR_INVALID_HANDLE);
    EXPECT_EQ(cuStreamDestroy_v2(dead), CUDA_ERROR_INVALID_HANDLE);
    EXPECT_EQ(cuEventSynchronize(reinterpret_cast<CUevent>(stream)), CUDA_ERROR_INVALID_HANDLE);
    EXPECT_EQ(cuCtxPushCurrent_v2(reinterpret_cast<CUcontext>(stream)), CUDA_ERROR_INVALID_CONTEXT);
    CUfunction function;
    EXPECT_EQ(cuModuleGetFunction(&function, module, "none of this name"), CUDA_ERROR_NOT_FOUND);
}

TEST_F(Fake, EachThreadHasAStackOfContexts) {
    CUcontext other, current;
    OK(cuCtxCreate_v2(&other, 0, 1));
    CUdevice device;
    OK(cuCtxGetDevice(&device));
    EXPECT_EQ(device, 1);
    EXPECT_EQ(digit(1), CUDA_ERROR_INVALID_HANDLE) << "the stream belongs to another context";
    OK(cuStreamGetCtx(stream, &current));
    EXPECT_EQ(current, context);
    std::thread([&] {
        OK(cuCtxGetCurrent(&current));
        EXPECT_EQ(current, nullptr);
        EXPECT_EQ(digit(1), CUDA_ERROR_INVALID_CONTEXT);
        EXPECT_EQ(cuCtxPopCurrent_v2(&current), CUDA_ERROR_INVALID_CONTEXT);
        OK(cuCtxSetCurrent(other));
    }).join();
    OK(cuCtxPopCurrent_v2(&current));
    EXPECT_EQ(current, other);
    OK(digit(1));
    OK(cuCtxPushCurrent_v2(other));
    std::thread([&] { OK(cuCtxDestroy_v2(other)); }).join();
    CUevent event;
    EXPECT_EQ(cuEventCreate(&event, 0), CUDA_ERROR_CONTEXT_IS_DESTROYED);
    OK(cuCtxPopCurrent_v2(&current));
}

TEST_F(Fake, PrimaryContextsAreCounted) {
    CUcontext first, second;
    unsigned flags;
    int active;
    OK(cuDevicePrimaryCtxRetain(&first, 1));
    OK(cuDevicePrimaryCtxRetain(&second, 1));
    EXPECT_EQ(first, second);
    EXPECT_EQ(cuCtxDestroy_v2(first), CUDA_ERROR_INVALID_CONTEXT);
    OK(cuDevicePrimaryCtxRelease_v2(1));
    OK(cuDevicePrimaryCtxGetState(1, &flags, &active));
    EXPECT_EQ(active, 1);
    OK(cuDevicePrimaryCtxRelease_v2(1));
    OK(cuDevicePrimaryCtxGetState(1, &flags, &active));
    EXPECT_EQ(active, 0);
    EXPECT_EQ(cuDevicePrimaryCtxRelease_v2(1), CUDA_ERROR_INVALID_CONTEXT);
    EXPECT_EQ(cuDevicePrimaryCtxRetain(&first, 2), CUDA_ERROR_INVALID_DEVICE);
}

TEST_F(Fake, ImagesAreFatbinsOrPtx) {
    CUmodule loaded;
    const unsigned char fatbin[16] = {0x50, 0xed, 0x55, 0xba};
    OK(cuModuleLoadData(&loaded, fatbin));
    OK(cuModuleUnload(loaded));
    fake_cuda_refuse_fatbins(CUDA_ERROR_NO_BINARY_FOR_GPU);
    EXPECT_EQ(cuModuleLoadData(&loaded, fatbin), CUDA_ERROR_NO_BINARY_FOR_GPU);
    fake_cuda_refuse_fatbins(CUDA_SUCCESS);
    EXPECT_EQ(cuModuleLoadData(&loaded, "\x7f"
                                        "ELF"),
              CUDA_ERROR_INVALID_IMAGE);
    EXPECT_EQ(cuModuleLoadData(&loaded, "neither"), CUDA_ERROR_INVALID_IMAGE);
    fake_cuda_set_newest_ptx(8, 0);
    EXPECT_EQ(cuModuleLoadData(&loaded, "// PTX\n.version 8.1\n"), CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    OK(cuModuleLoadData(&loaded, "// PTX\n.version 8.0\n"));
    OK(cuModuleUnload(loaded));
    fake_cuda_set_newest_ptx(99, 0);
}

TEST_F(Fake, HasTheKernelsOfEplb) {
    for (const char *name :
         {"eplb_count_i32_u32", "eplb_count_i64_u32", "eplb_count_i32_u64", "eplb_count_i64_u64",
          "eplb_count_general", "eplb_route_least_loaded_general", "eplb_add_counts"}) {
        CUfunction function;
        OK(cuModuleGetFunction(&function, module, name));
        int threads = 0;
        OK(cuFuncGetAttribute(&threads, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, function));
        EXPECT_EQ(threads, 1024);
    }
}

TEST_F(Fake, SupportsManyThreads) {
    fake_cuda_set_deferred(1);
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < 8; rank++) {
        ranks.emplace_back([&] {
            CUstream own;
            CUevent event;
            OK(cuCtxSetCurrent(context));
            OK(cuStreamCreate(&own, CU_STREAM_NON_BLOCKING));
            OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
            unsigned one = 1;
            void *parameters[] = {&memory, &one, &one};
            for (int i = 0; i < 100; i++) {
                OK(cuLaunchKernel(append, 1, 1, 1, 1, 1, 1, 0, own, parameters, nullptr));
                OK(cuEventRecord(event, own));
                OK(cuStreamWaitEvent(stream, event, 0));
            }
            OK(cuEventSynchronize(event));
            OK(cuEventDestroy_v2(event));
            OK(cuStreamDestroy_v2(own));
        });
    }
    for (std::thread &rank : ranks) {
        rank.join();
    }
    EXPECT_EQ(digits(), 800u);
}

TEST_F(Fake, LaunchesAreChecked) {
    unsigned number = 0;
    void *parameters[] = {&memory, &number, &number};
    const auto launch = [&](unsigned grid, unsigned block, unsigned shared_bytes) {
        return cuLaunchKernel(append, grid, 1, 1, block, 1, 1, shared_bytes, stream, parameters, nullptr);
    };
    EXPECT_EQ(launch(1, 1, 48 * 1024), CUDA_SUCCESS);
    EXPECT_EQ(launch(0, 1, 0), CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(launch(1, 0, 0), CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(launch(1, 1025, 0), CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(launch(1, 1, 48 * 1024 + 1), CUDA_ERROR_INVALID_VALUE);
}

TEST_F(Fake, AFailedKernelFailsItsContext) {
    CUfunction fail;
    void *no_parameters = nullptr;
    OK(cuModuleGetFunction(&fail, module, "fake_cuda_fail"));
    fake_cuda_set_deferred(1);
    OK(cuLaunchKernel(fail, 1, 1, 1, 32, 1, 1, 0, stream, &no_parameters, nullptr));
    OK(digit(1));
    testing::internal::CaptureStderr();
    EXPECT_EQ(cuStreamSynchronize(stream), CUDA_ERROR_LAUNCH_FAILED);
    EXPECT_EQ(testing::internal::GetCapturedStderr().find("fake_cuda: fake_cuda_fail: barrier divergence"),
              0u);
    EXPECT_EQ(digits(), 0u) << "nothing runs after a failed kernel";
    EXPECT_EQ(digit(1), CUDA_ERROR_LAUNCH_FAILED);
    CUevent event;
    EXPECT_EQ(cuEventCreate(&event, 0), CUDA_ERROR_LAUNCH_FAILED);
    last_result = CUDA_ERROR_LAUNCH_FAILED;
}

TEST_F(Fake, LaunchFailsIfTheModuleIsUnloaded) {
    CUmodule other;
    CUfunction function;
    OK(cuModuleLoadData(&other, ".version 7.0\n.target sm_80\n"));
    OK(cuModuleGetFunction(&function, other, "fake_cuda_append"));
    fake_cuda_set_deferred(1);
    unsigned ten = 10, one = 1;
    void *parameters[] = {&memory, &ten, &one};
    OK(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, parameters, nullptr));
    OK(cuModuleUnload(other));
    testing::internal::CaptureStderr();
    EXPECT_EQ(cuStreamSynchronize(stream), CUDA_ERROR_LAUNCH_FAILED);
    EXPECT_NE(testing::internal::GetCapturedStderr().find("its module was unloaded"), std::string::npos);
    last_result = CUDA_ERROR_LAUNCH_FAILED;
}

TEST_F(Fake, FaultsAreInjectedOnce) {
    CUevent event;
    fake_cuda_fail_call(2, CUDA_ERROR_UNKNOWN);
    OK(digit(1));
    EXPECT_FALSE(fake_cuda_fault_fired());
    EXPECT_EQ(digit(2), CUDA_ERROR_UNKNOWN);
    EXPECT_TRUE(fake_cuda_fault_fired());
    EXPECT_EQ(digits(), 1u);
    OK(cuEventCreate(&event, 0));
    const size_t with_event = fake_cuda_live_objects();
    fake_cuda_fail_call(1, CUDA_ERROR_UNKNOWN);
    EXPECT_EQ(cuEventDestroy_v2(event), CUDA_ERROR_UNKNOWN);
    EXPECT_EQ(fake_cuda_live_objects(), with_event - 1) << "destroyed although the call failed";
    fake_cuda_fail_call(1, CUDA_ERROR_UNKNOWN);
    fake_cuda_fail_call(0, CUDA_SUCCESS);
    OK(digit(2));
    EXPECT_FALSE(fake_cuda_fault_fired());
}

TEST_F(Fake, LogsTheCallsOfEachThread) {
    const size_t calls = fake_cuda_calls();
    fake_cuda_log_clear();
    OK(digit(1));
    std::thread([&] { cuCtxPushCurrent_v2(context); }).join();
    const char *text;
    OK(cuGetErrorName(CUDA_ERROR_NOT_READY, &text));
    EXPECT_STREQ(text, "CUDA_ERROR_NOT_READY");
    OK(cuStreamSynchronize(stream));
    const char *names[2] = {};
    EXPECT_EQ(fake_cuda_log(names, 1), 2u);
    EXPECT_EQ(names[1], nullptr);
    EXPECT_EQ(fake_cuda_log(names, 2), 2u);
    EXPECT_STREQ(names[0], "cuLaunchKernel");
    EXPECT_STREQ(names[1], "cuStreamSynchronize");
    EXPECT_EQ(fake_cuda_calls(), calls + 3);
}

TEST_F(Fake, LoaderFindsAllFunctions) {
    // By the name under which it was loaded.
    cuda_driver driver;
    ASSERT_TRUE(driver.load());
    EXPECT_EQ(driver.cuLaunchKernel, &cuLaunchKernel);
    fake_cuda_controls controls;
    ASSERT_TRUE(controls.load());
    EXPECT_EQ(controls.fake_cuda_calls, &fake_cuda_calls);
}

TEST(FakeCudaDeathTest, ObjectsLeftAtExitFailTheProcess) {
    const auto leak = [] {
        CUcontext context;
        CUstream stream;
        cuInit(0);
        cuDevicePrimaryCtxRetain(&context, 0);
        cuCtxPushCurrent_v2(context);
        cuStreamCreate(&stream, 0);
        std::exit(0);
    };
    EXPECT_EXIT(leak(), testing::ExitedWithCode(97), "left at exit: 1 primary contexts retained, 1 streams");
    setenv("EPLB_FAKE_CUDA_LEAKS", "allow", 1);
    EXPECT_EXIT(leak(), testing::ExitedWithCode(0), "");
    unsetenv("EPLB_FAKE_CUDA_LEAKS");
}

} // namespace
