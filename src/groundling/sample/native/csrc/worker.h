// One thread's part of the forward pass of model/gpt.py.
//
// Notation: C n_embd, D head_size, F n_hidden, S positions so far, V vocab_size.

#pragma once
#include "attention.h"
#include "call.h"
#include "panels.h"

namespace {

constexpr int64_t KV_BLOCK_BYTES = 1 << 14;  // keys or values that stay in cache while the rows of a span read them

// T: the type of cached keys and values.
template <class T>
class Worker {
   public:
    Worker(Call& call, int thread)
        : c(call),
          m(call.model),
          index(thread),
          kernels(tile_kernels_for(m.precision)),
          scratch(call.scratch[size_t(thread)]) {}

    void run() {
        parallel_for(c.batch.n_rows, [&](int64_t row) { embed(row); });
        for (int64_t layer = 0; layer < m.n_layer; layer++) {
            const Layer& l = m.layers[layer];
            linear(l.c_attn, nullptr, c.x, &l.ln_1, [&](const Tile& t) { write(l.c_attn, t, c.qkv); });
            parallel_for(c.batch.n_rows * n_heads, [&](int64_t item) { write_kv(layer, item); });
            parallel_for(int64_t(c.spans.size()) * m.n_head, [&](int64_t item) { attend(layer, item); });
            const Linear& next = layer + 1 < m.n_layer ? m.layers[layer + 1].c_attn : m.lm_head;
            linear(l.attn_proj, &l.c_fc, c.y, nullptr, [&](const Tile& t) { add(l.attn_proj, t, c.x); });
            linear(l.c_fc, &l.mlp_proj, c.x, &l.ln_2, [&](const Tile& t) { apply_activation(l, t); });
            linear(l.mlp_proj, &next, c.hidden, nullptr, [&](const Tile& t) { add(l.mlp_proj, t, c.x); });
        }
        row_indices = c.batch.scored;
        linear(m.lm_head, nullptr, c.x, &m.ln_f, [&](const Tile& t) { write(m.lm_head, t, c.logits); });
    }

   private:
    // The products of some rows with some panels.
    struct Tile {
        int64_t row, n_rows, panel, n_panels;
        int64_t number, n_full;  // its number in the item, and the item's number of tiles of full height
        const char* inputs;
        Vec (*sums)[MAX_PANELS];
    };

    Call& c;
    const Model& m;
    const int index;
    const TileKernels kernels;
    const int64_t n_heads = m.n_head + 2 * m.n_kv_head;
    const int64_t* row_indices = nullptr;  // rows that a linear layer reads; null: all
    int64_t phase = 0, prepared_block = -1, row_bytes = 0;
    const char* inputs = nullptr;  // of the prepared block
    Scratch& scratch;

    template <class Fn>
    void parallel_for(int64_t n_items, Fn fn) {
        c.phases.parallel_for(phase++, n_items, index, fn);
        prepared_block = -1;
    }

    void embed(int64_t row) {
        const float* token = m.wte + c.batch.ids[row] * m.n_embd;
        float* x = c.x + row * m.n_embd;
        std::memcpy(x, token, size_t(m.n_embd) * sizeof(float));
        if (!m.wpe) return;
        const float* position = m.wpe + c.batch.positions[row] * m.n_embd;
        for (int64_t i = 0; i < m.n_embd; i++) x[i] += position[i];
    }

    // A linear layer, after a norm if given; `finish` gets each tile. An item is a block of rows times a group of
    // panels. `following` is the next linear layer if no other phase lies between; its panels are prefetched.
    template <class Finish>
    void linear(const Linear& l, const Linear* following, const float* x, const NormWeights* norm, Finish finish) {
        const int64_t n_rows = row_indices ? c.batch.n_scored : c.batch.n_rows;
        const int64_t blocks = (n_rows + BLOCK_ROWS - 1) / BLOCK_ROWS, groups = n_groups(l), n_items = blocks * groups;
        parallel_for(n_items, [&](int64_t item) {
            const int64_t block = item / groups, panel = item % groups * kernels.panels;
            const int64_t first = block * BLOCK_ROWS, end = std::min(first + BLOCK_ROWS, n_rows);
            if (prepared_block != block) prepare(x, first, end, norm, l.n_in);
            prepared_block = block;
            const bool is_last = item + 1 == c.phases.share_begin(n_items, index + 1);
            const Linear* next = is_last ? following : &l;
            const int64_t group =
                is_last && following ? c.phases.share_begin(blocks * n_groups(*following), index) : item + 1;
            const int64_t n_wide = std::min(kernels.panels, n_panels(l) - panel);
            const int64_t n_full = (end - first) / kernels.rows;
            Vec sums[MAX_ROWS][MAX_PANELS];
            for (int64_t row = first; row < end; row += kernels.rows) {
                const int64_t n = std::min(kernels.rows, end - row), number = (row - first) / kernels.rows;
                const Tile t{row, n, panel, n_wide, number, n_full, inputs + (row - first) * row_bytes, sums};
                multiply(l, t, next, group);
                finish(t);
            }
        });
    }

    static int64_t n_panels(const Linear& l) { return (l.n_out + LANES - 1) / LANES; }
    int64_t n_groups(const Linear& l) const { return (n_panels(l) + kernels.panels - 1) / kernels.panels; }

    // Computes the sums of a tile; meanwhile prefetches a group of panels of `next`, unless that is null.
    void multiply(const Linear& l, const Tile& t, const Linear* next, int64_t group) const {
        const int64_t bytes = kernels.panel_bytes(l.n_in);
        const char* panel = l.weights + t.panel * bytes;
        const Prefetch prefetch =
            next && t.n_full ? plan_prefetch(l, t, *next, group % n_groups(*next)) : Prefetch{};
        if (t.n_panels == kernels.panels)
            return kernels.group[t.n_rows - 1](t.sums[0], panel, t.inputs, row_bytes, l.n_in, prefetch);
        for (int64_t p = 0; p < t.n_panels; p++)
            kernels.single[t.n_rows - 1](t.sums[0] + p, panel + p * bytes, t.inputs, row_bytes, l.n_in, Prefetch{});
    }

    // A tile's part of the prefetching of a group, capped at the rate that memory delivers.
    Prefetch plan_prefetch(const Linear& l, const Tile& t, const Linear& next, int64_t group) const {
        const int64_t first = group * kernels.panels, end = std::min(first + kernels.panels, n_panels(next));
        const int64_t bytes = kernels.panel_bytes(next.n_in), steps = t.n_full * kernels.steps(l.n_in);
        const int64_t rate = std::min(((end - first) * bytes + steps - 1) / steps, 2 * CACHE_LINE);
        return {next.weights + first * bytes + t.number * rate * kernels.steps(l.n_in), rate};
    }

    // Converts rows `first` to `end` of x, normalized if there is a norm, to inputs of the kernels. Rows that need no
    // conversion are used in place.
    void prepare(const float* x, int64_t first, int64_t end, const NormWeights* norm, int64_t n) {
        row_bytes = round_up(n) * (kernels.rounds_inputs ? 2 : 4);
        inputs = scratch.inputs.data();
        if (!norm && !row_indices && !kernels.rounds_inputs && round_up(n) == n) {
            inputs = reinterpret_cast<const char*>(x + first * n);
            return;
        }
        float* normed = scratch.normed.data();
        std::fill(normed, normed + round_up(n), 0.0f);
        for (int64_t r = first; r < end; r++) {
            const float* row = x + (row_indices ? row_indices[r] : r) * n;
            if (norm) normalize(row, normed, *norm, m.norm, m.norm_eps, n);
            else std::memcpy(normed, row, size_t(n) * sizeof(float));
            char* to = scratch.inputs.data() + (r - first) * row_bytes;
            if (kernels.rounds_inputs) {
                for (int64_t i = 0; i < round_up(n); i++) {
                    BFloat16 value;
                    assign(value, normed[i]);
                    std::memcpy(to + i * int64_t(sizeof value), &value, sizeof value);
                }
            } else {
                std::memcpy(to, normed, size_t(row_bytes));
            }
        }
    }

    // Calls `use(offset in the output, values, count)` for each vector of a tile, after scales and bias.
    template <class Use>
    static void for_each_vector(const Linear& l, const Tile& t, Use use) {
        for (int64_t r = 0; r < t.n_rows; r++)
            for (int64_t p = 0; p < t.n_panels; p++) {
                const int64_t n = (t.panel + p) * LANES;
                const Vec values = fma(t.sums[r][p], load(l.scales + n), load(l.bias + n));
                use((t.row + r) * l.n_out + n, values, std::min<int64_t>(LANES, l.n_out - n));
            }
    }

    static void write(const Linear& l, const Tile& t, float* out) {
        for_each_vector(l, t, [&](int64_t at, const Vec& values, int64_t n) { store_partial(out + at, values, n); });
    }

    static void add(const Linear& l, const Tile& t, float* out) {
        for_each_vector(l, t, [&](int64_t at, const Vec& values, int64_t n) {
            store_partial(out + at, load_partial(out + at, n) + values, n);
        });
    }

    // The MLP's activation; for SwiGLU, also computes the gate and multiplies by it.
    void apply_activation(const Layer& l, const Tile& t) {
        if (m.activation != SWIGLU) {
            for_each_vector(l.c_fc, t, [&](int64_t at, const Vec& values, int64_t n) {
                store_partial(c.hidden + at, activate(values, m.activation), n);
            });
            return;
        }
        write(l.c_fc, t, c.hidden);
        multiply(l.c_gate, t, &l.c_gate, t.panel / kernels.panels + 1);
        for_each_vector(l.c_gate, t, [&](int64_t at, const Vec& values, int64_t n) {
            store_partial(c.hidden + at, load_partial(c.hidden + at, n) * activate(values, SWIGLU), n);
        });
    }

    // Cached keys or values (S, D) of one head.
    T* cached(bool is_key, int64_t layer, int64_t row, int64_t head) const {
        const int64_t slot = c.batch.slots[row], n_before = is_key ? head : m.n_kv_head + head;
        T* keys = static_cast<T*>(c.cache.kv[layer * c.cache.n_slots + slot]);
        return keys + n_before * c.cache.capacities[slot] * m.head_size;
    }

    // QK-norm and rotary embedding of one head, in place.
    void rotate(float* head, int64_t position, const NormWeights& norm) const {
        if (norm.weight) normalize(head, head, norm, RMSNORM, m.norm_eps, m.head_size);
        if (!m.cos_TP) return;
        const int64_t n_pairs = m.head_size / 2;
        const float *cos = m.cos_TP + position * n_pairs, *sin = m.sin_TP + position * n_pairs;
        for (int64_t i = 0; i < n_pairs; i++) {
            const float left = head[i], right = head[i + n_pairs];
            head[i] = left * cos[i] - right * sin[i];
            head[i + n_pairs] = right * cos[i] + left * sin[i];
        }
    }

    // One head of one row's queries, keys or values: rotates queries in place, writes keys and values to the cache.
    void write_kv(int64_t layer, int64_t item) {
        const Layer& l = m.layers[layer];
        const int64_t row = item / n_heads, head = item % n_heads, D = m.head_size;
        const int64_t position = c.batch.positions[row];
        float* from = c.qkv + item * D;
        if (head < m.n_head) return rotate(from, position, l.q_norm);
        const int64_t kv_head = (head - m.n_head) % m.n_kv_head;
        const bool is_key = head < m.n_head + m.n_kv_head;
        if (is_key) rotate(from, position, l.k_norm);
        T* to = cached(is_key, layer, row, kv_head) + position * D;
        for (int64_t d = 0; d < D; d++) assign(to[d], from[d]);
    }

    // Common head sizes are compile-time constants, which is faster.
    void attend(int64_t layer, int64_t item) {
        switch (m.head_size) {
            case 32: return attend<32>(layer, item);
            case 64: return attend<64>(layer, item);
            case 128: return attend<128>(layer, item);
            default: return attend<0>(layer, item);
        }
    }

    // One head of a span. All rows use a block of keys, or of values, before the next block is loaded. The order of
    // summation for a row is the same as if it were alone.
    template <int64_t HEAD_SIZE>
    void attend(int64_t layer, int64_t item) {
        const RowSpan span = c.spans[size_t(item / m.n_head)];
        const int64_t head = item % m.n_head, kv_head = head / (m.n_head / m.n_kv_head);
        const int64_t D = HEAD_SIZE ? HEAD_SIZE : m.head_size, S = n_visible(span, span.n_rows - 1);
        const int64_t cacheable = KV_BLOCK_BYTES / (D * int64_t(sizeof(T))) / LANES * LANES;
        const int64_t block = span.n_rows == 1 ? round_up(S) : std::max<int64_t>(LANES, cacheable);
        const T* keys = cached(true, layer, span.first, kv_head);
        const T* values = cached(false, layer, span.first, kv_head);
        float factors[SPAN_ROWS];
        for (int64_t first = 0; first < S; first += block)
            for (int64_t r = 0; r < span.n_rows; r++) {
                const float* q = c.qkv + ((span.first + r) * n_heads + head) * D;
                attention_scores(q, keys, D, first, std::min(first + block, n_visible(span, r)), scores_of(r));
            }
        for (int64_t r = 0; r < span.n_rows; r++) factors[r] = 1.0f / softmax_row(scores_of(r), n_visible(span, r));
        for (int64_t first = 0; first < S; first += block)
            for (int64_t r = 0; r < span.n_rows; r++) {
                const int64_t end = std::min(first + block, n_visible(span, r));
                const float factor = end == n_visible(span, r) ? factors[r] : 1.0f;
                float* y = c.y + ((span.first + r) * m.n_head + head) * D;
                if (first < end) weighted_sum(values, D, first, end, scores_of(r), factor, y);
            }
    }

    float* scores_of(int64_t r) const { return scratch.scores.data() + r * round_up(c.max_positions); }

    // Positions that a row of a span attends to: the earlier ones and its own.
    int64_t n_visible(const RowSpan& span, int64_t r) const { return c.batch.positions[span.first + r] + 1; }
};

}  // namespace
