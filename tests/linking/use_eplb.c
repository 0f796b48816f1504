#define _DEFAULT_SOURCE
#include "use_eplb.h"

#include <eplb.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int clock_is_broken;

/* Takes the place of the C library's. While it fails, Rust's standard library panics when it reads the time.
 * A plugin that is linked with libeplb.so cannot replace what that calls.
 */
#ifndef SHARED_PLUGIN
int clock_gettime(clockid_t clock, struct timespec *now) {
    return clock_is_broken ? -1 : (int)syscall(SYS_clock_gettime, clock, now);
}
static const eplb_status broken_clock_status = EPLB_STATUS_INTERNAL;
#else
static const eplb_status broken_clock_status = EPLB_STATUS_OK;
#endif

static int fails(const char *what) {
    fprintf(stderr, "%s: %s\n", what, eplb_last_error_message());
    return 1;
}

/* The library turns a panic into a status, which needs unwinding through its frames. */
static int catches_panics(void) {
    const int32_t layer = 0;
    eplb_recorder_config config = EPLB_RECORDER_CONFIG_INIT;
    config.path = "unused";
    config.iter_start = 1;
    config.iter_stop = 2;
    config.num_ranks = 1;
    config.num_experts = 8;
    config.experts_per_token = 2;
    config.layer_ids = &layer;
    config.num_layers = 1;
    eplb_recorder *recorder;
    if (eplb_recorder_create(&config, &recorder) != EPLB_STATUS_OK) {
        return fails("eplb_recorder_create");
    }
    clock_is_broken = 1;
    const eplb_status status = eplb_recorder_flush(recorder, 1000);
    clock_is_broken = 0;
    eplb_recorder_destroy(recorder);
    return status != broken_clock_status ? fails("a flush with a broken clock") : 0;
}

#ifdef SECOND_LIBRARY
uint64_t second_sum(uint64_t count);
int second_catches_panics(void);

static int use_second_library(void) {
    if (second_sum(1000) != 499500) {
        return fails("second_sum");
    }
    /* Built to abort on a panic, it catches none. */
    if (strcmp(SECOND_LIBRARY, "abort") != 0 && !second_catches_panics()) {
        return fails("second_catches_panics");
    }
    return 0;
}
#else
static int use_second_library(void) { return 0; }
#endif

int use_eplb(void) {
    if (eplb_abi_version() != EPLB_ABI_VERSION) {
        return fails("eplb_abi_version");
    }
    return catches_panics() || use_second_library() || catches_panics();
}
