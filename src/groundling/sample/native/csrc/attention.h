// Attention of one query over S positions, in blocks: scores, softmax, weighted sum of the values.
//
// The order of summation does not depend on the blocks.

#pragma once
#include <algorithm>
#include "kernels.h"

namespace {

constexpr int ACCUMULATORS = LANES == 16 ? 4 : 8;  // vectors of a weighted sum kept in registers

// Scores of positions `first` (a multiple of LANES) to `end`.
template <class T>
ALWAYS_INLINE void attention_scores(
    const float* q, const T* keys, int64_t D, int64_t first, int64_t end, float* scores) {
    const float scale = 1.0f / std::sqrt(float(D));
    int64_t s = first;
    for (; s + LANES <= end; s += LANES) store(&scores[s], dot_rows(q, keys + s * D, D) * scale);
    for (; s < end; s++) scores[s] = dot(q, keys + s * D, D) * scale;
}

// Exponentiates S scores in place and returns their sum; the caller divides by it.
inline float softmax_row(float* scores, int64_t S) {
    std::fill(scores + S, scores + round_up(S), -INFINITY);
    Vec maxima = load(scores), sums{};
    for (int64_t s = LANES; s < S; s += LANES) maxima = load(&scores[s]) < maxima ? maxima : load(&scores[s]);
    float largest = maxima[0];
    for (int i = 1; i < LANES; i++) largest = maxima[i] < largest ? largest : maxima[i];
    for (int64_t s = 0; s < S; s += LANES) {
        const Vec weights = vector_exp(load(&scores[s]) - largest);  // 1e-38 in the padding
        store(&scores[s], weights);
        sums += weights;
    }
    return horizontal_sum(sums);
}

// Adds the weighted sum of the values `first` to `end` to y (if first > 0), then multiplies y by `factor`.
template <class T>
ALWAYS_INLINE void weighted_sum(
    const T* values, int64_t D, int64_t first, int64_t end, const float* weights, float factor, float* y) {
    int64_t d = 0;
    for (; d + ACCUMULATORS * LANES <= D; d += ACCUMULATORS * LANES) {
        Vec sums[ACCUMULATORS] = {};
        for (int i = 0; i < ACCUMULATORS && first; i++) sums[i] = load(y + d + i * LANES);
        for (int64_t s = first; s < end; s++)
            for (int i = 0; i < ACCUMULATORS; i++)
                sums[i] = fma(load(values + s * D + d + i * LANES), broadcast(weights[s]), sums[i]);
        for (int i = 0; i < ACCUMULATORS; i++) store(y + d + i * LANES, sums[i] * factor);
    }
    for (; d + LANES <= D; d += LANES) {
        Vec sums = first ? load(y + d) : Vec{};
        for (int64_t s = first; s < end; s++) sums = fma(load(values + s * D + d), broadcast(weights[s]), sums);
        store(y + d, sums * factor);
    }
    for (d = D / LANES * LANES; d < D; d++) {
        float sum = first ? y[d] : 0.0f;
        for (int64_t s = first; s < end; s++) sum = fma(to_float(values[s * D + d]), weights[s], sum);
        y[d] = sum * factor;
    }
}

}  // namespace
