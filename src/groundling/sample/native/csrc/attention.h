// Attention of one query to S positions, part by part: scores, weights, and the weighted sum of the values.
//
// What is added up, and in which order, does not depend on the parts.

#pragma once
#include <algorithm>
#include "vectors.h"

namespace {

constexpr int MIXED = LANES == 16 ? 4 : 8;  // vectors of a weighted sum at once, in registers

// The scores of the positions from `first`, a multiple of LANES, to `end`.
template <class T>
INLINED void score(const float* q, const T* keys, int64_t D, int64_t first, int64_t end, float* scores) {
    const float scale = 1.0f / std::sqrt(float(D));
    int64_t s = first;
    for (; s + LANES <= end; s += LANES) store(&scores[s], dots(q, keys + s * D, D) * scale);
    for (; s < end; s++) scores[s] = dot(q, keys + s * D, D) * scale;
}

// Turn S scores into weights, not yet divided by their sum, which is returned.
inline float weigh(float* scores, int64_t S) {
    std::fill(scores + S, scores + whole(S), -INFINITY);
    Vec most = load(scores), sums{};
    for (int64_t s = LANES; s < S; s += LANES) most = load(&scores[s]) < most ? most : load(&scores[s]);
    float best = most[0];
    for (int i = 1; i < LANES; i++) best = most[i] < best ? best : most[i];
    for (int64_t s = 0; s < S; s += LANES) {
        const Vec weights = exp_of(load(&scores[s]) - best);  // 1e-38 where there is no score
        store(&scores[s], weights);
        sums += weights;
    }
    return sum_of(sums);
}

// The weighted sum of the values from `first` to `end`, added to that of those before, and then times `factor`.
template <class T>
INLINED void mix(
    const T* values, int64_t D, int64_t first, int64_t end, const float* scores, float factor, float* y) {
    int64_t d = 0;
    for (; d + MIXED * LANES <= D; d += MIXED * LANES) {
        Vec sums[MIXED] = {};
        for (int i = 0; i < MIXED && first; i++) sums[i] = load(y + d + i * LANES);
        for (int64_t s = first; s < end; s++)
            for (int i = 0; i < MIXED; i++)
                sums[i] = fma(load(values + s * D + d + i * LANES), all(scores[s]), sums[i]);
        for (int i = 0; i < MIXED; i++) store(y + d + i * LANES, sums[i] * factor);
    }
    for (; d + LANES <= D; d += LANES) {
        Vec sums = first ? load(y + d) : Vec{};
        for (int64_t s = first; s < end; s++) sums = fma(load(values + s * D + d), all(scores[s]), sums);
        store(y + d, sums * factor);
    }
    for (; d < D; d++) {
        float sum = first ? y[d] : 0.0f;
        for (int64_t s = first; s < end; s++) sum = fma(value_of(values[s * D + d]), scores[s], sum);
        y[d] = sum * factor;
    }
}

}  // namespace
