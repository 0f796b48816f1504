// Informs AddressSanitizer and valgrind of switches between fibers and of inaccessible memory.
#pragma once

#include <cstddef>
#include <memory>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#define EMULATION_VALGRIND(request) request
#else
#define EMULATION_VALGRIND(request) ((void)0)
#define RUNNING_ON_VALGRIND 0
#endif

namespace emulation {

inline bool under_valgrind() { return RUNNING_ON_VALGRIND != 0; }

/// The stack of a fiber.
class fiber_stack {
  public:
    static constexpr size_t size = 64 * 1024;
    fiber_stack() : bytes(new char[size]) {
        EMULATION_VALGRIND(id = VALGRIND_STACK_REGISTER(bytes.get(), bytes.get() + size));
    }
    ~fiber_stack() { EMULATION_VALGRIND(VALGRIND_STACK_DEREGISTER(id)); }
    fiber_stack(const fiber_stack &) = delete;
    fiber_stack &operator=(const fiber_stack &) = delete;
    char *data() const { return bytes.get(); }

  private:
    std::unique_ptr<char[]> bytes;
    [[maybe_unused]] unsigned id = 0;
};

/// Call before each switch. `fake_stack` belongs to the fiber that is left, NULL if it has ended. `bottom`
/// and `size` are the stack of the fiber to enter.
inline void before_switch([[maybe_unused]] void **fake_stack, [[maybe_unused]] const void *bottom,
                          [[maybe_unused]] size_t size) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(fake_stack, bottom, size);
#endif
}

/// Call after each switch. `fake_stack` belongs to the fiber that is entered, NULL the first time. `bottom`
/// and `size` receive the stack of the fiber that was left.
inline void after_switch([[maybe_unused]] void *fake_stack, [[maybe_unused]] const void **bottom,
                         [[maybe_unused]] size_t *size) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_stack, bottom, size);
#endif
}

/// Makes any access to `memory` an error.
inline void forbid([[maybe_unused]] void *memory, [[maybe_unused]] size_t size) {
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(memory, size);
#endif
    EMULATION_VALGRIND((void)VALGRIND_MAKE_MEM_NOACCESS(memory, size));
}

/// Allows access to `memory` again.
inline void allow([[maybe_unused]] void *memory, [[maybe_unused]] size_t size) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(memory, size);
#endif
    EMULATION_VALGRIND((void)VALGRIND_MAKE_MEM_DEFINED(memory, size));
}

/// Marks `memory` as uninitialised.
inline void mark_garbage([[maybe_unused]] void *memory, [[maybe_unused]] size_t size) {
    EMULATION_VALGRIND((void)VALGRIND_MAKE_MEM_UNDEFINED(memory, size));
}

} // namespace emulation
