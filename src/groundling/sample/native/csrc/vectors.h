// The arithmetic that decode.cpp is made of, in vectors of LANES floats (simd.h).
//
// Weights are packed in panels of LANES outputs: for each input the LANES weights side by side (bfloat16: for each pair
// of inputs LANES pairs). So one instruction serves LANES outputs. Some panels at a time (TileOf) are woven
// together, input by input, and what panels are left follow one by one: so memory is read in order.

#pragma once
#include <utility>
#include "simd.h"

namespace {

template <class T>
inline float dot(const float* a, const T* b, int64_t n) {
    Vec sums{};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums = fma(load(a + i), load(b + i), sums);
    float sum = sum_of(sums);
    for (; i < n; i++) sum = fma(a[i], value_of(b[i]), sum);
    return sum;
}

// The products of `a` with LANES rows that follow each other.
template <class T>
INLINED Vec dots(const float* a, const T* rows, int64_t n) {
    Vec sums[LANES];
    for (int r = 0; r < LANES; r++) {
        Vec sum{};
        for (int64_t i = 0; i + LANES <= n; i += LANES) sum = fma(load(a + i), load(rows + r * n + i), sum);
        sums[r] = sum;
    }
    Vec all = sums_of(sums);
    for (int64_t i = n / LANES * LANES; i < n; i++)
        for (int r = 0; r < LANES; r++) all[r] = fma(a[i], value_of(rows[r * n + i]), all[r]);
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
    const Vec n = fma(x, all(1.44269504f), rounding) - rounding;
    const Vec r = fma(n, all(2.12194440e-4f), fma(n, all(-0.693359375f), x));
    Vec p = all(1.9875691500e-4f);
    p = fma(p, r, all(1.3981999507e-3f));
    p = fma(p, r, all(8.3334519073e-3f));
    p = fma(p, r, all(4.1665795894e-2f));
    p = fma(p, r, all(1.6666665459e-1f));
    p = fma(p, r, all(5.0000001201e-1f));
    p = fma(p * r, r, r + 1.0f);
    return p * (Vec)((__builtin_convertvector(n, IntVec) + 127) << 23);
}

// The i-th number of some bytes.
template <class T>
inline T read(const char* bytes, int64_t i) {
    T number;
    std::memcpy(&number, bytes + i * sizeof number, sizeof number);
    return number;
}

// A precision says how the LANES weights of a panel's input k are read (of a pair of inputs, where weights come in
// pairs), in how many parts they are multiplied, and how a part is multiplied with a row's input.
struct Float32 {
    typedef Vec Weights;
    typedef Vec Part;
    static constexpr bool rounds_inputs = false;
    static constexpr int parts = 1;
    static int64_t steps(int64_t n_in) { return n_in; }
    static int64_t panel_bytes(int64_t n_in) { return n_in * LANES * 4; }
    static Weights weights(const char* panel, int64_t k) {
        return load(reinterpret_cast<const float*>(panel) + k * LANES);
    }
    static Part part(Weights w, int) { return w; }
    static void add(Vec& sum, Part w, const char* inputs, int64_t i) { sum = fma(w, all(read<float>(inputs, i)), sum); }
};

struct Int8 : Float32 {
    static int64_t panel_bytes(int64_t n_in) { return n_in * LANES; }
    static Weights weights(const char* panel, int64_t k) {
        return widen(reinterpret_cast<const int8_t*>(panel) + k * LANES);
    }
};

struct Bfloat16 : Float32 {
    typedef UintVec Weights;
    static constexpr int parts = 2;  // one after the other: both at once would need more registers than there are
    static int64_t steps(int64_t n_in) { return (n_in + 1) / 2; }
    static int64_t panel_bytes(int64_t n_in) { return steps(n_in) * LANES * 4; }
    static Weights weights(const char* panel, int64_t k) {
        Weights pairs;
        std::memcpy(&pairs, panel + k * sizeof pairs, sizeof pairs);
        return pairs;
    }
    static Part part(Weights w, int second) { return (Vec)(second ? w & 0xffff0000u : w << 16); }
};

#if defined(__AVX512BF16__)
// Two products in one instruction, whose inputs are rounded too.
struct Bfloat16Pairs : Bfloat16 {
    typedef UintVec Part;
    static constexpr bool rounds_inputs = true;
    static constexpr int parts = 1;
    static Part part(Weights w, int) { return w; }
    static void add(Vec& sum, Part w, const char* inputs, int64_t i) {
        const __m512i pair = _mm512_set1_epi32(read<int32_t>(inputs, i));
        sum = (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512i)w, (__m512bh)pair);
    }
};
#endif

// A tile is some rows of inputs times the panels that are woven together. Its sums are kept in registers, those of
// `at_once(rows)` panels at a time: with few rows of many, since sums that follow on each other's products have to wait.
#if defined(__AVX512F__)
template <class P>
struct TileOf {
    static constexpr int rows = 8, panels = 3;  // of 32 registers
    static constexpr int at_once(int) { return 3; }
};
constexpr int MAX_ROWS = 8, MAX_PANELS = 3;
#elif defined(__aarch64__)
template <class P>
struct TileOf {
    static constexpr int rows = 8, panels = 6;
    static constexpr int at_once(int n_rows) { return n_rows == 1 ? 6 : 3; }
};
constexpr int MAX_ROWS = 8, MAX_PANELS = 6;
#else
template <class P>
struct TileOf {
    static constexpr int rows = 4, panels = 3;  // of 16
    static constexpr int at_once(int) { return 3; }
};
template <>
struct TileOf<Int8> {  // few bytes, which come faster than sums of one row can follow
    static constexpr int rows = 4, panels = 6;
    static constexpr int at_once(int n_rows) { return n_rows == 1 ? 6 : 3; }
};
template <>
struct TileOf<Bfloat16> {  // whose pairs take registers too
    static constexpr int rows = 6, panels = 6;
    static constexpr int at_once(int n_rows) { return n_rows == 1 ? 6 : n_rows <= 3 ? 3 : 2; }
};
constexpr int MAX_ROWS = 6, MAX_PANELS = 6;
#endif
constexpr int64_t LINE = 64;  // bytes that memory is read in

// What will be needed next, and how many bytes of it are to be asked for in each step of a tile's loop. The processor
// itself looks ahead only as far as memory is read in order, and reads nothing while the same weights meet more rows.
struct Ahead {
    const char* from;
    int64_t rate;
};

// The products of ROWS rows of inputs with PANELS of the WOVEN panels; `sums` has a line of MAX_PANELS for each row.
// Only tiles of full height ask ahead: smaller ones wait for the memory in any case.
template <class P, int ROWS, int PANELS, int WOVEN>
INLINED void products(
    Vec* sums, const char* panel, const char* inputs, int64_t row_bytes, int64_t n_in, Ahead ahead) {
    Vec kept[ROWS][PANELS] = {};
    const char* wanted = ahead.from;
    for (int64_t k = 0, steps = P::steps(n_in); k < steps; k++) {
        if constexpr (ROWS == TileOf<P>::rows) {
            wanted += ahead.rate;
            for (; ahead.from < wanted; ahead.from += LINE) __builtin_prefetch(ahead.from, 0, 2);
        }
        typename P::Weights w[PANELS];
        for (int p = 0; p < PANELS; p++) w[p] = P::weights(panel, k * WOVEN + p);
        for (int i = 0; i < P::parts; i++) {
            typename P::Part part[PANELS];
            for (int p = 0; p < PANELS; p++) part[p] = P::part(w[p], i);
            for (int r = 0; r < ROWS; r++)
                for (int p = 0; p < PANELS; p++)
                    P::add(kept[r][p], part[p], inputs + r * row_bytes, k * P::parts + i);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int p = 0; p < PANELS; p++) sums[r * MAX_PANELS + p] = kept[r][p];
}

// The products of ROWS rows with all of the WOVEN panels; the first pass prefetches.
template <class P, int ROWS, int WOVEN>
void tile(Vec* sums, const char* panel, const char* inputs, int64_t row_bytes, int64_t n_in, Ahead ahead) {
    constexpr int at_once = WOVEN == 1 ? 1 : TileOf<P>::at_once(ROWS);
    static_assert(WOVEN % at_once == 0);
    const int64_t bytes = P::panel_bytes(n_in) / P::steps(n_in);  // of one panel's weights for one input, or pair
    for (int p = 0; p < WOVEN; p += at_once, ahead = {})
        products<P, ROWS, at_once, WOVEN>(sums + p, panel + p * bytes, inputs, row_bytes, n_in, ahead);
}

// A precision's tiles: [rows - 1], of one panel or of as many as are woven together.
typedef void (*Tile)(Vec* sums, const char* panel, const char* inputs, int64_t row_bytes, int64_t n_in, Ahead ahead);
struct Tiles {
    Tile one[MAX_ROWS], woven[MAX_ROWS];
    int64_t rows, panels;  // of the largest tile
    int64_t (*panel_bytes)(int64_t n_in);
    int64_t (*steps)(int64_t n_in);
    bool rounds_inputs;
};

template <class P, int... ROWS>
Tiles tiles_of(std::integer_sequence<int, ROWS...>) {
    constexpr int panels = TileOf<P>::panels;
    return {{tile<P, ROWS + 1, 1>...}, {tile<P, ROWS + 1, panels>...}, sizeof...(ROWS), panels,
            P::panel_bytes, P::steps, P::rounds_inputs};
}
template <class P>
Tiles tiles_of() {
    return tiles_of<P>(std::make_integer_sequence<int, TileOf<P>::rows>{});
}

}  // namespace
