// What the tests on a CUDA device share.
#ifndef EPLB_TESTS_CUDA_FIXTURE_H
#define EPLB_TESTS_CUDA_FIXTURE_H

#include <gtest/gtest.h>

#include <eplb_tools.hpp>

#include "engine.h"
#include "files.h"

/// Three iterations of two layers on device 0.
inline eplb::recorder_config a_config(const std::string &path) {
    eplb::recorder_config config;
    config.path = path;
    config.iter_stop = 3;
    config.num_ranks = 1;
    config.num_experts = 64;
    config.experts_per_token = 4;
    config.layer_ids = {0, 1};
    config.device = 0;
    return config;
}

inline CUcontext current_context() {
    CUcontext context = nullptr;
    engine::check(engine::get().driver().cuCtxGetCurrent(&context), "cuCtxGetCurrent");
    return context;
}

/// Returns the thread's capture mode, unchanged.
inline CUstreamCaptureMode capture_mode() {
    const cuda_driver &driver = engine::get().driver();
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL, was = mode;
    engine::check(driver.cuThreadExchangeStreamCaptureMode(&was), "cuThreadExchangeStreamCaptureMode");
    mode = was;
    engine::check(driver.cuThreadExchangeStreamCaptureMode(&mode), "cuThreadExchangeStreamCaptureMode");
    return was;
}

/// The message of `call`, which must fail with this status.
inline std::string message_of(const std::function<void()> &call, eplb_status expected) {
    try {
        call();
    } catch (const eplb::error &error) {
        EXPECT_EQ(error.status(), expected) << error.what();
        return error.what();
    }
    ADD_FAILURE() << "it succeeded";
    return "";
}

/// One token on the device that chose experts 5 (twice), 6 and 7.
class chosen_ids : public engine_array<int32_t> {
  public:
    explicit chosen_ids(CUstream stream) : engine_array(4) {
        static const std::vector<int32_t> values = {5, 6, 7, 5};
        upload(values, stream);
        engine::check(engine::get().driver().cuStreamSynchronize(stream), "cuStreamSynchronize");
    }
};

class Cuda : public testing::Test {
  protected:
    void SetUp() override {
        if (!engine::get().is_cuda()) {
            GTEST_SKIP() << "EPLB_TEST_DEVICE is not cuda";
        }
    }
};

#endif
