// The part of the CUDA driver's interface that eplb and its tests use, as declared by cuda.h of CUDA 12.0
// (check_against_cuda_h.cpp compares the two), and a struct of the functions of the loaded driver.
#pragma once

#include <cstddef>

#include <dlfcn.h>

// Each constant as X(name, value).
#define CUDA_RESULTS(X)                                                                                      \
    X(CUDA_SUCCESS, 0)                                                                                       \
    X(CUDA_ERROR_INVALID_VALUE, 1)                                                                           \
    X(CUDA_ERROR_OUT_OF_MEMORY, 2)                                                                           \
    X(CUDA_ERROR_NOT_INITIALIZED, 3)                                                                         \
    X(CUDA_ERROR_DEINITIALIZED, 4)                                                                           \
    X(CUDA_ERROR_STUB_LIBRARY, 34)                                                                           \
    X(CUDA_ERROR_DEVICE_UNAVAILABLE, 46)                                                                     \
    X(CUDA_ERROR_NO_DEVICE, 100)                                                                             \
    X(CUDA_ERROR_INVALID_DEVICE, 101)                                                                        \
    X(CUDA_ERROR_INVALID_IMAGE, 200)                                                                         \
    X(CUDA_ERROR_INVALID_CONTEXT, 201)                                                                       \
    X(CUDA_ERROR_NO_BINARY_FOR_GPU, 209)                                                                     \
    X(CUDA_ERROR_INVALID_PTX, 218)                                                                           \
    X(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, 222)                                                               \
    X(CUDA_ERROR_INVALID_HANDLE, 400)                                                                        \
    X(CUDA_ERROR_ILLEGAL_STATE, 401)                                                                         \
    X(CUDA_ERROR_NOT_FOUND, 500)                                                                             \
    X(CUDA_ERROR_NOT_READY, 600)                                                                             \
    X(CUDA_ERROR_ILLEGAL_ADDRESS, 700)                                                                       \
    X(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, 701)                                                               \
    X(CUDA_ERROR_CONTEXT_IS_DESTROYED, 709)                                                                  \
    X(CUDA_ERROR_LAUNCH_FAILED, 719)                                                                         \
    X(CUDA_ERROR_NOT_SUPPORTED, 801)                                                                         \
    X(CUDA_ERROR_SYSTEM_NOT_READY, 802)                                                                      \
    X(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, 803)                                                                \
    X(CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE, 804)                                                        \
    X(CUDA_ERROR_MPS_CONNECTION_FAILED, 805)                                                                 \
    X(CUDA_ERROR_MPS_RPC_FAILURE, 806)                                                                       \
    X(CUDA_ERROR_MPS_SERVER_NOT_READY, 807)                                                                  \
    X(CUDA_ERROR_MPS_MAX_CLIENTS_REACHED, 808)                                                               \
    X(CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED, 809)                                                           \
    X(CUDA_ERROR_MPS_CLIENT_TERMINATED, 810)                                                                 \
    X(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 900)                                                            \
    X(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 901)                                                            \
    X(CUDA_ERROR_STREAM_CAPTURE_MERGE, 902)                                                                  \
    X(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, 903)                                                              \
    X(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, 904)                                                               \
    X(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, 905)                                                              \
    X(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, 906)                                                               \
    X(CUDA_ERROR_CAPTURED_EVENT, 907)                                                                        \
    X(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, 908)                                                           \
    X(CUDA_ERROR_UNKNOWN, 999)

#define CUDA_DEVICE_ATTRIBUTES(X)                                                                            \
    X(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1)                                                          \
    X(CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 2)                                                                \
    X(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, 5)                                                                 \
    X(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 8)                                                    \
    X(CU_DEVICE_ATTRIBUTE_WARP_SIZE, 10)                                                                     \
    X(CU_DEVICE_ATTRIBUTE_CLOCK_RATE, 13)                                                                    \
    X(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 16)                                                          \
    X(CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY, 19)                                                           \
    X(CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, 36)                                                             \
    X(CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, 37)                                                       \
    X(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 38)                                                                 \
    X(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, 39)                                                \
    X(CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 41)                                                            \
    X(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 75)                                                      \
    X(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 76)                                                      \
    X(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, 81)                                          \
    X(CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS, 88)                                                        \
    X(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 97)

#define CUDA_FUNCTION_ATTRIBUTES(X)                                                                          \
    X(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 0)                                                            \
    X(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, 1)                                                                \
    X(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, 3)                                                                 \
    X(CU_FUNC_ATTRIBUTE_NUM_REGS, 4)                                                                         \
    X(CU_FUNC_ATTRIBUTE_PTX_VERSION, 5)                                                                      \
    X(CU_FUNC_ATTRIBUTE_BINARY_VERSION, 6)                                                                   \
    X(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 8)

#define CUDA_POINTER_ATTRIBUTES(X)                                                                           \
    X(CU_POINTER_ATTRIBUTE_CONTEXT, 1)                                                                       \
    X(CU_POINTER_ATTRIBUTE_MEMORY_TYPE, 2)                                                                   \
    X(CU_POINTER_ATTRIBUTE_DEVICE_POINTER, 3)                                                                \
    X(CU_POINTER_ATTRIBUTE_HOST_POINTER, 4)                                                                  \
    X(CU_POINTER_ATTRIBUTE_IS_MANAGED, 8)                                                                    \
    X(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, 9)                                                                \
    X(CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, 11)                                                             \
    X(CU_POINTER_ATTRIBUTE_RANGE_SIZE, 12)

#define CUDA_MEMORY_TYPES(X)                                                                                 \
    X(CU_MEMORYTYPE_HOST, 1)                                                                                 \
    X(CU_MEMORYTYPE_DEVICE, 2)

#define CUDA_STREAM_FLAGS(X)                                                                                 \
    X(CU_STREAM_DEFAULT, 0)                                                                                  \
    X(CU_STREAM_NON_BLOCKING, 1)

#define CUDA_EVENT_FLAGS(X)                                                                                  \
    X(CU_EVENT_DEFAULT, 0)                                                                                   \
    X(CU_EVENT_BLOCKING_SYNC, 1)                                                                             \
    X(CU_EVENT_DISABLE_TIMING, 2)

#define CUDA_CAPTURE_STATUSES(X)                                                                             \
    X(CU_STREAM_CAPTURE_STATUS_NONE, 0)                                                                      \
    X(CU_STREAM_CAPTURE_STATUS_ACTIVE, 1)                                                                    \
    X(CU_STREAM_CAPTURE_STATUS_INVALIDATED, 2)

#define CUDA_CAPTURE_MODES(X)                                                                                \
    X(CU_STREAM_CAPTURE_MODE_GLOBAL, 0)                                                                      \
    X(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, 1)                                                                \
    X(CU_STREAM_CAPTURE_MODE_RELAXED, 2)

// Each enumeration as X(type, its constants).
#define CUDA_ENUMERATIONS(X)                                                                                 \
    X(CUresult, CUDA_RESULTS)                                                                                \
    X(CUdevice_attribute, CUDA_DEVICE_ATTRIBUTES)                                                            \
    X(CUfunction_attribute, CUDA_FUNCTION_ATTRIBUTES)                                                        \
    X(CUpointer_attribute, CUDA_POINTER_ATTRIBUTES)                                                          \
    X(CUmemorytype, CUDA_MEMORY_TYPES)                                                                       \
    X(CUstream_flags, CUDA_STREAM_FLAGS)                                                                     \
    X(CUevent_flags, CUDA_EVENT_FLAGS)                                                                       \
    X(CUstreamCaptureStatus, CUDA_CAPTURE_STATUSES)                                                          \
    X(CUstreamCaptureMode, CUDA_CAPTURE_MODES)

// X(handle type, the type that it points to) for each handle.
#define CUDA_HANDLES(X)                                                                                      \
    X(CUcontext, CUctx_st)                                                                                   \
    X(CUmodule, CUmod_st)                                                                                    \
    X(CUfunction, CUfunc_st)                                                                                 \
    X(CUstream, CUstream_st)                                                                                 \
    X(CUevent, CUevent_st)                                                                                   \
    X(CUgraph, CUgraph_st)                                                                                   \
    X(CUgraphExec, CUgraphExec_st)

// Each function as X(name, parameters); all return CUresult.
#define CUDA_FUNCTIONS(X)                                                                                    \
    X(cuInit, (unsigned int flags))                                                                          \
    X(cuDriverGetVersion, (int *version))                                                                    \
    X(cuGetErrorName, (CUresult error, const char **name))                                                   \
    X(cuGetErrorString, (CUresult error, const char **text))                                                 \
    X(cuDeviceGetCount, (int *count))                                                                        \
    X(cuDeviceGet, (CUdevice * device, int ordinal))                                                         \
    X(cuDeviceGetName, (char *name, int size, CUdevice device))                                              \
    X(cuDeviceGetUuid, (CUuuid * uuid, CUdevice device))                                                     \
    X(cuDeviceGetAttribute, (int *value, CUdevice_attribute attribute, CUdevice device))                     \
    X(cuDevicePrimaryCtxRetain, (CUcontext * context, CUdevice device))                                      \
    X(cuDevicePrimaryCtxRelease_v2, (CUdevice device))                                                       \
    X(cuDevicePrimaryCtxGetState, (CUdevice device, unsigned int *flags, int *active))                       \
    X(cuCtxCreate_v2, (CUcontext * context, unsigned int flags, CUdevice device))                            \
    X(cuCtxDestroy_v2, (CUcontext context))                                                                  \
    X(cuCtxGetCurrent, (CUcontext * context))                                                                \
    X(cuCtxSetCurrent, (CUcontext context))                                                                  \
    X(cuCtxPushCurrent_v2, (CUcontext context))                                                              \
    X(cuCtxPopCurrent_v2, (CUcontext * context))                                                             \
    X(cuCtxGetDevice, (CUdevice * device))                                                                   \
    X(cuCtxSynchronize, ())                                                                                  \
    X(cuMemAlloc_v2, (CUdeviceptr * memory, size_t size))                                                    \
    X(cuMemFree_v2, (CUdeviceptr memory))                                                                    \
    X(cuMemHostAlloc, (void **memory, size_t size, unsigned int flags))                                      \
    X(cuMemFreeHost, (void *memory))                                                                         \
    X(cuMemsetD8_v2, (CUdeviceptr memory, unsigned char value, size_t count))                                \
    X(cuMemsetD32Async, (CUdeviceptr memory, unsigned int value, size_t count, CUstream stream))             \
    X(cuMemcpyHtoD_v2, (CUdeviceptr to, const void *from, size_t size))                                      \
    X(cuMemcpyDtoH_v2, (void *to, CUdeviceptr from, size_t size))                                            \
    X(cuMemcpyHtoDAsync_v2, (CUdeviceptr to, const void *from, size_t size, CUstream stream))                \
    X(cuMemcpyDtoHAsync_v2, (void *to, CUdeviceptr from, size_t size, CUstream stream))                      \
    X(cuMemcpyDtoDAsync_v2, (CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream))                \
    X(cuPointerGetAttribute, (void *value, CUpointer_attribute attribute, CUdeviceptr memory))               \
    X(cuModuleLoadData, (CUmodule * module, const void *image))                                              \
    X(cuModuleUnload, (CUmodule module))                                                                     \
    X(cuModuleGetFunction, (CUfunction * function, CUmodule module, const char *name))                       \
    X(cuFuncGetAttribute, (int *value, CUfunction_attribute attribute, CUfunction function))                 \
    X(cuLaunchKernel, (CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,   \
                       unsigned int block_x, unsigned int block_y, unsigned int block_z,                     \
                       unsigned int shared_bytes, CUstream stream, void **parameters, void **extra))         \
    X(cuStreamCreate, (CUstream * stream, unsigned int flags))                                               \
    X(cuStreamDestroy_v2, (CUstream stream))                                                                 \
    X(cuStreamSynchronize, (CUstream stream))                                                                \
    X(cuStreamQuery, (CUstream stream))                                                                      \
    X(cuStreamGetCtx, (CUstream stream, CUcontext * context))                                                \
    X(cuStreamWaitEvent, (CUstream stream, CUevent event, unsigned int flags))                               \
    X(cuStreamIsCapturing, (CUstream stream, CUstreamCaptureStatus * status))                                \
    X(cuStreamBeginCapture_v2, (CUstream stream, CUstreamCaptureMode mode))                                  \
    X(cuStreamEndCapture, (CUstream stream, CUgraph * graph))                                                \
    X(cuThreadExchangeStreamCaptureMode, (CUstreamCaptureMode * mode))                                       \
    X(cuGraphInstantiateWithFlags, (CUgraphExec * exec, CUgraph graph, unsigned long long flags))            \
    X(cuGraphLaunch, (CUgraphExec exec, CUstream stream))                                                    \
    X(cuGraphExecDestroy, (CUgraphExec exec))                                                                \
    X(cuGraphDestroy, (CUgraph graph))                                                                       \
    X(cuEventCreate, (CUevent * event, unsigned int flags))                                                  \
    X(cuEventDestroy_v2, (CUevent event))                                                                    \
    X(cuEventRecord, (CUevent event, CUstream stream))                                                       \
    X(cuEventSynchronize, (CUevent event))                                                                   \
    X(cuEventQuery, (CUevent event))                                                                         \
    X(cuEventElapsedTime, (float *milliseconds, CUevent start, CUevent end))

#ifndef CUDA_VERSION // NVIDIA's cuda.h defines them.

using CUdevice = int;
using CUdeviceptr = unsigned long long;
struct CUuuid {
    char bytes[16];
};

#define DECLARE(type, pointee) using type = struct pointee *;
CUDA_HANDLES(DECLARE)
#undef DECLARE

#define ENUMERATOR(name, value) name = value,
#define DECLARE(type, constants) enum type : unsigned { constants(ENUMERATOR) };
CUDA_ENUMERATIONS(DECLARE)
#undef DECLARE
#undef ENUMERATOR

#define CU_STREAM_LEGACY ((CUstream)0x1)
#define CU_STREAM_PER_THREAD ((CUstream)0x2)
#define CU_MEMHOSTALLOC_PORTABLE 0x01
#define CU_MEMHOSTALLOC_DEVICEMAP 0x02
#define CU_MEMHOSTALLOC_WRITECOMBINED 0x04

extern "C" {
#define DECLARE(name, parameters) __attribute__((visibility("default"))) CUresult name parameters;
CUDA_FUNCTIONS(DECLARE)
#undef DECLARE
}

#endif

/// The functions of the driver that the loader finds under its usual name, genuine or fake.
struct cuda_driver {
#define MEMBER(name, parameters) CUresult(*name) parameters;
    CUDA_FUNCTIONS(MEMBER)
#undef MEMBER

    /// False if there is no driver, or one without one of the functions. The library stays loaded.
    bool load() {
        void *library = dlopen("libcuda.so.1", RTLD_NOW);
        if (library == nullptr) {
            return false;
        }
        bool complete = true;
#define LOAD(name, parameters)                                                                               \
    name = reinterpret_cast<CUresult(*) parameters>(dlsym(library, #name));                                  \
    complete = complete && name != nullptr;
        CUDA_FUNCTIONS(LOAD)
#undef LOAD
        return complete;
    }
};
