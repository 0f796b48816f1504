// An exponential that the compiler can vectorise, for softmax, silu and sigmoid.
#ifndef MOE_ENGINE_EXP_H
#define MOE_ENGINE_EXP_H

#include <cmath>
#include <cstdint>
#include <cstring>

/// e^x with a relative error of 1.1e-7. x is clamped so that the result is a normal number.
inline float fast_exp(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;

    // x = n ln 2 + r with |r| <= (ln 2) / 2; ln 2 in two parts, the first of so few bits that n times it is
    // exact.
    const int32_t n = static_cast<int32_t>(x * 1.44269504f + std::copysign(0.5f, x));
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;

    // e^r by its Taylor series.
    float e = 1.0f / 5040;
    e = e * r + 1.0f / 720;
    e = e * r + 1.0f / 120;
    e = e * r + 1.0f / 24;
    e = e * r + 1.0f / 6;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;

    const int32_t bits = (n + 127) << 23; // of the float 2^n
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return e * power;
}

#endif
