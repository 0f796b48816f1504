// What AddressSanitizer and valgrind must be told about fibers and about memory that is not to be touched.
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

/// Around each switch: `fake_stack` belongs to what is left, NULL if for good; the other two say where it
/// goes.
inline void before_switch([[maybe_unused]] void **fake_stack, [[maybe_unused]] const void *bottom,
                          [[maybe_unused]] size_t size) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(fake_stack, bottom, size);
#endif
}

/// `fake_stack` belongs to what is entered, NULL the first time; the other two receive where it came from.
inline void after_switch([[maybe_unused]] void *fake_stack, [[maybe_unused]] const void **bottom,
                         [[maybe_unused]] size_t *size) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_stack, bottom, size);
#endif
}

inline void forbid([[maybe_unused]] void *memory, [[maybe_unused]] size_t size) {
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(memory, size);
#endif
    EMULATION_VALGRIND((void)VALGRIND_MAKE_MEM_NOACCESS(memory, size));
}

inline void allow([[maybe_unused]] void *memory, [[maybe_unused]] size_t size) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(memory, size);
#endif
    EMULATION_VALGRIND((void)VALGRIND_MAKE_MEM_DEFINED(memory, size));
}

/// Not to be relied on until written.
inline void mark_garbage([[maybe_unused]] void *memory, [[maybe_unused]] size_t size) {
    EMULATION_VALGRIND((void)VALGRIND_MAKE_MEM_UNDEFINED(memory, size));
}

} // namespace emulation
