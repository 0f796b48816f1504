#ifndef MOE_ENGINE_TIMER_H
#define MOE_ENGINE_TIMER_H

#include <chrono>

/// Adds its lifetime to a sum. The share of eplb's calls is reported, and must stay below 1 %.
class timer {
  public:
    explicit timer(double &sum) : sum_(sum) {}
    ~timer() { sum_ += std::chrono::duration<double>(clock::now() - start_).count(); }
    timer(const timer &) = delete;
    timer &operator=(const timer &) = delete;

  private:
    using clock = std::chrono::steady_clock;
    double &sum_;
    clock::time_point start_ = clock::now();
};

#endif
