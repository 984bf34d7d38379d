// A GPT's forward pass for the few rows of a decoding step, on a CPU: the mathematics of model/gpt.py, said to a
// compiler that can keep the weights streaming. Laws in the tests hold both to each other.
//
// A row is one new position of one sequence. A decoding step has one row for each sequence, a prompt has one for each
// of its tokens, and a call may mix both. What is computed for a row is summed in an order that depends on nothing
// else in the call, nor on the number of threads: alone or in a crowd, cached or read again, a row's bits are the same.
//
// C n_embd, D head_size, F hidden, S positions so far, V vocabulary.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <exception>
#include "attention.h"
#include "thread_team.h"

extern "C" {

struct Linear {
    const char* weights;  // packed, see vectors.h
    const float* scales;  // of each output, padded to whole panels
    const float* bias;    // the same
    int64_t n_in, n_out;
};
struct Gains {
    const float* weight;  // null: no norm here
    const float* bias;    // or null
};
struct Layer {
    Gains ln_1, q_norm, k_norm, ln_2;
    Linear c_attn, attn_proj, c_gate, c_fc, mlp_proj;  // c_gate only with swiglu
};
struct Model {
    int64_t n_layer, n_head, n_kv_head, head_size, n_embd, n_hidden, block_size, vocab_size;
    int64_t precision, norm, activation;  // see the enums
    float norm_eps;
    const float* wte;               // V C
    const float* wpe;               // block_size C, or null
    const float *cos_TP, *sin_TP;   // block_size D/2, or null
    Gains ln_f;
    Linear lm_head;
    const Layer* layers;
};
struct Cache {
    void* const* kv;            // of each layer and slot: keys, then values, each n_kv_head capacity D
    const int64_t* capacities;  // of each slot: the positions that it has memory for
    int64_t n_slots, is_half;
};
struct Rows {
    int64_t n_rows, n_scored;
    const int64_t *ids, *slots, *places;  // of each row; the places of a slot follow on what it holds
    const int64_t* scored;                // the rows whose logits are wanted
};

}  // extern "C"

namespace {

enum Precision { FLOAT32, BFLOAT16, INT8 };
enum Norm { LAYERNORM, RMSNORM };
enum Activation { RELU, GELU, RELU2, SWIGLU };

constexpr int64_t BLOCK_ROWS = 64;  // rows whose inputs stay near while the weights stream by
constexpr int64_t SPAN_ROWS = 16;  // rows of one sequence, at most, that read its keys and values together
constexpr int64_t NEAR_BYTES = 1 << 14;  // of keys or values, which stay near while the rows of a span read them

Vec activate(Vec x, int64_t kind) {
    const Vec positive = x < 0.0f ? Vec{} : x;
    switch (kind) {
        case RELU: return positive;
        case RELU2: return positive * positive;
        case GELU: return x - x / (1.0f + exp_of(1.595769122f * (x + 0.044715f * x * x * x)));  // its tanh, by exp
        default: return x / (1.0f + exp_of(-x));
    }
}

void normalize(const float* x, float* y, Gains gains, int64_t kind, float eps, int64_t n) {
    const float mean = kind == LAYERNORM ? sum(x, n) / float(n) : 0.0f;
    for (int64_t i = 0; i < n; i++) y[i] = x[i] - mean;
    const float factor = 1.0f / std::sqrt(dot(y, y, n) / float(n) + eps);
    for (int64_t i = 0; i < n; i++) y[i] = y[i] * factor * gains.weight[i];
    if (gains.bias)
        for (int64_t i = 0; i < n; i++) y[i] += gains.bias[i];
}

typedef std::vector<float> Floats;

// One thread's own room.
struct Scratch {
    Floats scores, normed;
    std::vector<char> inputs;
};

// Rows that follow each other in one sequence.
struct Span {
    int64_t row, n_rows;
};

// What the threads of one call share. All memory is taken here, in the caller's thread, where it may fail.
struct Call {
    const Model& m;
    const Cache& cache;
    const Rows& rows;
    float* logits;
    Phases phases;
    Floats memory;
    float *x, *qkv, *y, *hidden;  // of each row
    int64_t longest = 0;  // positions that a row looks at
    std::vector<Span> spans;
    std::vector<Scratch> scratch;

    Call(const Model& model, const Cache& kv, const Rows& what, float* out, int n_threads)
        : m(model), cache(kv), rows(what), logits(out), phases(2 + 6 * m.n_layer, n_threads) {
        const int64_t heads = (2 * m.n_head + 2 * m.n_kv_head) * m.head_size;
        memory.resize(rows.n_rows * (m.n_embd + heads + m.n_hidden));
        x = memory.data();
        y = x + rows.n_rows * m.n_embd;
        qkv = y + rows.n_rows * m.n_head * m.head_size;
        hidden = qkv + rows.n_rows * (m.n_head + 2 * m.n_kv_head) * m.head_size;
        const int64_t widest = whole(std::max({m.n_embd, m.n_hidden, m.n_head * m.head_size}));
        const int64_t n_bytes = std::min(rows.n_rows, BLOCK_ROWS) * widest * int64_t(sizeof(float));
        // Few rows are not enough for spans of many and work for all threads.
        cut(std::clamp<int64_t>(rows.n_rows * m.n_head / (4 * n_threads), 1, SPAN_ROWS));
        int64_t most = 0;
        for (const Span& span : spans) most = std::max(most, span.n_rows);
        for (int i = 0; i < n_threads; i++)
            scratch.push_back({Floats(most * whole(longest)), Floats(widest), std::vector<char>(n_bytes)});
    }

   private:
    // Cut the rows into spans of at most so many.
    void cut(int64_t most) {
        for (int64_t row = 0; row < rows.n_rows; row++) {
            longest = std::max(longest, rows.places[row] + 1);
            const bool follows = row && rows.slots[row] == rows.slots[row - 1] &&
                                 rows.places[row] == rows.places[row - 1] + 1 && spans.back().n_rows < most;
            if (follows) spans.back().n_rows++;
            else spans.push_back({row, 1});
        }
    }
};

Tiles tiles_for(int64_t precision) {
    if (precision == INT8) return tiles_of<Int8>();
    if (precision == FLOAT32) return tiles_of<Float32>();
#if defined(__AVX512BF16__)
    if (!__builtin_cpu_is("intel")) return tiles_of<Bfloat16Pairs>();  // Intel's are slower than plain products
#endif
    return tiles_of<Bfloat16>();
}

// One thread's way through a call. T is what the cache keeps keys and values in.
template <class T>
class Worker {
   public:
    Worker(Call& call, int thread)
        : c(call), m(call.m), index(thread), tiles(tiles_for(m.precision)), scratch(call.scratch[thread]) {}

    void run() {
        share(c.rows.n_rows, [&](int64_t row) { embed(row); });
        for (int64_t layer = 0; layer < m.n_layer; layer++) {
            const Layer& l = m.layers[layer];
            linear(l.c_attn, nullptr, c.x, &l.ln_1, [&](const Tiled& t) { put(l.c_attn, t, c.qkv); });
            share(c.rows.n_rows * n_heads, [&](int64_t head) { remember(layer, head); });
            share(int64_t(c.spans.size()) * m.n_head, [&](int64_t head) { attend(layer, head); });
            const Linear& next = layer + 1 < m.n_layer ? m.layers[layer + 1].c_attn : m.lm_head;
            linear(l.attn_proj, &l.c_fc, c.y, nullptr, [&](const Tiled& t) { add(l.attn_proj, t, c.x); });
            linear(l.c_fc, &l.mlp_proj, c.x, &l.ln_2, [&](const Tiled& t) { bend(l, t); });
            linear(l.mlp_proj, &next, c.hidden, nullptr, [&](const Tiled& t) { add(l.mlp_proj, t, c.x); });
        }
        which = c.rows.scored;
        linear(m.lm_head, nullptr, c.x, &m.ln_f, [&](const Tiled& t) { put(m.lm_head, t, c.logits); });
    }

   private:
    // A tile whose sums are ready.
    struct Tiled {
        int64_t row, n_rows, panel, n_panels;
        int64_t tile, whole_tiles;  // of the piece: which one this is, and how many are of full height
        const char* inputs;
        Vec (*sums)[MAX_PANELS];
    };

    Call& c;
    const Model& m;
    const int index;
    const Tiles tiles;
    const int64_t n_heads = m.n_head + 2 * m.n_kv_head;
    const int64_t* which = nullptr;  // the rows that a linear layer reads; null: all
    int64_t phase = 0, prepared = -1, row_bytes = 0;
    const char* inputs = nullptr;  // of the products, as they were prepared
    Scratch& scratch;

    template <class Piece>
    void share(int64_t n_pieces, Piece piece) {
        c.phases.share(phase++, n_pieces, index, piece);
        prepared = -1;
    }

    void embed(int64_t row) {
        const float* token = m.wte + c.rows.ids[row] * m.n_embd;
        float* x = c.x + row * m.n_embd;
        std::memcpy(x, token, m.n_embd * sizeof(float));
        if (!m.wpe) return;
        const float* place = m.wpe + c.rows.places[row] * m.n_embd;
        for (int64_t i = 0; i < m.n_embd; i++) x[i] += place[i];
    }

    // A linear layer: `finish` gets each tile. `after` is the layer that is read next, if that is at once.
    template <class Finish>
    void linear(const Linear& l, const Linear* after, const float* x, const Gains* gains, Finish finish) {
        const int64_t n_rows = which ? c.rows.n_scored : c.rows.n_rows;
        const int64_t blocks = (n_rows + BLOCK_ROWS - 1) / BLOCK_ROWS, groups = n_groups(l), n_pieces = blocks * groups;
        share(n_pieces, [&](int64_t piece) {
            const int64_t block = piece / groups, panel = piece % groups * tiles.panels;
            const int64_t first = block * BLOCK_ROWS, end = std::min(first + BLOCK_ROWS, n_rows);
            if (prepared != block) prepare(x, first, end, gains, l.n_in);
            prepared = block;
            const bool is_last = piece + 1 == c.phases.first(n_pieces, index + 1);
            const Linear* next = is_last ? after : &l;
            const int64_t group = is_last && after ? c.phases.first(blocks * n_groups(*after), index) : piece + 1;
            const int64_t n_wide = std::min(tiles.panels, n_panels(l) - panel);
            const int64_t whole_tiles = (end - first) / tiles.rows;
            Vec sums[MAX_ROWS][MAX_PANELS];
            for (int64_t row = first; row < end; row += tiles.rows) {
                const int64_t n = std::min(tiles.rows, end - row), tile = (row - first) / tiles.rows;
                const Tiled t{row, n, panel, n_wide, tile, whole_tiles, inputs + (row - first) * row_bytes, sums};
                multiply(l, t, next, group);
                finish(t);
            }
        });
    }

    static int64_t n_panels(const Linear& l) { return (l.n_out + LANES - 1) / LANES; }
    int64_t n_groups(const Linear& l) const { return (n_panels(l) + tiles.panels - 1) / tiles.panels; }

    // The products of a tile; meanwhile a group of panels is asked for, of the layer that is read next (or null).
    void multiply(const Linear& l, const Tiled& t, const Linear* next, int64_t group) const {
        const int64_t bytes = tiles.panel_bytes(l.n_in);
        const char* panel = l.weights + t.panel * bytes;
        const Ahead ahead = next && t.whole_tiles ? look_ahead(l, t, *next, group % n_groups(*next)) : Ahead{};
        if (t.n_panels == tiles.panels)
            return tiles.woven[t.n_rows - 1](t.sums[0], panel, t.inputs, row_bytes, l.n_in, ahead);
        for (int64_t p = 0; p < t.n_panels; p++)
            tiles.one[t.n_rows - 1](t.sums[0] + p, panel + p * bytes, t.inputs, row_bytes, l.n_in, Ahead{});
    }

    // A tile's part of what it takes to have the group near, or of as much as the memory gives meanwhile.
    Ahead look_ahead(const Linear& l, const Tiled& t, const Linear& next, int64_t group) const {
        const int64_t first = group * tiles.panels, end = std::min(first + tiles.panels, n_panels(next));
        const int64_t bytes = tiles.panel_bytes(next.n_in), steps = t.whole_tiles * tiles.steps(l.n_in);
        const int64_t rate = std::min(((end - first) * bytes + steps - 1) / steps, 2 * LINE);
        return {next.weights + first * bytes + t.tile * rate * tiles.steps(l.n_in), rate};
    }

    // Rows `first` to `end` of x, normed if there are gains, as the products want them; where they are so, they stay.
    void prepare(const float* x, int64_t first, int64_t end, const Gains* gains, int64_t n) {
        row_bytes = whole(n) * (tiles.rounds_inputs ? 2 : 4);
        inputs = scratch.inputs.data();
        if (!gains && !which && !tiles.rounds_inputs && whole(n) == n) {
            inputs = reinterpret_cast<const char*>(x + first * n);
            return;
        }
        float* normed = scratch.normed.data();
        std::fill(normed, normed + whole(n), 0.0f);
        for (int64_t r = first; r < end; r++) {
            const float* row = x + (which ? which[r] : r) * n;
            if (gains) normalize(row, normed, *gains, m.norm, m.norm_eps, n);
            else std::memcpy(normed, row, n * sizeof(float));
            char* to = scratch.inputs.data() + (r - first) * row_bytes;
            if (tiles.rounds_inputs) {
                for (int64_t i = 0; i < whole(n); i++) {
                    Half half;
                    assign(half, normed[i]);
                    std::memcpy(to + i * sizeof half, &half, sizeof half);
                }
            } else {
                std::memcpy(to, normed, row_bytes);
            }
        }
    }

    // Call `use(place in the output, values, how many)` for each line of a tile, scaled and with its bias.
    template <class Use>
    static void each(const Linear& l, const Tiled& t, Use use) {
        for (int64_t r = 0; r < t.n_rows; r++)
            for (int64_t p = 0; p < t.n_panels; p++) {
                const int64_t n = (t.panel + p) * LANES;
                const Vec values = fma(t.sums[r][p], load(l.scales + n), load(l.bias + n));
                use((t.row + r) * l.n_out + n, values, std::min<int64_t>(LANES, l.n_out - n));
            }
    }

    static void put(const Linear& l, const Tiled& t, float* out) {
        each(l, t, [&](int64_t at, const Vec& values, int64_t n) { store_some(out + at, values, n); });
    }

    static void add(const Linear& l, const Tiled& t, float* out) {
        each(l, t, [&](int64_t at, const Vec& values, int64_t n) {
            store_some(out + at, load_some(out + at, n) + values, n);
        });
    }

    // The MLP's activation, and with swiglu its gate.
    void bend(const Layer& l, const Tiled& t) {
        if (m.activation != SWIGLU) {
            each(l.c_fc, t, [&](int64_t at, const Vec& values, int64_t n) {
                store_some(c.hidden + at, activate(values, m.activation), n);
            });
            return;
        }
        put(l.c_fc, t, c.hidden);
        multiply(l.c_gate, t, &l.c_gate, t.panel / tiles.panels + 1);
        each(l.c_gate, t, [&](int64_t at, const Vec& values, int64_t n) {
            store_some(c.hidden + at, load_some(c.hidden + at, n) * activate(values, SWIGLU), n);
        });
    }

    // Where the cache keeps the positions (S D) of a head of the keys, or of the values: they follow on the keys.
    T* kept(bool is_key, int64_t layer, int64_t row, int64_t head) const {
        const int64_t slot = c.rows.slots[row], before = is_key ? head : m.n_kv_head + head;
        T* keys = static_cast<T*>(c.cache.kv[layer * c.cache.n_slots + slot]);
        return keys + before * c.cache.capacities[slot] * m.head_size;
    }

    // Head norm and rotary positions, in place.
    void turn(float* head, int64_t place, const Gains& gains) const {
        if (gains.weight) normalize(head, head, gains, RMSNORM, m.norm_eps, m.head_size);
        if (!m.cos_TP) return;
        const int64_t n_pairs = m.head_size / 2;
        const float *cos = m.cos_TP + place * n_pairs, *sin = m.sin_TP + place * n_pairs;
        for (int64_t i = 0; i < n_pairs; i++) {
            const float left = head[i], right = head[i + n_pairs];
            head[i] = left * cos[i] - right * sin[i];
            head[i + n_pairs] = right * cos[i] + left * sin[i];
        }
    }

    // One head of one row's queries, keys or values: queries are turned in place, the others go into the cache.
    void remember(int64_t layer, int64_t item) {
        const Layer& l = m.layers[layer];
        const int64_t row = item / n_heads, head = item % n_heads, place = c.rows.places[row], D = m.head_size;
        float* from = c.qkv + item * D;
        if (head < m.n_head) return turn(from, place, l.q_norm);
        const int64_t kv_head = (head - m.n_head) % m.n_kv_head;
        const bool is_key = head < m.n_head + m.n_kv_head;
        if (is_key) turn(from, place, l.k_norm);
        T* to = kept(is_key, layer, row, kv_head) + place * D;
        for (int64_t d = 0; d < D; d++) assign(to[d], from[d]);
    }

    // Heads of the usual sizes are read faster by code that knows the size.
    void attend(int64_t layer, int64_t item) {
        switch (m.head_size) {
            case 32: return attend<32>(layer, item);
            case 64: return attend<64>(layer, item);
            case 128: return attend<128>(layer, item);
            default: return attend<0>(layer, item);
        }
    }

    // One head of a span. Its rows take turns at some keys, and at some values, as long as these are near: what a row
    // adds up, and in which order, is the same as if it were alone.
    template <int64_t KNOWN>
    void attend(int64_t layer, int64_t item) {
        const Span span = c.spans[item / m.n_head];
        const int64_t head = item % m.n_head, kv_head = head / (m.n_head / m.n_kv_head);
        const int64_t D = KNOWN ? KNOWN : m.head_size, S = c.rows.places[span.row + span.n_rows - 1] + 1;
        const int64_t near = NEAR_BYTES / (D * int64_t(sizeof(T))) / LANES * LANES;
        const int64_t some = span.n_rows == 1 ? whole(S) : std::max<int64_t>(LANES, near);
        const T *keys = kept(true, layer, span.row, kv_head), *values = kept(false, layer, span.row, kv_head);
        float factors[SPAN_ROWS];
        for (int64_t first = 0; first < S; first += some)
            for (int64_t r = 0; r < span.n_rows; r++) {
                const float* q = c.qkv + ((span.row + r) * n_heads + head) * D;
                score(q, keys, D, first, std::min(first + some, n_seen(span, r)), scores_of(r));
            }
        for (int64_t r = 0; r < span.n_rows; r++) factors[r] = 1.0f / weigh(scores_of(r), n_seen(span, r));
        for (int64_t first = 0; first < S; first += some)
            for (int64_t r = 0; r < span.n_rows; r++) {
                const int64_t end = std::min(first + some, n_seen(span, r));
                const float factor = end == n_seen(span, r) ? factors[r] : 1.0f;
                float* y = c.y + ((span.row + r) * m.n_head + head) * D;
                if (first < end) mix(values, D, first, end, scores_of(r), factor, y);
            }
    }

    float* scores_of(int64_t r) const { return scratch.scores.data() + r * whole(c.longest); }

    // Positions that a row of a span looks at: those before it, and its own.
    int64_t n_seen(const Span& span, int64_t r) const { return c.rows.places[span.row + r] + 1; }
};

// While this lives, numbers below 1e-38 count as 0: a processor may take a hundred times as long for them, and the
// weights of positions that are not looked at are such numbers.
struct NothingTiny {
#if defined(__x86_64__)
    const unsigned before = _mm_getcsr();
    NothingTiny() { _mm_setcsr(before | 0x8040); }
    ~NothingTiny() { _mm_setcsr(before); }
#endif
};

void work(void* call, int index) {
    Call& c = *static_cast<Call*>(call);
    const NothingTiny nothing_tiny;
    if (c.cache.is_half) Worker<Half>(c, index).run();
    else Worker<float>(c, index).run();
}

}  // namespace

extern "C" {

// How the weights are packed: the outputs of a panel, and how many panels are woven together.
int lanes() { return LANES; }
int woven_panels(int precision) { return int(tiles_for(precision).panels); }

void* team_new(int size) {
    try {
        return new Team(size);
    } catch (const std::exception&) {
        return nullptr;
    }
}
void team_wake(void* team) { static_cast<Team*>(team)->wake(); }
void team_delete(void* team) { delete static_cast<Team*>(team); }

// Read the rows: their keys and values go into the cache, and the logits of the scored ones to `logits` (n_scored V).
// Returns 0, or 1 where there was not enough memory: then nothing was read.
int read_rows(void* team, const Model* model, const Cache* cache, const Rows* rows, float* logits) {
    try {
        Call call(*model, *cache, *rows, logits, static_cast<Team*>(team)->size());
        static_cast<Team*>(team)->run(work, &call);
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

// Draw an id of each row by the race of exponential clocks (`filters.race`), at a temperature; -1 where the best score
// is not finite. Python's own way takes a tenth of a step: the weights that streamed by have put it out of the caches.
void race(const float* logits, int64_t n_rows, int64_t stride, int64_t n_ids, float t, const float* const* noise,
          int64_t* drawn) {
    const float divisor = std::max(t, FLT_MIN);
    for (int64_t row = 0; row < n_rows; row++, logits += stride) {
        const float best = *std::max_element(logits, logits + n_ids);
        const bool is_sound = std::none_of(logits, logits + n_ids, [](float x) { return std::isnan(x); });
        float fastest = -1.0f;
        drawn[row] = -1;
        for (int64_t first = 0; first < n_ids && is_sound && std::isfinite(best); first += LANES) {
            const int64_t n = std::min<int64_t>(LANES, n_ids - first);
            alignas(64) float weights[LANES] = {};
            for (int64_t i = 0; i < n; i++) weights[i] = (logits[first + i] - best) / divisor;
            store(weights, exp_of(load(weights)));
            for (int64_t i = 0; i < n; i++) {
                const float speed = weights[i] / noise[row][first + i];
                if (speed > fastest) fastest = speed, drawn[row] = first + i;
            }
        }
    }
}

}  // extern "C"
