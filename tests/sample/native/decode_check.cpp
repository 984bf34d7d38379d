// Runs the whole library on small random models, with several threads and teams, without Python: a program that the
// sanitizers can watch. Logits and sampled ids have to be the same for every number of threads, and for a sequence that
// is read at once, in parts, or among others. Every buffer has exactly the size that the library may access. Built and
// run by check.sh.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>
#include "abi.h"

namespace {

struct Config {
    const char* name;
    int64_t n_head, n_kv_head, head_size, n_embd, n_hidden, vocab_size;
    int64_t norm, activation;
    bool rotary, qk_norm, has_bias;
};
constexpr Config CONFIGS[] = {
    {"gpt2", 4, 4, 8, 32, 128, 21, LAYERNORM, GELU, false, false, true},
    {"odd sizes", 3, 3, 17, 51, 101, 75, LAYERNORM, RELU2, false, false, false},
    {"llama", 6, 2, 32, 36, 100, 33, RMSNORM, SWIGLU, true, false, false},
    {"qwen3", 2, 1, 64, 48, 96, 130, RMSNORM, SWIGLU, true, true, false},
    {"relu", 1, 1, 128, 16, 40, 5, LAYERNORM, RELU, false, false, true},
};
constexpr int64_t N_LAYER = 2, BLOCK_SIZE = 90, N_SLOTS = 3;

typedef std::vector<float> Floats;

// A model with random weights, and the memory that its structs point to.
class RandomModel {
   public:
    Model model{};

    RandomModel(const Config& c, Precision precision) : precision_(precision), has_bias_(c.has_bias) {
        const int64_t D = c.head_size, C = c.n_embd;
        for (int64_t i = 0; i < N_LAYER; i++) {
            Layer layer{};
            layer.ln_1 = norm(C), layer.ln_2 = norm(C);
            if (c.qk_norm) layer.q_norm = norm(D), layer.k_norm = norm(D);
            layer.c_attn = linear(C, (c.n_head + 2 * c.n_kv_head) * D);
            layer.attn_proj = linear(c.n_head * D, C);
            if (c.activation == SWIGLU) layer.c_gate = linear(C, c.n_hidden);
            layer.c_fc = linear(C, c.n_hidden);
            layer.mlp_proj = linear(c.n_hidden, C);
            layers_.push_back(layer);
        }
        model.n_layer = N_LAYER, model.n_head = c.n_head, model.n_kv_head = c.n_kv_head, model.head_size = D;
        model.n_embd = C, model.n_hidden = c.n_hidden, model.block_size = BLOCK_SIZE, model.vocab_size = c.vocab_size;
        model.precision = precision, model.norm = c.norm, model.activation = c.activation, model.norm_eps = 1e-5f;
        model.wte = floats(c.vocab_size * C, 1.0f);
        if (c.rotary) model.cos_TP = floats(BLOCK_SIZE * D / 2, 0.7f), model.sin_TP = floats(BLOCK_SIZE * D / 2, 0.7f);
        else model.wpe = floats(BLOCK_SIZE * C, 1.0f);
        model.ln_f = norm(C);
        model.lm_head = linear(C, c.vocab_size);
        model.layers = layers_.data();
    }

   private:
    const float* floats(int64_t n, float scale) {
        std::normal_distribution<float> draw(0.0f, scale);
        Floats values(static_cast<size_t>(n));
        for (float& x : values) x = draw(generator_);
        floats_.push_back(std::move(values));
        return floats_.back().data();
    }

    NormWeights norm(int64_t n) { return {floats(n, 1.0f), has_bias_ ? floats(n, 0.1f) : nullptr}; }

    Linear linear(int64_t n_in, int64_t n_out) {
        const int64_t lanes = panel_lanes(), n_padded = (n_out + lanes - 1) / lanes * lanes;
        const float scale = 1.0f / std::sqrt(float(n_in));
        const int64_t n = precision_ == BFLOAT16 ? (n_in + 1) / 2 * 2 * n_padded : n_in * n_padded;
        const float* values = floats(n, precision_ == INT8 ? 40.0f : scale);
        std::vector<char> packed;
        for (int64_t i = 0; i < n; i++) {
            char bytes[4];
            std::memcpy(bytes, values + i, 4);
            if (precision_ == INT8) packed.push_back(static_cast<char>(int(values[i]) % 128));
            else packed.insert(packed.end(), bytes + (precision_ == BFLOAT16 ? 2 : 0), bytes + 4);
        }
        packed_.push_back(std::move(packed));
        floats_.push_back(Floats(static_cast<size_t>(n_padded), precision_ == INT8 ? scale / 40.0f : 1.0f));
        const float* scales = floats_.back().data();
        return {packed_.back().data(), scales, floats(n_padded, 0.1f), n_in, n_out};
    }

    const Precision precision_;
    const bool has_bias_;
    std::mt19937 generator_{1337};
    std::vector<Layer> layers_;
    std::vector<Floats> floats_;
    std::vector<std::vector<char>> packed_;
};

// New ids of one slot.
struct Span {
    int64_t slot, position, n_ids, seed;
};

// A thread team with a cache for one model.
class Runner {
   public:
    Runner(const Model& model, bool is_bfloat16, int n_threads)
        : m_(model), team_(team_create(n_threads), team_destroy) {
        const int64_t bytes = 2 * m_.n_kv_head * BLOCK_SIZE * m_.head_size * (is_bfloat16 ? 2 : 4);
        for (int64_t i = 0; i < N_LAYER * N_SLOTS; i++) {
            memory_.emplace_back(static_cast<size_t>(bytes));
            kv_.push_back(memory_.back().data());
        }
        cache_ = {kv_.data(), capacities_.data(), N_SLOTS, is_bfloat16};
    }

    // The logits of all ids of all spans.
    Floats read(const std::vector<Span>& spans) {
        std::vector<int64_t> ids, slots, positions, scored;
        for (const Span& span : spans)
            for (int64_t p = span.position; p < span.position + span.n_ids; p++) {
                scored.push_back(int64_t(ids.size()));
                ids.push_back((p * p * 7 + span.seed * 13 + p) % m_.vocab_size);
                slots.push_back(span.slot);
                positions.push_back(p);
            }
        const int64_t n = int64_t(ids.size());
        Floats logits(static_cast<size_t>(n * m_.vocab_size));
        const Batch batch{n, n, ids.data(), slots.data(), positions.data(), scored.data()};
        team_wake(team_.get());
        if (forward(team_.get(), &m_, &cache_, &batch, logits.data())) std::printf("no memory\n");
        return logits;
    }

   private:
    const Model& m_;
    std::unique_ptr<void, void (*)(void*)> team_;
    std::vector<std::vector<char>> memory_;
    std::vector<void*> kv_;
    std::vector<int64_t> capacities_ = std::vector<int64_t>(N_SLOTS, BLOCK_SIZE);
    Cache cache_{};
};

std::vector<int64_t> sample(const Floats& logits, int64_t vocab_size) {
    const int64_t n_rows = int64_t(logits.size()) / vocab_size;
    std::mt19937 generator(7);
    std::exponential_distribution<float> draw;
    std::vector<Floats> noise(static_cast<size_t>(n_rows), Floats(static_cast<size_t>(vocab_size)));
    std::vector<const float*> pointers;
    for (Floats& row : noise) {
        for (float& x : row) x = draw(generator) + 1e-12f;
        pointers.push_back(row.data());
    }
    std::vector<int64_t> ids(static_cast<size_t>(n_rows));
    race(logits.data(), n_rows, vocab_size, vocab_size, 0.8f, pointers.data(), ids.data());
    return ids;
}

int check(const Config& config, Precision precision, bool is_bfloat16, int n_threads) {
    const RandomModel random(config, precision);
    const int64_t V = config.vocab_size;
    Runner reference(random.model, is_bfloat16, 1), runner(random.model, is_bfloat16, n_threads);
    const Floats expected = reference.read({{0, 0, BLOCK_SIZE, 3}});
    int n_failures = 0;
    const auto expect = [&](bool holds, const char* what) {
        if (holds) return;
        n_failures++;
        std::printf("failed: %s, precision %d, bfloat16 cache %d: %s\n", config.name, precision, is_bfloat16, what);
    };
    for (const float x : expected) expect(std::isfinite(x), "logits are finite");
    expect(runner.read({{1, 0, BLOCK_SIZE, 3}}) == expected, "the number of threads");
    for (int64_t position = 0, n; position < BLOCK_SIZE; position += n) {
        n = std::min<int64_t>(1 + position % 29, BLOCK_SIZE - position);
        const Floats batched = runner.read({{0, position, 1, 5}, {2, position, n, 3}, {1, position, n, 8}});
        expect(std::memcmp(&batched[size_t(V)], &expected[size_t(position * V)], size_t(n * V) * sizeof(float)) == 0,
               "a part among others");
    }
    for (const int64_t id : sample(expected, V)) expect(0 <= id && id < V, "sampled ids");
    return n_failures;
}

}  // namespace

int main() {
    // Two pools at once, as in a process with two engines.
    int n_failures[2] = {};
    const auto run = [&](int which) {
        for (const Config& config : CONFIGS)
            for (const Precision precision : {FLOAT32, BFLOAT16, INT8})
                n_failures[which] += check(config, precision, (precision != FLOAT32) != (which == 1), 2 + which);
    };
    std::thread other(run, 1);
    run(0);
    other.join();
    for (int size = 1; size <= 4; size++) team_destroy(team_create(size));  // idle threads end
    std::printf("%d lanes, %d failures\n", panel_lanes(), n_failures[0] + n_failures[1]);
    return n_failures[0] + n_failures[1] ? 1 : 0;
}
