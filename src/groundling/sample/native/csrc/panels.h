// Products of packed weights with a few rows of inputs.
//
// Weights are packed in panels of LANES outputs: for each input, the LANES weights side by side (bfloat16: for each
// pair of inputs, LANES pairs), so one instruction serves LANES outputs. TileShape::panels panels form a group and are
// interleaved input by input; the remaining panels follow one by one. Memory is thus read sequentially.

#pragma once
#include <utility>
#include "kernels.h"

namespace {

template <class T>
inline T load_scalar(const char* bytes, int64_t i) {
    T value;
    std::memcpy(&value, bytes + i * int64_t(sizeof value), sizeof value);
    return value;
}

// Weight formats. A step loads a panel's LANES weights for one input (bfloat16: for a pair of inputs) and multiplies
// them in `parts` parts with a row's inputs.
struct Float32Weights {
    typedef Vec Packed;
    typedef Vec Part;
    static constexpr bool rounds_inputs = false;
    static constexpr int parts = 1;
    static int64_t steps(int64_t n_in) { return n_in; }
    static int64_t panel_bytes(int64_t n_in) { return n_in * LANES * 4; }
    static Packed packed(const char* panel, int64_t step) {
        return load(reinterpret_cast<const float*>(panel) + step * LANES);
    }
    static Part part(Packed w, int) { return w; }
    static void multiply_add(Vec& sum, Part w, const char* inputs, int64_t i) {
        sum = fma(w, broadcast(load_scalar<float>(inputs, i)), sum);
    }
};

struct Int8Weights : Float32Weights {
    static int64_t panel_bytes(int64_t n_in) { return n_in * LANES; }
    static Packed packed(const char* panel, int64_t step) {
        return widen_int8(reinterpret_cast<const int8_t*>(panel) + step * LANES);
    }
};

struct BFloat16Weights : Float32Weights {
    typedef UintVec Packed;
    static constexpr int parts = 2;  // in turn: both at once would need too many registers
    static int64_t steps(int64_t n_in) { return (n_in + 1) / 2; }
    static int64_t panel_bytes(int64_t n_in) { return steps(n_in) * LANES * 4; }
    static Packed packed(const char* panel, int64_t step) {
        Packed pairs;
        std::memcpy(&pairs, panel + step * int64_t(sizeof pairs), sizeof pairs);
        return pairs;
    }
    static Part part(Packed w, int second) { return (Vec)(second ? w & 0xffff0000u : w << 16); }
};

#if defined(__AVX512BF16__)
// Two products per instruction; also rounds the inputs to bfloat16.
struct BFloat16PairWeights : BFloat16Weights {
    typedef UintVec Part;
    static constexpr bool rounds_inputs = true;
    static constexpr int parts = 1;
    static Part part(Packed w, int) { return w; }
    static void multiply_add(Vec& sum, Part w, const char* inputs, int64_t i) {
        const __m512i pair = _mm512_set1_epi32(load_scalar<int32_t>(inputs, i));
        sum = (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512i)w, (__m512bh)pair);
    }
};
#endif

// A tile is `rows` rows of inputs times one group of `panels` panels. Its sums stay in registers, for
// `panels_per_pass(n_rows)` panels at a time: more of them with few rows, since consecutive additions to one sum wait
// for each other.
#if defined(__AVX512F__)  // 32 vector registers
template <class W>
struct TileShape {
    static constexpr int rows = 8, panels = 3;
    static constexpr int panels_per_pass(int) { return 3; }
};
constexpr int MAX_ROWS = 8, MAX_PANELS = 3;
#elif defined(__aarch64__)  // 32
template <class W>
struct TileShape {
    static constexpr int rows = 8, panels = 6;
    static constexpr int panels_per_pass(int n_rows) { return n_rows == 1 ? 6 : 3; }
};
constexpr int MAX_ROWS = 8, MAX_PANELS = 6;
#else  // 16
template <class W>
struct TileShape {
    static constexpr int rows = 4, panels = 3;
    static constexpr int panels_per_pass(int) { return 3; }
};
template <>
struct TileShape<Int8Weights> {  // int8 arrives faster than the sums of one row can follow
    static constexpr int rows = 4, panels = 6;
    static constexpr int panels_per_pass(int n_rows) { return n_rows == 1 ? 6 : 3; }
};
template <>
struct TileShape<BFloat16Weights> {  // the packed pairs take registers too
    static constexpr int rows = 6, panels = 6;
    static constexpr int panels_per_pass(int n_rows) { return n_rows == 1 ? 6 : n_rows <= 3 ? 3 : 2; }
};
constexpr int MAX_ROWS = 6, MAX_PANELS = 6;
#endif
constexpr int64_t CACHE_LINE = 64;  // bytes

// Memory to prefetch, and how much of it in each step of a tile's loop. The hardware prefetcher runs only a little
// ahead of sequential reads, and fetches nothing while the same weights meet further rows.
struct Prefetch {
    const char* next;
    int64_t bytes_per_step;
};

// Multiplies ROWS rows of inputs by PANELS of a group's GROUP panels. `sums` has MAX_PANELS vectors per row. Only tiles
// of full height prefetch: smaller ones wait for memory in any case.
template <class W, int ROWS, int PANELS, int GROUP>
ALWAYS_INLINE void multiply_pass(
    Vec* sums, const char* panel, const char* inputs, int64_t row_bytes, int64_t n_in, Prefetch prefetch) {
    Vec accumulators[ROWS][PANELS] = {};
    const char* prefetch_end = prefetch.next;
    for (int64_t step = 0, steps = W::steps(n_in); step < steps; step++) {
        if constexpr (ROWS == TileShape<W>::rows) {
            prefetch_end += prefetch.bytes_per_step;
            for (; prefetch.next < prefetch_end; prefetch.next += CACHE_LINE) __builtin_prefetch(prefetch.next, 0, 2);
        }
        typename W::Packed w[PANELS];
        for (int p = 0; p < PANELS; p++) w[p] = W::packed(panel, step * GROUP + p);
        for (int i = 0; i < W::parts; i++) {
            typename W::Part part[PANELS];
            for (int p = 0; p < PANELS; p++) part[p] = W::part(w[p], i);
            for (int r = 0; r < ROWS; r++)
                for (int p = 0; p < PANELS; p++)
                    W::multiply_add(accumulators[r][p], part[p], inputs + r * row_bytes, step * W::parts + i);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int p = 0; p < PANELS; p++) sums[r * MAX_PANELS + p] = accumulators[r][p];
}

// Multiplies ROWS rows by all GROUP panels; the first pass prefetches.
template <class W, int ROWS, int GROUP>
void multiply_tile(
    Vec* sums, const char* panel, const char* inputs, int64_t row_bytes, int64_t n_in, Prefetch prefetch) {
    constexpr int n_pass = GROUP == 1 ? 1 : TileShape<W>::panels_per_pass(ROWS);
    static_assert(GROUP % n_pass == 0);
    const int64_t step_bytes = W::panel_bytes(n_in) / W::steps(n_in);  // of one panel
    for (int p = 0; p < GROUP; p += n_pass, prefetch = {})
        multiply_pass<W, ROWS, n_pass, GROUP>(sums + p, panel + p * step_bytes, inputs, row_bytes, n_in, prefetch);
}

typedef void (*TileKernel)(
    Vec* sums, const char* panel, const char* inputs, int64_t row_bytes, int64_t n_in, Prefetch prefetch);

// The kernels of one weight format, by [rows - 1]: for a single panel, and for a group.
struct TileKernels {
    TileKernel single[MAX_ROWS], group[MAX_ROWS];
    int64_t rows, panels;  // of the largest tile
    int64_t (*panel_bytes)(int64_t n_in);
    int64_t (*steps)(int64_t n_in);
    bool rounds_inputs;
};

template <class W, int... ROWS>
TileKernels tile_kernels(std::integer_sequence<int, ROWS...>) {
    constexpr int panels = TileShape<W>::panels;
    return {{multiply_tile<W, ROWS + 1, 1>...}, {multiply_tile<W, ROWS + 1, panels>...}, sizeof...(ROWS), panels,
            W::panel_bytes, W::steps, W::rounds_inputs};
}
template <class W>
TileKernels tile_kernels() {
    return tile_kernels<W>(std::make_integer_sequence<int, TileShape<W>::rows>{});
}

[[maybe_unused]] TileKernels tile_kernels_for(int64_t precision) {
    if (precision == INT8) return tile_kernels<Int8Weights>();
    if (precision == FLOAT32) return tile_kernels<Float32Weights>();
#if defined(__AVX512BF16__)
    if (!__builtin_cpu_is("intel")) return tile_kernels<BFloat16PairWeights>();  // slower than plain products on Intel
#endif
    return tile_kernels<BFloat16Weights>();
}

}  // namespace
