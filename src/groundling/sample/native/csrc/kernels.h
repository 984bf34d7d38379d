// Row kernels: dot products, sums, exp, activations and norms, in vectors of LANES floats (simd.h).

#pragma once
#include "abi.h"
#include "simd.h"

namespace {

template <class T>
inline float dot(const float* a, const T* b, int64_t n) {
    Vec sums{};
    for (int64_t i = 0; i + LANES <= n; i += LANES) sums = fma(load(a + i), load(b + i), sums);
    float sum = horizontal_sum(sums);
    for (int64_t i = n / LANES * LANES; i < n; i++) sum = fma(a[i], to_float(b[i]), sum);
    return sum;
}

// Dot products of `a` with LANES consecutive rows; each has the bits of `dot`.
template <class T>
ALWAYS_INLINE Vec dot_rows(const float* a, const T* rows, int64_t n) {
    Vec sums[LANES];
    for (int r = 0; r < LANES; r++) {
        Vec sum{};
        for (int64_t i = 0; i + LANES <= n; i += LANES) sum = fma(load(a + i), load(rows + r * n + i), sum);
        sums[r] = sum;
    }
    Vec dots = horizontal_sums(sums);
    for (int64_t i = n / LANES * LANES; i < n; i++)
        for (int r = 0; r < LANES; r++) dots[r] = fma(a[i], to_float(rows[r * n + i]), dots[r]);
    return dots;
}

inline float sum(const float* a, int64_t n) {
    Vec sums{};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums += load(a + i);
    float total = horizontal_sum(sums);
    for (; i < n; i++) total += a[i];
    return total;
}

// exp as a power of two times a polynomial (coefficients from Cephes): relative error about 1e-7, input clamped to
// [-87, 88], NaN stays NaN.
inline Vec vector_exp(Vec x) {
    x = x < -87.0f ? broadcast(-87.0f) : x;
    x = x > 88.0f ? broadcast(88.0f) : x;
    const Vec rounding = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Vec n = fma(x, broadcast(1.44269504f), rounding) - rounding;
    const Vec r = fma(n, broadcast(2.12194440e-4f), fma(n, broadcast(-0.693359375f), x));
    Vec p = broadcast(1.9875691500e-4f);
    p = fma(p, r, broadcast(1.3981999507e-3f));
    p = fma(p, r, broadcast(8.3334519073e-3f));
    p = fma(p, r, broadcast(4.1665795894e-2f));
    p = fma(p, r, broadcast(1.6666665459e-1f));
    p = fma(p, r, broadcast(5.0000001201e-1f));
    p = fma(p * r, r, r + 1.0f);
    return p * (Vec)((__builtin_convertvector(n, IntVec) + 127) << 23);
}

[[maybe_unused]] Vec activate(Vec x, int64_t kind) {
    const Vec positive = x < 0.0f ? Vec{} : x;
    switch (kind) {
        case RELU: return positive;
        case RELU2: return positive * positive;
        case GELU: return x - x / (1.0f + vector_exp(1.595769122f * (x + 0.044715f * x * x * x)));  // tanh form
        default: return x / (1.0f + vector_exp(-x));  // SiLU
    }
}

[[maybe_unused]] void normalize(
    const float* x, float* y, NormWeights norm, int64_t kind, float eps, int64_t n) {
    const float mean = kind == LAYERNORM ? sum(x, n) / float(n) : 0.0f;
    for (int64_t i = 0; i < n; i++) y[i] = x[i] - mean;
    const float factor = 1.0f / std::sqrt(dot(y, y, n) / float(n) + eps);
    for (int64_t i = 0; i < n; i++) y[i] = y[i] * factor * norm.weight[i];
    if (norm.bias)
        for (int64_t i = 0; i < n; i++) y[i] += norm.bias[i];
}

}  // namespace
