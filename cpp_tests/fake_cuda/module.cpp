// Modules and kernels. Whatever an image holds, its kernels are those that the emulator knows.
#include <cctype>
#include <cstdio>
#include <cstring>

#include "state.h"

using namespace fake_cuda;

namespace {

void check_image(const void *image) {
    const char *text = static_cast<const char *>(image);
    if (std::strncmp(text, "\x50\xed\x55\xba", 4) == 0) { // A fatbin's 0xba55ed50.
        if (the().fatbins != CUDA_SUCCESS) {
            refuse(the().fatbins);
        }
        return;
    }
    const auto first = static_cast<unsigned char>(*text);
    if (!std::isprint(first) && !std::isspace(first)) {
        refuse(CUDA_ERROR_INVALID_IMAGE);
    }
    const char *version = std::strstr(text, ".version ");
    std::pair<int, int> ptx;
    if (version == nullptr || std::sscanf(version, ".version %d.%d", &ptx.first, &ptx.second) != 2) {
        refuse(CUDA_ERROR_INVALID_IMAGE);
    }
    if (ptx > the().newest_ptx) {
        refuse(CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
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
    refuse(CUDA_ERROR_INVALID_VALUE);
}

} // namespace

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    return call(__func__, [&] {
        context &context = current_context();
        refuse_unsafe_call();
        if (image == nullptr) {
            refuse(CUDA_ERROR_INVALID_VALUE);
        }
        give(module, CUmodule(nullptr));
        check_image(image);
        *module = the().modules.add(std::make_shared<fake_cuda::module>(fake_cuda::module{&context}));
    });
}

CUresult cuModuleUnload(CUmodule handle) {
    return call_that_gives_back(__func__, [&] {
        const context &current = current_context_even_failed();
        refuse_unsafe_call();
        const auto dying = the().modules.get(handle);
        if (dying->context != &current) {
            refuse(CUDA_ERROR_INVALID_CONTEXT);
        }
        the().functions.erase_if([&](const function &function) { return function.module == dying; });
        the().modules.erase(handle);
        refuse_if_failed(current);
    });
}

CUresult cuModuleGetFunction(CUfunction *handle, CUmodule module_handle, const char *name) {
    return call(__func__, [&] {
        context &context = current_context();
        const auto &module = the().modules.get(module_handle);
        if (name == nullptr) {
            refuse(CUDA_ERROR_INVALID_VALUE);
        }
        give(handle, CUfunction(nullptr));
        if (module->context != &context) {
            refuse(CUDA_ERROR_INVALID_CONTEXT);
        }
        const emulation::kernel *kernel = emulation::find(name);
        if (kernel == nullptr) {
            refuse(CUDA_ERROR_NOT_FOUND);
        }
        *handle = the().functions.add(std::make_shared<function>(function{&context, module, name, kernel}));
    });
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    return call(__func__, [&] {
        current_context();
        the().functions.get(function);
        give(value, attribute_of_function(attribute));
    });
}

CUresult cuLaunchKernel(CUfunction function_handle, unsigned int grid_x, unsigned int grid_y,
                        unsigned int grid_z, unsigned int block_x, unsigned int block_y, unsigned int block_z,
                        unsigned int shared_bytes, CUstream stream_handle, void **parameters, void **extra) {
    return call(__func__, [&] {
        const context &context = current_context();
        const function &function = *the().functions.get(function_handle);
        stream &stream = stream_of(stream_handle);
        if (function.context != &context || stream.context != &context) {
            refuse(CUDA_ERROR_INVALID_HANDLE);
        }
        const dim3 grid = {grid_x, grid_y, grid_z};
        const dim3 block = {block_x, block_y, block_z};
        const uint64_t threads = uint64_t(block_x) * block_y * block_z;
        if (grid_x == 0 || grid_x > 0x7fffffff || grid_y == 0 || grid_y > 0xffff || grid_z == 0 ||
            grid_z > 0xffff || threads == 0 || threads > 1024 || block_z > 64 ||
            shared_bytes > emulation::shared_capacity || parameters == nullptr || extra != nullptr) {
            refuse(CUDA_ERROR_INVALID_VALUE);
        }
        submit(stream, [=, name = function.name, kernel = (*function.kernel)(parameters),
                        module = std::weak_ptr(function.module)] {
            try {
                if (module.expired()) {
                    throw emulation::error("its module was unloaded before it ran");
                }
                emulation::launch(grid, block, shared_bytes, kernel, {the().random()});
            } catch (const emulation::error &error) {
                throw emulation::error(name + ": " + error.what());
            }
        });
    });
}
