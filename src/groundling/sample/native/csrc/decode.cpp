// The exported functions (abi.h): a GPT's forward pass for the few rows of a decoding step, on a CPU.
//
// Computes what model/gpt.py does, to rounding (tests/laws/test_decoding_laws.py). A decoding step has one row per
// sequence, a prompt one per token, and a call may mix both. The order of summation for a row depends neither on the
// other rows of the call nor on the number of threads: alone or batched, cached or recomputed, its bits are the same.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <exception>
#include "abi.h"
#include "worker.h"

namespace {

// Flushes subnormal numbers to zero in this scope: they can be a hundred times slower, and softmax weights of masked
// positions are such numbers.
struct FlushSubnormals {
#if defined(__x86_64__)
    const unsigned before = _mm_getcsr();
    FlushSubnormals() { _mm_setcsr(before | 0x8040); }
    ~FlushSubnormals() { _mm_setcsr(before); }
#endif
};

void run_worker(void* argument, int index) {
    Call& call = *static_cast<Call*>(argument);
    [[maybe_unused]] const FlushSubnormals flush_subnormals;
    if (call.cache.is_bfloat16) Worker<BFloat16>(call, index).run();
    else Worker<float>(call, index).run();
}

}  // namespace

extern "C" {

const AbiEntry* abi_layout() { return ABI_LAYOUT; }

const char* missing_feature() {
#if defined(__x86_64__)
    __builtin_cpu_init();
#define REQUIRE_FEATURE(name) if (!__builtin_cpu_supports(name)) return name;
#ifdef __SSE4_2__
    REQUIRE_FEATURE("sse4.2")
#endif
#ifdef __AVX__
    REQUIRE_FEATURE("avx")
#endif
#ifdef __FMA4__
    REQUIRE_FEATURE("fma4")
#endif
#ifdef __AVX2__
    REQUIRE_FEATURE("avx2")
#endif
#ifdef __FMA__
    REQUIRE_FEATURE("fma")
#endif
#ifdef __BMI2__
    REQUIRE_FEATURE("bmi2")
#endif
#ifdef __AVX512F__
    REQUIRE_FEATURE("avx512f")
#endif
#ifdef __AVX512BW__
    REQUIRE_FEATURE("avx512bw")
#endif
#ifdef __AVX512VL__
    REQUIRE_FEATURE("avx512vl")
#endif
#ifdef __AVX512VBMI__
    REQUIRE_FEATURE("avx512vbmi")
#endif
#ifdef __AVX512VNNI__
    REQUIRE_FEATURE("avx512vnni")
#endif
#ifdef __AVX512BF16__
    REQUIRE_FEATURE("avx512bf16")
#endif
#undef REQUIRE_FEATURE
#endif
    return nullptr;
}

int panel_lanes() { return LANES; }
int panels_per_group(int precision) { return int(tile_kernels_for(precision).panels); }

void* team_create(int size) {
    try {
        return new ThreadTeam(size);
    } catch (const std::exception&) {
        return nullptr;
    }
}
void team_wake(void* team) { static_cast<ThreadTeam*>(team)->wake(); }
void team_destroy(void* team) { delete static_cast<ThreadTeam*>(team); }

int forward(void* team, const Model* model, const Cache* cache, const Batch* batch, float* logits) {
    try {
        Call call(*model, *cache, *batch, logits, static_cast<ThreadTeam*>(team)->size());
        static_cast<ThreadTeam*>(team)->run(run_worker, &call);
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

// Sampling in Python would take a tenth of a step: the weights have evicted its code and data from the caches.
void race(const float* logits, int64_t n_rows, int64_t stride, int64_t n_ids, float temperature,
          const float* const* noise, int64_t* ids) {
    const float divisor = std::max(temperature, FLT_MIN);
    for (int64_t row = 0; row < n_rows; row++, logits += stride) {
        const float largest = *std::max_element(logits, logits + n_ids);
        const bool has_nan = std::any_of(logits, logits + n_ids, [](float x) { return std::isnan(x); });
        float fastest = -1.0f;
        ids[row] = -1;
        for (int64_t first = 0; first < n_ids && !has_nan && std::isfinite(largest); first += LANES) {
            const int64_t n = std::min<int64_t>(LANES, n_ids - first);
            alignas(64) float weights[LANES] = {};
            for (int64_t i = 0; i < n; i++) weights[i] = (logits[first + i] - largest) / divisor;
            store(weights, vector_exp(load(weights)));
            for (int64_t i = 0; i < n; i++) {
                const float speed = weights[i] / noise[row][first + i];
                if (speed > fastest) fastest = speed, ids[row] = first + i;
            }
        }
    }
}

}  // extern "C"
