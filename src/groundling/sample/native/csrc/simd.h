// Vectors of LANES floats, as wide as the target processor's registers: AVX-512, AVX2, NEON, or four lanes of generic
// vector code (SSE2 on x86-64).
//
// All multiply-adds go through `fma`, and -ffp-contract=off keeps the compiler from contracting others: whether a sum
// is rounded once or twice must not depend on the surrounding loop.

#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

#define ALWAYS_INLINE inline __attribute__((always_inline))  // propagates sizes known to the caller

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

constexpr int64_t round_up(int64_t n) { return (n + LANES - 1) / LANES * LANES; }  // to whole vectors

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));
typedef uint32_t UintVec __attribute__((vector_size(4 * LANES)));
typedef uint16_t BFloat16;  // the upper half of a float32

inline Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
// The first n elements. `load_partial` sets the others to 0, `store_partial` leaves them unchanged.
ALWAYS_INLINE Vec load_partial(const float* p, int64_t n) {
    if (n == LANES) return load(p);
    Vec v{};
    std::memcpy(&v, p, n * sizeof(float));
    return v;
}
ALWAYS_INLINE void store_partial(float* p, Vec v, int64_t n) {
    if (n == LANES) return store(p, v);
    std::memcpy(p, &v, n * sizeof(float));
}
inline Vec broadcast(float x) { return x - Vec{}; }  // not x + 0, which turns -0 into 0

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) {
    const uint32_t bits = uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline void assign(float& to, float x) { to = x; }
inline void assign(BFloat16& to, float x) {  // round to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    to = x == x ? BFloat16((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : BFloat16(0x7fc0);
}

// a * b + c, rounded once if the processor has fused multiply-add.
ALWAYS_INLINE float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

#if defined(__AVX512F__)

ALWAYS_INLINE Vec fma(Vec a, Vec b, Vec c) { return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }

inline Vec load(const BFloat16* p) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
}

// LANES int8 values as floats.
inline Vec widen_int8(const int8_t* p) {
    return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

// The sum of each of LANES vectors. Halves are added until four elements are left, then (0 + 1) + (2 + 3).
inline Vec horizontal_sums(const Vec (&rows)[LANES]) {
    __m512 halves[8], quarters[4], pairs[2];  // a quarter: four elements of rows i, i + 4, i + 8, i + 12
    for (int i = 0; i < 8; i++) {
        const __m512 a = (__m512)rows[i % 4 + i / 4 * 8], b = (__m512)rows[i % 4 + i / 4 * 8 + 4];
        halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    for (int i = 0; i < 4; i++) {
        const __m512 a = halves[i], b = halves[i + 4];
        quarters[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    for (int i = 0; i < 2; i++) {
        const __m512 a = quarters[2 * i], b = quarters[2 * i + 1];
        pairs[i] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
    }
    const __m512 a = pairs[0], b = pairs[1];
    return (Vec)_mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}

#elif defined(__AVX2__)

ALWAYS_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__FMA__)
    return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

inline Vec load(const BFloat16* p) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16);
}

inline Vec widen_int8(const int8_t* p) {
    return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

inline Vec horizontal_sums(const Vec (&rows)[LANES]) {
    __m256 halves[4];  // four elements of rows i and i + 4
    for (int i = 0; i < 4; i++) {
        const __m256 a = (__m256)rows[i], b = (__m256)rows[i + 4];
        halves[i] = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    }
    const __m256 left = _mm256_hadd_ps(halves[0], halves[1]), right = _mm256_hadd_ps(halves[2], halves[3]);
    return (Vec)_mm256_hadd_ps(left, right);
}

#elif defined(__aarch64__)

ALWAYS_INLINE Vec fma(Vec a, Vec b, Vec c) { return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }

inline Vec load(const BFloat16* p) { return (Vec)vshll_n_u16(vld1_u16(p), 16); }

inline Vec widen_int8(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, sizeof four);
    const int16x8_t halves = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return (Vec)vcvtq_f32_s32(vmovl_s16(vget_low_s16(halves)));
}

inline Vec horizontal_sums(const Vec (&rows)[LANES]) {
    const float32x4_t left = vpaddq_f32((float32x4_t)rows[0], (float32x4_t)rows[1]);
    const float32x4_t right = vpaddq_f32((float32x4_t)rows[2], (float32x4_t)rows[3]);
    return (Vec)vpaddq_f32(left, right);
}

#else

ALWAYS_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }

#if defined(__x86_64__)

inline Vec load(const BFloat16* p) {
    const __m128i halves = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return (Vec)_mm_unpacklo_epi16(_mm_setzero_si128(), halves);
}

inline Vec widen_int8(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, sizeof four);
    const __m128i bytes = _mm_cvtsi32_si128(four), pairs = _mm_unpacklo_epi8(bytes, bytes);
    return (Vec)_mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(pairs, pairs), 24));
}

#else

inline Vec load(const BFloat16* p) { return Vec{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}; }

inline Vec widen_int8(const int8_t* p) { return Vec{float(p[0]), float(p[1]), float(p[2]), float(p[3])}; }

#endif

inline Vec horizontal_sums(const Vec (&rows)[LANES]) {
    Vec column[LANES];
    for (int i = 0; i < LANES; i++) column[i] = Vec{rows[0][i], rows[1][i], rows[2][i], rows[3][i]};
    return (column[0] + column[1]) + (column[2] + column[3]);
}

#endif

// The sum of one vector, in the order of `horizontal_sums`.
inline float horizontal_sum(Vec v) {
    float x[LANES];
    store(x, v);
    for (int n = LANES / 2; n >= 4; n /= 2)
        for (int i = 0; i < n; i++) x[i] += x[i + n];
    return (x[0] + x[1]) + (x[2] + x[3]);
}

}  // namespace
