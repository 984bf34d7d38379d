// Checks simd.h, kernels.h, panels.h and attention.h on the target processor. Prints each failure and the number of
// lanes; exits with 1 after a failure. Built and run by test_kernels.py, and with sanitizers by `make native-check`.

#include <cstdio>
#include <random>
#include <vector>
#include "attention.h"
#include "panels.h"

namespace {

int n_failures = 0;

void expect(bool holds, const char* what) {
    if (holds) return;
    std::printf("failed: %s\n", what);
    n_failures++;
}

bool same(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

std::mt19937 generator(1337);
float draw() { return std::normal_distribution<float>()(generator); }

void check_conversions() {
    std::vector<BFloat16> codes(65536 + LANES);
    for (int i = 0; i < 65536; i++) codes[i] = BFloat16(i);
    for (int i = 0; i + LANES <= 65536; i += LANES) {
        float values[LANES];
        store(values, load(&codes[i]));
        for (int j = 0; j < LANES; j++) expect(same(values[j], to_float(codes[i + j])), "bfloat16 to float");
    }
    std::vector<int8_t> bytes(256);
    for (int i = 0; i < 256; i++) bytes[i] = int8_t(i - 128);
    for (int i = 0; i < 256; i += LANES) {
        float values[LANES];
        store(values, widen_int8(&bytes[i]));
        for (int j = 0; j < LANES; j++) expect(values[j] == float(bytes[i + j]), "int8 to float");
    }
    for (int i = 0; i < 65536; i++) {  // every bfloat16 round-trips, except the payload of NaN
        BFloat16 back;
        assign(back, to_float(BFloat16(i)));
        const bool is_number = to_float(BFloat16(i)) == to_float(BFloat16(i));
        expect(is_number ? back == BFloat16(i) : to_float(back) != to_float(back), "float to bfloat16");
    }
}

void check_sums() {
    for (int round = 0; round < 100; round++) {
        Vec vectors[LANES];
        for (Vec& v : vectors)
            for (int i = 0; i < LANES; i++) v[i] = draw();
        const Vec sums = horizontal_sums(vectors);
        for (int i = 0; i < LANES; i++) expect(same(sums[i], horizontal_sum(vectors[i])), "horizontal_sums");
    }
    for (int n : {1, 17, 32, 48, 64, 80, 100, 128}) {
        std::vector<float> a(n), rows(n * LANES);
        std::vector<BFloat16> rounded(n * LANES);
        for (float& x : a) x = draw();
        for (float& x : rows) x = draw();
        for (int i = 0; i < n * LANES; i++) assign(rounded[i], rows[i]);
        const Vec float_dots = dot_rows(a.data(), rows.data(), n);
        const Vec bfloat16_dots = dot_rows(a.data(), rounded.data(), n);
        for (int r = 0; r < LANES; r++) {
            expect(same(float_dots[r], dot(a.data(), &rows[r * n], n)), "dot_rows, float32");
            expect(same(bfloat16_dots[r], dot(a.data(), &rounded[r * n], n)), "dot_rows, bfloat16");
            double exact = 0.0;
            for (int i = 0; i < n; i++) exact += double(a[i]) * rows[r * n + i];
            expect(std::abs(float_dots[r] - exact) <= 1e-4, "dot_rows, accuracy");
        }
    }
}

void check_exp() {
    for (float x = -87.0f; x < 88.0f; x += 0.37f)
        for (int i = 0; i < LANES; i++)
            expect(std::abs(vector_exp(broadcast(x))[i] / std::exp(double(x)) - 1.0) < 1e-6, "exp");
    expect(same(vector_exp(broadcast(-1000.0f))[0], vector_exp(broadcast(-87.0f))[0]), "exp of a very negative number");
    const float nan = vector_exp(broadcast(NAN))[0];
    expect(nan != nan, "exp of NaN");
}

// The weight of one lane of a panel for input k.
template <class W>
float weight(const W&, const char* panel, int64_t k, int lane) {
    return W::packed(panel, k)[lane];
}
float weight(const BFloat16Weights&, const char* panel, int64_t k, int lane) {
    return BFloat16Weights::part(BFloat16Weights::packed(panel, k / 2), int(k % 2))[lane];
}

// Each sum of a tile equals a sequential sum of products, bit for bit.
template <class W, bool IS_GROUP>
void check_tiles(const char* name) {
    constexpr int64_t n_in = 38;
    const TileKernels tiles = tile_kernels<W>();
    const int64_t n_panels = IS_GROUP ? tiles.panels : 1, bytes = tiles.panel_bytes(n_in);
    std::vector<char> panels(n_panels * bytes);
    for (int64_t i = 0; i < n_panels * bytes; i += 2) {  // bfloat16, or two int8
        BFloat16 value;
        assign(value, draw());
        std::memcpy(&panels[i], &value, sizeof value);
    }
    if (W::panel_bytes(1) == LANES * 4)  // float32
        for (int64_t i = 0; i < n_panels * bytes; i += 4) {
            const float x = draw();
            std::memcpy(&panels[i], &x, sizeof x);
        }
    const int64_t row_floats = (n_in + LANES - 1) / LANES * LANES;
    std::vector<float> inputs(MAX_ROWS * row_floats);
    for (float& x : inputs) x = draw();
    for (int64_t rows = 1; rows <= tiles.rows; rows++) {
        Vec sums[MAX_ROWS * MAX_PANELS];
        const TileKernel multiply = IS_GROUP ? tiles.group[rows - 1] : tiles.single[rows - 1];
        multiply(sums, panels.data(), reinterpret_cast<const char*>(inputs.data()), row_floats * 4, n_in, Prefetch{});
        for (int64_t r = 0; r < rows; r++)
            for (int64_t p = 0; p < n_panels; p++)
                for (int lane = 0; lane < LANES; lane++) {
                    float expected = 0.0f;
                    for (int64_t k = 0; k < n_in; k++) {
                        // In a group, step k of panel p is at index k * n_panels + p.
                        const int64_t index = (k / W::parts * n_panels + p) * W::parts + k % W::parts;
                        const float w = weight(W{}, panels.data(), index, lane);
                        expected = fma(w, inputs[r * row_floats + k], expected);
                    }
                    expect(same(sums[r * MAX_PANELS + p][lane], expected), name);
                }
    }
}

// Attention in blocks equals attention at once, bit for bit, and is close to a double-precision reference.
template <class T>
void check_attention(int64_t D) {
    constexpr int64_t S = 6 * LANES + 3;
    std::vector<float> q(D), scores(round_up(S)), in_blocks(round_up(S)), y(D), y_in_blocks(D);
    std::vector<T> keys(S * D), values(S * D);
    for (float& x : q) x = draw();
    for (T& x : keys) assign(x, draw());
    for (T& x : values) assign(x, draw());
    attention_scores(q.data(), keys.data(), D, 0, S, scores.data());
    for (int64_t at = 0; at < S; at += 2 * LANES)
        attention_scores(q.data(), keys.data(), D, at, std::min(at + 2 * LANES, S), in_blocks.data());
    double exact_total = 0.0;
    std::vector<double> exact(D);
    for (int64_t s = 0; s < S; s++) {
        expect(same(scores[s], in_blocks[s]), "scores in blocks");
        double product = 0.0;
        for (int64_t d = 0; d < D; d++) product += double(q[d]) * to_float(keys[s * D + d]);
        const double weight = std::exp(product / std::sqrt(double(D)));
        exact_total += weight;
        for (int64_t d = 0; d < D; d++) exact[d] += weight * to_float(values[s * D + d]);
    }
    const float factor = 1.0f / softmax_row(scores.data(), S);
    weighted_sum(values.data(), D, 0, S, scores.data(), factor, y.data());
    for (int64_t at = 0; at < S; at += 2 * LANES) {
        const int64_t end = std::min(at + 2 * LANES, S);
        weighted_sum(values.data(), D, at, end, scores.data(), end == S ? factor : 1.0f, y_in_blocks.data());
    }
    for (int64_t d = 0; d < D; d++) {
        expect(same(y[d], y_in_blocks[d]), "weighted sum in blocks");
        expect(std::abs(y[d] - exact[d] / exact_total) <= 1e-5, "attention, accuracy");
    }
}

}  // namespace

int main() {
    check_conversions();
    check_sums();
    check_exp();
    for (int64_t D : {17, 32, 80, 128}) {
        check_attention<float>(D);
        check_attention<BFloat16>(D);
    }
    check_tiles<Float32Weights, true>("group, float32");
    check_tiles<Float32Weights, false>("single panel, float32");
    check_tiles<BFloat16Weights, true>("group, bfloat16");
    check_tiles<BFloat16Weights, false>("single panel, bfloat16");
    check_tiles<Int8Weights, true>("group, int8");
    check_tiles<Int8Weights, false>("single panel, int8");
    std::printf("%d lanes, %d failures\n", LANES, n_failures);
    return n_failures ? 1 : 0;
}
