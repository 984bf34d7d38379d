// Vectors of 16 floats: the arithmetic that decode.cpp is made of. GCC and Clang turn them into what the CPU has.
//
// Weights are packed in panels of 16 outputs: for each input the 16 weights side by side (bfloat16: for each pair of
// inputs 16 pairs). So one instruction serves 16 outputs. TILE_PANELS panels at a time are woven together, input by
// input, and what panels are left follow one by one: so memory is read in order.

#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#define INLINED inline __attribute__((always_inline))  // so that a size that the caller knows is known here

constexpr int LANES = 16;
typedef float Vec __attribute__((vector_size(64)));
typedef float Vec8 __attribute__((vector_size(32)));
typedef float Vec4 __attribute__((vector_size(16)));
typedef int32_t IntVec __attribute__((vector_size(64)));
typedef uint32_t UintVec __attribute__((vector_size(64)));

inline Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Vec all(float x) { return Vec{} + x; }

inline float sum_of(Vec v) {
    union { Vec whole; Vec8 half[2]; } a = {v};
    union { Vec8 whole; Vec4 half[2]; } b = {a.half[0] + a.half[1]};
    const Vec4 c = b.half[0] + b.half[1];
    return (c[0] + c[1]) + (c[2] + c[3]);
}

// bfloat16, as the cache may keep keys and values: the upper half of a float.
typedef uint16_t Half;
inline float value_of(float x) { return x; }
inline float value_of(Half x) {
    const uint32_t bits = uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline Vec load(const Half* p) {
#if defined(__AVX512F__)
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
#else
    Vec v;
    for (int i = 0; i < LANES; i++) v[i] = value_of(p[i]);
    return v;
#endif
}
inline void assign(float& to, float x) { to = x; }
inline void assign(Half& to, float x) {  // to the nearest, and to the even one of two
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    to = x == x ? Half((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : Half(0x7fc0);
}

template <class T>
inline float dot(const float* a, const T* b, int64_t n) {
    Vec sums{};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums += load(a + i) * load(b + i);
    float sum = sum_of(sums);
    for (; i < n; i++) sum += a[i] * value_of(b[i]);
    return sum;
}

// The sum of each of 16 vectors, added up in the order of `sum_of`.
inline Vec sums_of(const Vec (&of)[LANES]) {
#if defined(__AVX512F__)
    __m512 halves[8], quarters[4], pairs[2];  // a quarter holds four of each of four vectors: i, i + 4, i + 8, i + 12
    for (int i = 0; i < 8; i++) {
        const __m512 a = (__m512)of[i % 4 + i / 4 * 8], b = (__m512)of[i % 4 + i / 4 * 8 + 4];
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
#else
    Vec sums;
    for (int i = 0; i < LANES; i++) sums[i] = sum_of(of[i]);
    return sums;
#endif
}

// The products of `a` with 16 rows that follow each other.
template <class T>
INLINED Vec dots(const float* a, const T* rows, int64_t n) {
    Vec sums[LANES];
    for (int r = 0; r < LANES; r++) {
        Vec sum{};
        for (int64_t i = 0; i + LANES <= n; i += LANES) sum += load(a + i) * load(rows + r * n + i);
        sums[r] = sum;
    }
    Vec all = sums_of(sums);
    for (int64_t i = n / LANES * LANES; i < n; i++)
        for (int r = 0; r < LANES; r++) all[r] += a[i] * value_of(rows[r * n + i]);
    return all;
}

inline float sum(const float* a, int64_t n) {
    Vec sums{};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums += load(a + i);
    float total = sum_of(sums);
    for (; i < n; i++) total += a[i];
    return total;
}

// exp: a power of two times a polynomial (the coefficients are Cephes'), right to about 1e-7, never infinite.
// What is not a number stays none.
inline Vec exp_of(Vec x) {
    x = x < -87.0f ? all(-87.0f) : x;
    x = x > 88.0f ? all(88.0f) : x;
    const Vec rounding = all(12582912.0f);  // 1.5 * 2^23: no room is left for a fraction
    const Vec n = (x * 1.44269504f + rounding) - rounding;
    const Vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    Vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (Vec)((__builtin_convertvector(n, IntVec) + 127) << 23);
}

// Sixteen int8 as floats.
inline Vec widen(const int8_t* p) {
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
    Vec v;
    for (int i = 0; i < LANES; i++) v[i] = float(p[i]);
    return v;
#endif
}

// The i-th number of some bytes.
template <class T>
inline T read(const char* bytes, int64_t i) {
    T number;
    std::memcpy(&number, bytes + i * sizeof number, sizeof number);
    return number;
}

// A precision says how the 16 weights (or pairs) of a panel's input (or pair) k are read, and multiplied with a row's.
struct Float32 {
    typedef Vec Weights;
    static constexpr bool rounds_inputs = false;
    static int64_t steps(int64_t n_in) { return n_in; }
    static int64_t panel_bytes(int64_t n_in) { return n_in * LANES * 4; }
    static Weights weights(const char* panel, int64_t k) {
        return load(reinterpret_cast<const float*>(panel) + k * LANES);
    }
    static void add(Vec& sum, Weights w, const char* inputs, int64_t k) {
        sum += w * read<float>(inputs, k);
    }
};

struct Int8 : Float32 {
    static int64_t panel_bytes(int64_t n_in) { return n_in * LANES; }
    static Weights weights(const char* panel, int64_t k) {
        return widen(reinterpret_cast<const int8_t*>(panel) + k * LANES);
    }
};

struct Bfloat16 {
    typedef UintVec Weights;
    static int64_t steps(int64_t n_in) { return (n_in + 1) / 2; }
    static int64_t panel_bytes(int64_t n_in) { return steps(n_in) * LANES * 4; }
    static Weights weights(const char* panel, int64_t k) {
        Weights pairs;
        std::memcpy(&pairs, panel + k * sizeof pairs, sizeof pairs);
        return pairs;
    }
    static constexpr bool rounds_inputs = false;
    static void add(Vec& sum, Weights w, const char* inputs, int64_t k) {
        const UintVec first = w << 16, second = w & 0xffff0000u;
        sum += (Vec)first * read<float>(inputs, 2 * k);
        sum += (Vec)second * read<float>(inputs, 2 * k + 1);
    }
};

#if defined(__AVX512BF16__)
// Two products in one instruction, whose inputs are rounded too.
struct Bfloat16Pairs : Bfloat16 {
    static constexpr bool rounds_inputs = true;
    static void add(Vec& sum, Weights w, const char* inputs, int64_t k) {
        const __m512i pair = _mm512_set1_epi32(read<int32_t>(inputs, k));
        sum = (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512i)w, (__m512bh)pair);
    }
};
#endif

// A tile's sums are kept in registers: rows of inputs times panels of weights.
#if defined(__AVX512F__)
constexpr int TILE_ROWS = 8, TILE_PANELS = 3;
#else
constexpr int TILE_ROWS = 2, TILE_PANELS = 2;
#endif
constexpr int64_t LINE = 64;  // bytes that memory is read in

// What will be needed next, and how many bytes of it are to be asked for in each step of a tile's loop. The processor
// itself looks ahead only as far as memory is read in order, and reads nothing while the same weights meet more rows.
struct Ahead {
    const char* from;
    int64_t rate;
};

// The products of ROWS rows of inputs with PANELS panels of weights; `sums` has a line of TILE_PANELS for each row.
// Only whole tiles ask ahead: smaller ones wait for the memory in any case.
template <class P, int ROWS, int PANELS>
void tile(Vec* sums, const char* panel, const char* inputs, int64_t row_bytes, int64_t n_in, Ahead ahead) {
    Vec kept[ROWS][PANELS] = {};
    const char* wanted = ahead.from;
    for (int64_t k = 0, steps = P::steps(n_in); k < steps; k++) {
        if constexpr (ROWS == TILE_ROWS) {
            wanted += ahead.rate;
            for (; ahead.from < wanted; ahead.from += LINE) __builtin_prefetch(ahead.from, 0, 2);
        }
        typename P::Weights w[PANELS];
        for (int p = 0; p < PANELS; p++) w[p] = P::weights(panel, k * PANELS + p);
        for (int r = 0; r < ROWS; r++)
            for (int p = 0; p < PANELS; p++) P::add(kept[r][p], w[p], inputs + r * row_bytes, k);
    }
    for (int r = 0; r < ROWS; r++)
        for (int p = 0; p < PANELS; p++) sums[r * TILE_PANELS + p] = kept[r][p];
}

// A precision's tiles: [rows - 1], of one panel or of TILE_PANELS.
typedef void (*Tile)(Vec* sums, const char* panel, const char* inputs, int64_t row_bytes, int64_t n_in, Ahead ahead);
struct Tiles {
    Tile one[TILE_ROWS], all[TILE_ROWS];
    int64_t (*panel_bytes)(int64_t n_in);
    int64_t (*steps)(int64_t n_in);
    bool rounds_inputs;
};

template <class P, int... ROWS>
Tiles tiles_of(std::integer_sequence<int, ROWS...>) {
    return {{tile<P, ROWS + 1, 1>...}, {tile<P, ROWS + 1, TILE_PANELS>...}, P::panel_bytes, P::steps, P::rounds_inputs};
}
template <class P>
Tiles tiles_of() {
    return tiles_of<P>(std::make_integer_sequence<int, TILE_ROWS>{});
}

}  // namespace
