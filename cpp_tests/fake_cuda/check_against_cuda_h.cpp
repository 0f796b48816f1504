// Checks cuda_driver.h against NVIDIA's cuda.h, if that is installed. Both declare the functions by their
// exported names, which in cuda.h requires its older declarations.
#include <type_traits>

#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>

#include "cuda_driver.h"

static_assert(std::is_same_v<CUdevice, int> && std::is_same_v<CUdeviceptr, unsigned long long>);

#define CHECK(type, pointee) static_assert(std::is_same_v<type, pointee *>);
CUDA_HANDLES(CHECK)
#undef CHECK

#define CHECK_VALUE(name, value) static_assert(name == value, #name);
#define CHECK(type, constants)                                                                               \
    static_assert(std::is_same_v<std::underlying_type_t<type>, unsigned>);                                   \
    constants(CHECK_VALUE)
CUDA_ENUMERATIONS(CHECK)
#undef CHECK
#undef CHECK_VALUE

static_assert(CU_MEMHOSTALLOC_PORTABLE == 1 && CU_MEMHOSTALLOC_DEVICEMAP == 2 &&
              CU_MEMHOSTALLOC_WRITECOMBINED == 4);

#define CHECK(name, parameters)                                                                              \
    static_assert(std::is_same_v<decltype(&::name), CUresult(*) parameters>, #name);
CUDA_FUNCTIONS(CHECK)
#undef CHECK
