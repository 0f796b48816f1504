// Device and pinned memory: host memory of exactly the requested size, so that AddressSanitizer and valgrind
// detect accesses beyond it and uninitialised reads.
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "checkers.h"
#include "state.h"

using namespace fake_cuda;

namespace {

uintptr_t address_of(CUdeviceptr memory) { return static_cast<uintptr_t>(memory); }
void *pointer_to(CUdeviceptr memory) { return reinterpret_cast<void *>(address_of(memory)); }
CUdeviceptr device_pointer(const void *memory) { return reinterpret_cast<uintptr_t>(memory); }

/// The allocation that holds all `size` bytes, or NULL.
const std::pair<const uintptr_t, allocation> *allocation_of(CUdeviceptr memory, size_t size) {
    const auto &allocations = driver_state().allocations;
    auto next = allocations.upper_bound(address_of(memory));
    if (next == allocations.begin()) {
        return nullptr;
    }
    const auto found = std::prev(next);
    const size_t offset = address_of(memory) - found->first;
    return offset < found->second.size && size <= found->second.size - offset ? &*found : nullptr;
}

void check(CUdeviceptr memory, size_t size, CUresult otherwise = CUDA_ERROR_INVALID_VALUE) {
    if (size != 0 && allocation_of(memory, size) == nullptr) {
        fail(otherwise);
    }
}

/// Fills new memory with garbage, as on a GPU.
void *allocate(size_t size, bool on_host) {
    constexpr size_t largest = size_t(1) << 30;
    context &context = current_context();
    check_call_is_safe();
    if (size == 0) {
        fail(CUDA_ERROR_INVALID_VALUE);
    }
    void *memory = nullptr;
    if (size > largest || posix_memalign(&memory, 256, size) != 0) {
        fail(CUDA_ERROR_OUT_OF_MEMORY);
    }
    std::memset(memory, 0xd7, size);
    emulation::mark_garbage(memory, size);
    driver_state().allocations[reinterpret_cast<uintptr_t>(memory)] = {&context, size, on_host};
    return memory;
}

void release(void *memory, bool on_host) {
    current_context_even_failed();
    check_call_is_safe();
    const auto found = driver_state().allocations.find(reinterpret_cast<uintptr_t>(memory));
    if (found == driver_state().allocations.end() || found->second.on_host != on_host) {
        fail(CUDA_ERROR_INVALID_VALUE);
    }
    // Every driver waits here, although the manual does not specify it.
    context &context = *found->second.context;
    finish_all(context);
    driver_state().allocations.erase(found);
    std::free(memory);
    check_not_failed(context);
}

/// Copies pageable memory. A GPU cannot access it, so the driver waits for the stream and copies before it
/// returns.
bool is_pageable(const void *memory, size_t size) {
    return size != 0 && allocation_of(device_pointer(memory), size) == nullptr;
}

void copy(stream &stream, CUdeviceptr to, const void *from, size_t size) {
    submit(stream, [=] {
        // The memory may be freed before a replay.
        check(to, size, CUDA_ERROR_ILLEGAL_ADDRESS);
        std::memcpy(pointer_to(to), from, size);
    });
}

void copy(stream &stream, void *to, CUdeviceptr from, size_t size) {
    submit(stream, [=] {
        check(from, size, CUDA_ERROR_ILLEGAL_ADDRESS);
        std::memcpy(to, pointer_to(from), size);
    });
}

/// Fails if a capture forbids to wait for the legacy stream.
stream &legacy_stream() {
    stream &stream = stream_of(nullptr);
    check_call_is_safe();
    return stream;
}

} // namespace

CUresult cuMemAlloc_v2(CUdeviceptr *memory, size_t size) {
    return call(__func__, [&] {
        store(memory, CUdeviceptr(0));
        *memory = device_pointer(allocate(size, false));
    });
}

CUresult cuMemFree_v2(CUdeviceptr memory) {
    return call_that_releases(__func__, [&] { release(pointer_to(memory), false); });
}

CUresult cuMemHostAlloc(void **memory, size_t size, unsigned int flags) {
    return call(__func__, [&] {
        if (flags > (CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED)) {
            fail(CUDA_ERROR_INVALID_VALUE);
        }
        store<void *>(memory, nullptr);
        *memory = allocate(size, true);
    });
}

CUresult cuMemFreeHost(void *memory) {
    return call_that_releases(__func__, [&] { release(memory, true); });
}

CUresult cuMemsetD8_v2(CUdeviceptr memory, unsigned char value, size_t count) {
    return call(__func__, [&] {
        stream &stream = legacy_stream();
        check(memory, count);
        // Despite its name, it returns before the memory is set. Streams that do not wait for the legacy
        // stream may run first.
        submit(stream, [=] {
            check(memory, count, CUDA_ERROR_ILLEGAL_ADDRESS);
            std::memset(pointer_to(memory), value, count);
        });
    });
}

CUresult cuMemsetD32Async(CUdeviceptr memory, unsigned int value, size_t count, CUstream handle) {
    return call(__func__, [&] {
        stream &stream = stream_of(handle);
        if (memory % sizeof value != 0 || count > SIZE_MAX / sizeof value) {
            fail(CUDA_ERROR_INVALID_VALUE);
        }
        check(memory, count * sizeof value);
        submit(stream, [=] {
            check(memory, count * sizeof value, CUDA_ERROR_ILLEGAL_ADDRESS);
            std::fill_n(static_cast<unsigned *>(pointer_to(memory)), count, value);
        });
    });
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t size) {
    return call(__func__, [&] {
        stream &stream = legacy_stream();
        check(to, size);
        copy(stream, to, from, size);
        finish(stream);
        check_not_failed(*stream.context);
    });
}

CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t size) {
    return call(__func__, [&] {
        stream &stream = legacy_stream();
        check(from, size);
        copy(stream, to, from, size);
        finish(stream);
        check_not_failed(*stream.context);
    });
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, CUstream handle) {
    return call(__func__, [&] {
        stream &stream = stream_of(handle);
        check(to, size);
        copy(stream, to, from, size);
        if (stream.capture == nullptr && is_pageable(from, size)) {
            finish(stream.last);
            check_not_failed(*stream.context);
        }
    });
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, CUstream handle) {
    return call(__func__, [&] {
        stream &stream = stream_of(handle);
        check(from, size);
        copy(stream, to, from, size);
        if (stream.capture == nullptr && is_pageable(to, size)) {
            finish(stream.last);
            check_not_failed(*stream.context);
        }
    });
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream handle) {
    return call(__func__, [&] {
        stream &stream = stream_of(handle);
        check(to, size);
        check(from, size);
        submit(stream, [=] {
            check(to, size, CUDA_ERROR_ILLEGAL_ADDRESS);
            check(from, size, CUDA_ERROR_ILLEGAL_ADDRESS);
            std::memcpy(pointer_to(to), pointer_to(from), size);
        });
    });
}

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr memory) {
    return call(__func__, [&] {
        const auto *found = allocation_of(memory, 1);
        if (value == nullptr || found == nullptr) {
            fail(CUDA_ERROR_INVALID_VALUE);
        }
        const auto &[address, allocation] = *found;
        switch (attribute) {
        case CU_POINTER_ATTRIBUTE_CONTEXT:
            return store(static_cast<CUcontext *>(value), allocation.context->handle);
        case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
            return store(static_cast<CUmemorytype *>(value),
                         allocation.on_host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE);
        case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
            return store(static_cast<CUdeviceptr *>(value), memory);
        case CU_POINTER_ATTRIBUTE_HOST_POINTER:
            if (!allocation.on_host) {
                fail(CUDA_ERROR_INVALID_VALUE);
            }
            return store(static_cast<void **>(value), pointer_to(memory));
        case CU_POINTER_ATTRIBUTE_IS_MANAGED:
            return store(static_cast<int *>(value), 0);
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
            return store(static_cast<int *>(value), allocation.context->device);
        case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
            return store(static_cast<CUdeviceptr *>(value), CUdeviceptr(address));
        case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
            return store(static_cast<size_t *>(value), allocation.size);
        }
        fail(CUDA_ERROR_INVALID_VALUE);
    });
}
