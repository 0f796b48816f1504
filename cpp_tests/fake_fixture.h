// What the tests that control fake_cuda share. They are skipped on a genuine driver.
#ifndef EPLB_TESTS_FAKE_FIXTURE_H
#define EPLB_TESTS_FAKE_FIXTURE_H

#include <set>

#include "cuda_fixture.h"

inline const fake_cuda_controls &fake() { return *engine::get().fake(); }

class FakeCuda : public Cuda {
  protected:
    void SetUp() override {
        Cuda::SetUp();
        if (!IsSkipped() && engine::get().fake() == nullptr) {
            GTEST_SKIP() << "the driver is a genuine one";
        }
    }
};

/// The driver's functions that this thread calls in `work`, in order.
inline std::vector<std::string> call_log(const std::function<void()> &work) {
    fake().fake_cuda_log_clear();
    work();
    std::vector<const char *> names(1000);
    names.resize(fake().fake_cuda_log(names.data(), names.size()));
    return {names.begin(), names.end()};
}

/// Each function of them once.
inline std::set<std::string> calls_of(const std::function<void()> &work) {
    const auto calls = call_log(work);
    return {calls.begin(), calls.end()};
}

/// Makes the n-th driver call of eplb fail, without regard to calls of the test itself.
class fault {
  public:
    explicit fault(size_t n) : left_(n) {}

    eplb_status call(const std::function<eplb_status()> &call) {
        const size_t before = fake().fake_cuda_calls();
        fake().fake_cuda_fail_call(left_, CUDA_ERROR_UNKNOWN);
        const eplb_status status = call();
        if (left_ != 0) {
            fired_ = fired_ || fake().fake_cuda_fault_fired() != 0;
            const size_t made = fake().fake_cuda_calls() - before;
            left_ = fired_ || made >= left_ ? 0 : left_ - made;
        }
        fake().fake_cuda_fail_call(0, 0);
        EXPECT_STRNE(eplb_status_string(status), "unknown status");
        EXPECT_NE(status, EPLB_STATUS_INTERNAL) << eplb_last_error_message();
        if (status == EPLB_STATUS_CUDA) {
            EXPECT_NE(std::string(eplb_last_error_message()).find("CUDA error 999, CUDA_ERROR_UNKNOWN"),
                      std::string::npos)
                << eplb_last_error_message();
        }
        failed_ = failed_ || status != EPLB_STATUS_OK;
        return status;
    }

    bool fired() const { return fired_; }
    bool failed() const { return failed_; }

  private:
    size_t left_;
    bool fired_ = false, failed_ = false;
};

#endif
