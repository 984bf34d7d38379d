// Checks the arithmetic of native/csrc/vectors.h and attention.h on the processor that this is compiled for. Prints what differs, and how
// many lanes there are; exits with 1 if anything differed. Built and run by test_vectors.py.

#include <cstdio>
#include <random>
#include <vector>
#include "attention.h"

namespace {

int n_wrong = 0;

void expect(bool holds, const char* what) {
    if (holds) return;
    std::printf("wrong: %s\n", what);
    n_wrong++;
}

bool same(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

std::mt19937 generator(1337);
float draw() { return std::normal_distribution<float>()(generator); }

void check_conversions() {
    std::vector<Half> halves(65536 + LANES);
    for (int i = 0; i < 65536; i++) halves[i] = Half(i);
    for (int i = 0; i + LANES <= 65536; i += LANES) {
        float values[LANES];
        store(values, load(&halves[i]));
        for (int j = 0; j < LANES; j++) expect(same(values[j], value_of(halves[i + j])), "bfloat16 to float");
    }
    std::vector<int8_t> bytes(256);
    for (int i = 0; i < 256; i++) bytes[i] = int8_t(i - 128);
    for (int i = 0; i < 256; i += LANES) {
        float values[LANES];
        store(values, widen(&bytes[i]));
        for (int j = 0; j < LANES; j++) expect(values[j] == float(bytes[i + j]), "int8 to float");
    }
    for (int i = 0; i < 65536; i++) {  // all that bfloat16 holds comes back, but for the payload of what is no number
        Half back;
        assign(back, value_of(Half(i)));
        const bool is_number = value_of(Half(i)) == value_of(Half(i));
        expect(is_number ? back == Half(i) : value_of(back) != value_of(back), "float to bfloat16");
    }
}

void check_sums() {
    for (int round = 0; round < 100; round++) {
        Vec vectors[LANES];
        for (Vec& v : vectors)
            for (int i = 0; i < LANES; i++) v[i] = draw();
        const Vec sums = sums_of(vectors);
        for (int i = 0; i < LANES; i++) expect(same(sums[i], sum_of(vectors[i])), "the sums of all vectors");
    }
    for (int n : {1, 17, 32, 48, 64, 80, 100, 128}) {
        std::vector<float> a(n), rows(n * LANES);
        std::vector<Half> halves(n * LANES);
        for (float& x : a) x = draw();
        for (float& x : rows) x = draw();
        for (int i = 0; i < n * LANES; i++) assign(halves[i], rows[i]);
        const Vec of_floats = dots(a.data(), rows.data(), n), of_halves = dots(a.data(), halves.data(), n);
        for (int r = 0; r < LANES; r++) {
            expect(same(of_floats[r], dot(a.data(), &rows[r * n], n)), "dot products, float");
            expect(same(of_halves[r], dot(a.data(), &halves[r * n], n)), "dot products, bfloat16");
            double exact = 0.0;
            for (int i = 0; i < n; i++) exact += double(a[i]) * rows[r * n + i];
            expect(std::abs(of_floats[r] - exact) <= 1e-4, "dot products, near the exact ones");
        }
    }
}

void check_exp() {
    for (float x = -87.0f; x < 88.0f; x += 0.37f)
        for (int i = 0; i < LANES; i++)
            expect(std::abs(exp_of(all(x))[i] / std::exp(double(x)) - 1.0) < 1e-6, "exp");
    expect(same(exp_of(all(-1000.0f))[0], exp_of(all(-87.0f))[0]), "exp of very little");
    const float none = exp_of(all(NAN))[0];
    expect(none != none, "exp of what is no number");
}

// The weight of a panel's lane for input k.
float weight(const Float32&, const char* panel, int64_t k, int lane) { return Float32::weights(panel, k)[lane]; }
float weight(const Int8&, const char* panel, int64_t k, int lane) { return Int8::weights(panel, k)[lane]; }
float weight(const Bfloat16&, const char* panel, int64_t k, int lane) {
    return Bfloat16::part(Bfloat16::weights(panel, k / 2), int(k % 2))[lane];
}

// Every tile's sums are those of adding product by product, whatever the other rows and panels.
template <class P, bool WOVEN>
void check_tiles(const char* name) {
    constexpr int64_t n_in = 38;
    const Tiles tiles = tiles_of<P>();
    const int64_t n_panels = WOVEN ? tiles.panels : 1, bytes = tiles.panel_bytes(n_in);
    std::vector<char> panels(n_panels * bytes);
    for (int64_t i = 0; i < n_panels * bytes; i += 2) {  // as bfloat16, or as two int8
        Half half;
        assign(half, draw());
        std::memcpy(&panels[i], &half, sizeof half);
    }
    if (P::panel_bytes(1) == LANES * 4)  // whole floats
        for (int64_t i = 0; i < n_panels * bytes; i += 4) {
            const float x = draw();
            std::memcpy(&panels[i], &x, sizeof x);
        }
    const int64_t row_floats = (n_in + LANES - 1) / LANES * LANES;
    std::vector<float> inputs(MAX_ROWS * row_floats);
    for (float& x : inputs) x = draw();
    for (int64_t rows = 1; rows <= tiles.rows; rows++) {
        Vec sums[MAX_ROWS * MAX_PANELS];
        const Tile tile = WOVEN ? tiles.woven[rows - 1] : tiles.one[rows - 1];
        tile(sums, panels.data(), reinterpret_cast<const char*>(inputs.data()), row_floats * 4, n_in, Ahead{});
        for (int64_t r = 0; r < rows; r++)
            for (int64_t p = 0; p < n_panels; p++)
                for (int lane = 0; lane < LANES; lane++) {
                    float expected = 0.0f;
                    for (int64_t k = 0; k < n_in; k++) {
                        // Of woven panels, input k (or pair k) of panel p stands at place k * n_panels + p.
                        const int64_t place = (k / P::parts * n_panels + p) * P::parts + k % P::parts;
                        const float w = weight(P{}, panels.data(), place, lane);
                        expected = fma(w, inputs[r * row_floats + k], expected);
                    }
                    expect(same(sums[r * MAX_PANELS + p][lane], expected), name);
                }
    }
}

// Attention in parts has the bits of attention at once, and is near the exact one.
template <class T>
void check_attention(int64_t D) {
    constexpr int64_t S = 6 * LANES + 3;
    std::vector<float> q(D), scores(whole(S)), in_parts(whole(S)), y(D), y_in_parts(D);
    std::vector<T> keys(S * D), values(S * D);
    for (float& x : q) x = draw();
    for (T& x : keys) assign(x, draw());
    for (T& x : values) assign(x, draw());
    score(q.data(), keys.data(), D, 0, S, scores.data());
    for (int64_t at = 0; at < S; at += 2 * LANES)
        score(q.data(), keys.data(), D, at, std::min(at + 2 * LANES, S), in_parts.data());
    double exact_total = 0.0;
    std::vector<double> exact(D);
    for (int64_t s = 0; s < S; s++) {
        expect(same(scores[s], in_parts[s]), "scores in parts");
        double product = 0.0;
        for (int64_t d = 0; d < D; d++) product += double(q[d]) * value_of(keys[s * D + d]);
        const double weight = std::exp(product / std::sqrt(double(D)));
        exact_total += weight;
        for (int64_t d = 0; d < D; d++) exact[d] += weight * value_of(values[s * D + d]);
    }
    const float factor = 1.0f / weigh(scores.data(), S);
    mix(values.data(), D, 0, S, scores.data(), factor, y.data());
    for (int64_t at = 0; at < S; at += 2 * LANES) {
        const int64_t end = std::min(at + 2 * LANES, S);
        mix(values.data(), D, at, end, scores.data(), end == S ? factor : 1.0f, y_in_parts.data());
    }
    for (int64_t d = 0; d < D; d++) {
        expect(same(y[d], y_in_parts[d]), "a weighted sum in parts");
        expect(std::abs(y[d] - exact[d] / exact_total) <= 1e-5, "attention, near the exact one");
    }
}

}  // namespace

int main() {
    check_conversions();
    check_sums();
    check_exp();
    for (int64_t D : {17, 32, 80, 128}) {
        check_attention<float>(D);
        check_attention<Half>(D);
    }
    check_tiles<Float32, true>("tiles of float32");
    check_tiles<Float32, false>("tiles of one panel of float32");
    check_tiles<Bfloat16, true>("tiles of bfloat16");
    check_tiles<Bfloat16, false>("tiles of one panel of bfloat16");
    check_tiles<Int8, true>("tiles of int8");
    check_tiles<Int8, false>("tiles of one panel of int8");
    std::printf("%d lanes, %d wrong\n", LANES, n_wrong);
    return n_wrong ? 1 : 0;
}
