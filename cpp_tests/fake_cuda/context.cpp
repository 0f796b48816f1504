// Devices and contexts.
#include <algorithm>
#include <cstdio>

#include <unistd.h>

#include "state.h"

using namespace fake_cuda;

namespace fake_cuda {

context &current_context_even_failed() {
    const auto &contexts = this_thread().contexts;
    if (contexts.empty() || contexts.back() == nullptr) {
        fail(CUDA_ERROR_INVALID_CONTEXT);
    }
    return *driver_state().contexts.get(contexts.back(), CUDA_ERROR_CONTEXT_IS_DESTROYED);
}

void check_not_failed(const context &context) {
    if (context.failure != CUDA_SUCCESS) {
        fail(context.failure);
    }
}

context &current_context() {
    context &context = current_context_even_failed();
    check_not_failed(context);
    return context;
}

} // namespace fake_cuda

void fake_cuda::check_initialized() {
    if (driver_state().initialized_by != getpid()) {
        fail(CUDA_ERROR_NOT_INITIALIZED);
    }
}

namespace {

device &device_of(CUdevice ordinal) {
    check_initialized();
    if (ordinal < 0 || size_t(ordinal) >= driver_state().devices.size()) {
        fail(CUDA_ERROR_INVALID_DEVICE);
    }
    return driver_state().devices[size_t(ordinal)];
}

CUcontext create_context(int device, bool primary) {
    auto created = std::make_shared<context>();
    created->device = device;
    created->primary = primary;
    created->legacy = std::make_shared<stream>();
    created->legacy->context = created.get();
    created->legacy->blocking = true;
    created->legacy->legacy = true;
    return created->handle = driver_state().contexts.add(created);
}

/// Finishes the work of the context, then destroys its objects with it.
void destroy_context(CUcontext handle) {
    state &s = driver_state();
    const auto dying = s.contexts.get(handle);
    finish_all(*dying);
    const auto is_in_it = [&](const auto &object) { return object.context == dying.get(); };
    s.streams.erase_if(is_in_it);
    s.events.erase_if(is_in_it);
    s.functions.erase_if(is_in_it);
    s.modules.erase_if(is_in_it);
    for (auto next = s.allocations.begin(); next != s.allocations.end();) {
        if (next->second.context == dying.get()) {
            std::free(reinterpret_cast<void *>(next->first));
            next = s.allocations.erase(next);
        } else {
            next++;
        }
    }
    s.contexts.erase(handle);
}

int attribute_of_device(CUdevice_attribute attribute) {
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
        return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X:
        return 0x7fffffff;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
        return int(emulation::shared_capacity);
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
        return 32;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
        return 1000000;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: // Few, so that small tests use several blocks.
        return 4;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH:
        return 4096;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
        return 1 << 20;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
        return 2048;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
        return 1;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
        return 9;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
    case CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS:
        return 0;
    }
    fail(CUDA_ERROR_INVALID_VALUE);
}

} // namespace

CUresult cuInit(unsigned int flags) {
    return call(__func__, [&] {
        if (flags != 0) {
            fail(CUDA_ERROR_INVALID_VALUE);
        }
        if (driver_state().initialized_by == 0) {
            driver_state().initialized_by = getpid();
        }
        check_initialized();
    });
}

CUresult cuDriverGetVersion(int *version) {
    return call(__func__, [&] { store(version, driver_state().version); });
}

CUresult cuGetErrorName(CUresult error, const char **name) {
    switch (error) {
#define CASE(constant, value)                                                                                \
    case constant:                                                                                           \
        *name = #constant;                                                                                   \
        return CUDA_SUCCESS;
        CUDA_RESULTS(CASE)
#undef CASE
    }
    *name = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    const CUresult result = cuGetErrorName(error, text);
    if (result == CUDA_SUCCESS && error != CUDA_SUCCESS) {
        *text = "an error of the driver under test";
    }
    return result;
}

CUresult cuDeviceGetCount(int *count) {
    return call(__func__, [&] {
        device_of(0);
        store(count, int(driver_state().devices.size()));
    });
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    return call(__func__, [&] {
        device_of(ordinal);
        store(device, ordinal);
    });
}

CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
    return call(__func__, [&] {
        device_of(device);
        if (name == nullptr || size <= 0) {
            fail(CUDA_ERROR_INVALID_VALUE);
        }
        std::snprintf(name, size_t(size), "Fake GPU %d", device);
    });
}

CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device) {
    return call(__func__, [&] {
        device_of(device);
        CUuuid of_device = {"a fake GPU, no "};
        of_device.bytes[15] = char('0' + device);
        store(uuid, of_device);
    });
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    return call(__func__, [&] {
        device_of(device);
        store(value, attribute_of_device(attribute));
    });
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    return call(__func__, [&] {
        auto &retained = device_of(device);
        if (retained.primary == nullptr) {
            retained.primary = create_context(device, true);
        }
        store(context, retained.primary);
        retained.retained++;
    });
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    return call_that_releases(__func__, [&] {
        auto &released = device_of(device);
        if (released.retained == 0) {
            fail(CUDA_ERROR_INVALID_CONTEXT);
        }
        if (--released.retained == 0) {
            destroy_context(std::exchange(released.primary, nullptr));
        }
    });
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active) {
    return call(__func__, [&] {
        store(active, int(device_of(device).primary != nullptr));
        store(flags, 0u);
    });
}

CUresult cuCtxCreate_v2(CUcontext *context, unsigned int, CUdevice device) {
    return call(__func__, [&] {
        device_of(device);
        store(context, CUcontext(nullptr));
        *context = create_context(device, false);
        this_thread().contexts.push_back(*context);
    });
}

CUresult cuCtxDestroy_v2(CUcontext context) {
    return call_that_releases(__func__, [&] {
        if (driver_state().contexts.get(context, CUDA_ERROR_INVALID_CONTEXT)->primary) {
            fail(CUDA_ERROR_INVALID_CONTEXT);
        }
        destroy_context(context);
        auto &contexts = this_thread().contexts;
        if (!contexts.empty() && contexts.back() == context) {
            contexts.pop_back();
        }
    });
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    return call(__func__, [&] {
        device_of(0);
        const auto &contexts = this_thread().contexts;
        store(context, contexts.empty() ? nullptr : contexts.back());
    });
}

CUresult cuCtxSetCurrent(CUcontext context) {
    return call(__func__, [&] {
        device_of(0);
        auto &contexts = this_thread().contexts;
        if (context != nullptr) {
            driver_state().contexts.get(context, CUDA_ERROR_INVALID_CONTEXT);
        }
        if (!contexts.empty()) {
            contexts.pop_back();
        }
        if (context != nullptr) {
            contexts.push_back(context);
        }
    });
}

CUresult cuCtxPushCurrent_v2(CUcontext context) {
    return call(__func__, [&] {
        driver_state().contexts.get(context, CUDA_ERROR_INVALID_CONTEXT);
        this_thread().contexts.push_back(context);
    });
}

CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    return call_that_releases(__func__, [&] {
        auto &contexts = this_thread().contexts;
        if (contexts.empty()) {
            fail(CUDA_ERROR_INVALID_CONTEXT);
        }
        if (context != nullptr) {
            *context = contexts.back();
        }
        contexts.pop_back();
    });
}

CUresult cuCtxGetDevice(CUdevice *device) {
    return call(__func__, [&] { store(device, current_context_even_failed().device); });
}

CUresult cuCtxSynchronize() {
    return call(__func__, [&] {
        context &context = current_context();
        check_call_is_safe();
        for (const auto &[handle, stream] : driver_state().streams) {
            if (stream->context == &context) {
                check_can_wait_for(*stream);
            }
        }
        finish_all(context);
        check_not_failed(context);
    });
}
