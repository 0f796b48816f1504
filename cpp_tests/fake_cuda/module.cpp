// Modules and kernels. The kernels are those of the emulator, whatever the image contains.
#include <cctype>
#include <cstdio>
#include <cstring>

#include "state.h"

using namespace fake_cuda;

namespace {

void check_image(const void *image) {
    const char *text = static_cast<const char *>(image);
    if (std::strncmp(text, "\x50\xed\x55\xba", 4) == 0) { // A fatbin's 0xba55ed50.
        if (driver_state().fatbins != CUDA_SUCCESS) {
            fail(driver_state().fatbins);
        }
        return;
    }
    const auto first = static_cast<unsigned char>(*text);
    if (!std::isprint(first) && !std::isspace(first)) {
        fail(CUDA_ERROR_INVALID_IMAGE);
    }
    const char *version = std::strstr(text, ".version ");
    std::pair<int, int> ptx;
    if (version == nullptr || std::sscanf(version, ".version %d.%d", &ptx.first, &ptx.second) != 2) {
        fail(CUDA_ERROR_INVALID_IMAGE);
    }
    if (ptx > driver_state().newest_ptx) {
        fail(CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    }
}

int attribute_of_function(CUfunction_attribute attribute) {
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        return 1024;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
        return 0;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
        return 32;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
        return 90;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        return int(emulation::shared_capacity);
    }
    fail(CUDA_ERROR_INVALID_VALUE);
}

} // namespace

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    return call(__func__, [&] {
        context &context = current_context();
        check_call_is_safe();
        if (image == nullptr) {
            fail(CUDA_ERROR_INVALID_VALUE);
        }
        store(module, CUmodule(nullptr));
        check_image(image);
        *module =
            driver_state().modules.add(std::make_shared<fake_cuda::module>(fake_cuda::module{&context}));
    });
}

CUresult cuModuleUnload(CUmodule handle) {
    return call_that_releases(__func__, [&] {
        const context &current = current_context_even_failed();
        check_call_is_safe();
        const auto dying = driver_state().modules.get(handle);
        if (dying->context != &current) {
            fail(CUDA_ERROR_INVALID_CONTEXT);
        }
        driver_state().functions.erase_if([&](const function &function) { return function.module == dying; });
        driver_state().modules.erase(handle);
        check_not_failed(current);
    });
}

CUresult cuModuleGetFunction(CUfunction *handle, CUmodule module_handle, const char *name) {
    return call(__func__, [&] {
        context &context = current_context();
        const auto &module = driver_state().modules.get(module_handle);
        if (name == nullptr) {
            fail(CUDA_ERROR_INVALID_VALUE);
        }
        store(handle, CUfunction(nullptr));
        if (module->context != &context) {
            fail(CUDA_ERROR_INVALID_CONTEXT);
        }
        const emulation::kernel *kernel = emulation::find(name);
        if (kernel == nullptr) {
            fail(CUDA_ERROR_NOT_FOUND);
        }
        *handle = driver_state().functions.add(
            std::make_shared<function>(function{&context, module, name, kernel}));
    });
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    return call(__func__, [&] {
        current_context();
        driver_state().functions.get(function);
        store(value, attribute_of_function(attribute));
    });
}

CUresult cuLaunchKernel(CUfunction function_handle, unsigned int grid_x, unsigned int grid_y,
                        unsigned int grid_z, unsigned int block_x, unsigned int block_y, unsigned int block_z,
                        unsigned int shared_bytes, CUstream stream_handle, void **parameters, void **extra) {
    return call(__func__, [&] {
        const context &context = current_context();
        const function &function = *driver_state().functions.get(function_handle);
        stream &stream = stream_of(stream_handle);
        if (function.context != &context || stream.context != &context) {
            fail(CUDA_ERROR_INVALID_HANDLE);
        }
        const dim3 grid = {grid_x, grid_y, grid_z};
        const dim3 block = {block_x, block_y, block_z};
        const uint64_t threads = uint64_t(block_x) * block_y * block_z;
        if (grid_x == 0 || grid_x > 0x7fffffff || grid_y == 0 || grid_y > 0xffff || grid_z == 0 ||
            grid_z > 0xffff || threads == 0 || threads > 1024 || block_z > 64 ||
            shared_bytes > emulation::shared_capacity || parameters == nullptr || extra != nullptr) {
            fail(CUDA_ERROR_INVALID_VALUE);
        }
        submit(stream, [=, name = function.name, kernel = (*function.kernel)(parameters),
                        module = std::weak_ptr(function.module)] {
            try {
                if (module.expired()) {
                    throw emulation::error("its module was unloaded before it ran");
                }
                emulation::launch(grid, block, shared_bytes, kernel, {driver_state().random()});
            } catch (const emulation::error &error) {
                throw emulation::error(name + ": " + error.what());
            }
        });
    });
}
