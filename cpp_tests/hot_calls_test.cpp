// Hot calls allocate nothing: this program's malloc counts the calls from libeplb.so, on the host and over
// fake_cuda, whose own allocations are not counted.
#include <gtest/gtest.h>

#include <cerrno>
#include <eplb_live.hpp>

#include <link.h>

#include "engine.h"
#include "files.h"

namespace {

uintptr_t library_start, library_end;
// Those of this thread: a recorder's own thread sets the files of the run before aside meanwhile.
thread_local size_t allocations;

void note(const void *caller) {
    const auto address = reinterpret_cast<uintptr_t>(caller);
    if (address >= library_start && address < library_end) {
        allocations++;
    }
}

/// Finds the addresses of libeplb.so.
void watch_library() {
    dl_iterate_phdr(
        [](dl_phdr_info *info, size_t, void *) {
            if (std::strstr(info->dlpi_name, "libeplb.so") != nullptr) {
                library_start = info->dlpi_addr;
                for (int i = 0; i < info->dlpi_phnum; i++) {
                    const auto &part = info->dlpi_phdr[i];
                    library_end =
                        std::max<uintptr_t>(library_end, info->dlpi_addr + part.p_vaddr + part.p_memsz);
                }
            }
            return 0;
        },
        nullptr);
}

size_t allocations_of(const std::function<void()> &work) {
    const size_t before = allocations;
    work();
    return allocations - before;
}

} // namespace

// glibc's own functions, for the replacements below.
extern "C" {
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *memory, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

void *malloc(size_t size) {
    note(__builtin_return_address(0));
    return __libc_malloc(size);
}
void *calloc(size_t count, size_t size) {
    note(__builtin_return_address(0));
    return __libc_calloc(count, size);
}
void *realloc(void *memory, size_t size) {
    note(__builtin_return_address(0));
    return __libc_realloc(memory, size);
}
int posix_memalign(void **memory, size_t alignment, size_t size) {
    note(__builtin_return_address(0));
    *memory = __libc_memalign(alignment, size);
    return *memory == nullptr ? ENOMEM : 0;
}
void *aligned_alloc(size_t alignment, size_t size) {
    note(__builtin_return_address(0));
    return __libc_memalign(alignment, size);
}
}

TEST(HotCalls, AllocateNothing) {
    watch_library();
    ASSERT_NE(library_end, 0u) << "libeplb.so is not loaded";
    temporary_directory dir;
    engine_stream stream;
    eplb::recorder_config config;
    config.path = dir / "dump";
    config.iter_start = 1;
    config.iter_stop = 10;
    config.num_ranks = 1;
    config.num_experts = 256;
    config.experts_per_token = 8;
    config.layer_ids = {0, 1};
    config.device = engine::get().device();
    engine_array<int32_t> ids(64 * 8);
    ids.upload(std::vector<int32_t>(64 * 8, 5), stream);
    stream.synchronize();

    eplb_recorder *handle = nullptr;
    const eplb_recorder_config c = config.c();
    EXPECT_GT(allocations_of([&] { ASSERT_EQ(eplb_recorder_create(&c, &handle), EPLB_STATUS_OK); }), 0u)
        << "allocations of create are not counted, so none would be";
    eplb::recorder recorder(handle);
    const eplb_expert_ids expert_ids = {ids.data(), EPLB_DTYPE_INT32, 0};
    recorder.register_buffer(0, ids.data(), 64, nullptr, stream);
    const auto iterate = [&] {
        for (int64_t iteration = 0; iteration < 9; iteration++) {
            EXPECT_EQ(eplb_recorder_begin_iteration(handle, iteration, stream), EPLB_STATUS_OK);
            EXPECT_EQ(eplb_recorder_count(handle, 0, 64, stream), EPLB_STATUS_OK);
            EXPECT_EQ(eplb_recorder_count_ids(handle, 1, &expert_ids, 64, nullptr, stream), EPLB_STATUS_OK);
        }
    };
    EXPECT_EQ(allocations_of(iterate), 0u);
    config.path = dir / "added";
    config.added_counts = EPLB_ADDED_COUNTS_CUMULATIVE;
    auto adding = eplb::recorder::create(config);
    engine_array<int64_t> counters(256);
    counters.upload(std::vector<int64_t>(256), stream);
    stream.synchronize();
    const auto add = [&] {
        for (int64_t iteration = 0; iteration < 3; iteration++) {
            EXPECT_EQ(eplb_recorder_begin_iteration(adding.get(), iteration, stream), EPLB_STATUS_OK);
            EXPECT_EQ(eplb_recorder_add_counts(adding.get(), 0, counters.data(), EPLB_DTYPE_INT64, stream),
                      EPLB_STATUS_OK);
        }
    };
    EXPECT_EQ(allocations_of(add), 0u);
    stream.synchronize();
    // Step 3, eager and captured.
    eplb::placement_config sizes;
    sizes.num_experts = 256;
    sizes.num_ranks = 2;
    sizes.num_slots = 258;
    std::vector<int32_t> experts(258);
    for (int32_t slot = 0; slot < 258; slot++) {
        experts[static_cast<size_t>(slot)] = slot % 256;
    }
    const std::vector<int32_t> layers = {0};
    const auto placement = eplb::placement::create(sizes, layers, experts);
    engine_array<int32_t> slots(64 * 8);
    const eplb_slot_ids slot_ids = {slots.data(), EPLB_DTYPE_INT32, 0};
    for (const eplb_rule rule :
         {EPLB_RULE_ROUND_ROBIN, EPLB_RULE_TOKEN_HASH, EPLB_RULE_NEAREST, EPLB_RULE_LEAST_LOADED}) {
        eplb::dispatch_config routing;
        routing.num_ranks = 2;
        routing.experts_per_token = 8;
        routing.rule = rule;
        routing.device = engine::get().device();
        const auto dispatch = eplb::dispatch::create(placement, routing);
        const auto route = [&] {
            EXPECT_EQ(eplb_dispatch_route(dispatch.get(), 0, &expert_ids, 64, nullptr, &slot_ids, stream),
                      EPLB_STATUS_OK);
        };
        EXPECT_EQ(allocations_of(route), 0u);
        const engine_graph captured(stream, [&] { EXPECT_EQ(allocations_of(route), 0u); });
        stream.synchronize();
        // A flip, and the route after it.
        routing.live = true;
        const auto live = eplb::dispatch::create(placement, routing);
        std::swap(experts[0], experts[130]);
        const auto plan = eplb::plan::create(placement, eplb::placement::create(sizes, layers, experts));
        std::swap(experts[0], experts[130]);
        eplb::stage_layer(live, plan, 0, stream);
        stream.synchronize();
        EXPECT_EQ(allocations_of([&] {
                      EXPECT_EQ(eplb_dispatch_commit_layer(live.get(), 0, stream), EPLB_STATUS_OK);
                      EXPECT_EQ(
                          eplb_dispatch_route(live.get(), 0, &expert_ids, 64, nullptr, &slot_ids, stream),
                          EPLB_STATUS_OK);
                  }),
                  0u);
        stream.synchronize();
    }
    // Counts of a rolling window.
    config.iter_start = config.iter_stop = 0;
    config.added_counts = 0;
    config.rolling_iterations = 2;
    auto rolling = eplb::recorder::create(config);
    engine_array<int64_t> counts(3 * 2 * 256);
    const auto roll = [&] {
        for (int64_t iteration = 0; iteration < 5; iteration++) {
            EXPECT_EQ(eplb_recorder_begin_iteration(rolling.get(), iteration, stream), EPLB_STATUS_OK);
            EXPECT_EQ(eplb_recorder_count_ids(rolling.get(), 0, &expert_ids, 64, nullptr, stream),
                      EPLB_STATUS_OK);
            if (iteration % 3 == 2) {
                EXPECT_EQ(eplb_recorder_snapshot(rolling.get(), counts.data(), 3, stream), EPLB_STATUS_OK);
            }
        }
    };
    EXPECT_EQ(allocations_of(roll), 0u);
    stream.synchronize();
    const engine_graph graph(
        stream, [&] { EXPECT_EQ(allocations_of([&] { eplb_recorder_count(handle, 0, 64, stream); }), 0u); });
    graph.replay(stream);
    recorder.dump(stream);
    recorder.flush();
    stream.synchronize();
    EXPECT_EQ(recorder.info().ids_counted, (8 * 2 + 1) * 64 * 8u);
}
