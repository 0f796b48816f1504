// Runs kernels on the host, one fiber a CUDA thread, and finds them by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace emulation {

/// A fault of a kernel: threads wait at different barriers, or for a lane that never arrives.
class error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// The largest dynamic shared memory of a launch, as in CUDA without a function attribute.
constexpr size_t shared_capacity = 48 * 1024;

struct options {
    /// Seed of the order in which blocks and threads run.
    uint64_t seed = 0;
    /// One atomic in this many yields to another thread first; 0: none.
    unsigned preempt_one_in = 8;
};

/// Runs `body` once for each thread, one block at a time. Throws `error`. Launches of other threads of the
/// process wait.
void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()> &body,
            const options &options = {});

/// A kernel with a copy of its parameters. It may be launched any number of times.
using bound_kernel = std::function<void()>;

/// Takes cuLaunchKernel's parameters: the address of each argument.
using kernel = std::function<bound_kernel(void **parameters)>;

/// Returns NULL if there is no kernel of this name.
const kernel *find(const std::string &name);

/// Registers a kernel. Returns false if the name is taken.
bool add(const std::string &name, kernel kernel);

template <class... Args, size_t... I>
bound_kernel bind_parameters(void (*function)(Args...), void **parameters, std::index_sequence<I...>) {
    std::tuple<std::remove_const_t<Args>...> copies(*static_cast<Args *>(parameters[I])...);
    return [=] { std::apply(function, copies); };
}

template <class... Args> bool add(const std::string &name, void (*function)(Args...)) {
    return add(name, [=](void **parameters) {
        return bind_parameters(function, parameters, std::index_sequence_for<Args...>());
    });
}

} // namespace emulation
