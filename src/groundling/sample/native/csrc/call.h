// The state that the threads of one call of `forward` share.
//
// Notation: V vocab_size, C n_embd, D head_size.

#pragma once
#include <algorithm>
#include <vector>
#include "abi.h"
#include "simd.h"
#include "thread_team.h"

namespace {

constexpr int64_t BLOCK_ROWS = 64;  // rows whose inputs stay in cache while the weights stream by
constexpr int64_t SPAN_ROWS = 16;   // at most; rows of one sequence that read its keys and values together

typedef std::vector<float> Floats;

// Consecutive rows of one sequence.
struct RowSpan {
    int64_t first, n_rows;
};

// Per-thread buffers.
struct Scratch {
    Floats scores, normed;
    std::vector<char> inputs;
};

// All memory of a call is allocated here, in the calling thread, where a failure can be reported.
struct Call {
    const Model& model;
    const Cache& cache;
    const Batch& batch;
    float* logits;
    Phases phases;
    Floats memory;
    float *x, *qkv, *y, *hidden;    // per row: residual stream (C), queries keys values, attention output, MLP hidden
    int64_t max_positions = 0;      // the most positions that a row attends to
    std::vector<RowSpan> spans;
    std::vector<Scratch> scratch;

    Call(const Model& m, const Cache& kv, const Batch& rows, float* out, int n_threads)
        : model(m), cache(kv), batch(rows), logits(out), phases(2 + 6 * m.n_layer, n_threads) {
        const int64_t qkv_and_y = (2 * m.n_head + 2 * m.n_kv_head) * m.head_size;
        memory.resize(size_t(batch.n_rows * (m.n_embd + qkv_and_y + m.n_hidden)));
        x = memory.data();
        y = x + batch.n_rows * m.n_embd;
        qkv = y + batch.n_rows * m.n_head * m.head_size;
        hidden = qkv + batch.n_rows * (m.n_head + 2 * m.n_kv_head) * m.head_size;
        const int64_t widest = round_up(std::max({m.n_embd, m.n_hidden, m.n_head * m.head_size}));
        const int64_t n_bytes = std::min(batch.n_rows, BLOCK_ROWS) * widest * int64_t(sizeof(float));
        // With few rows, long spans would leave threads without work.
        make_spans(std::clamp<int64_t>(batch.n_rows * m.n_head / (4 * n_threads), 1, SPAN_ROWS));
        int64_t longest = 0;
        for (const RowSpan& span : spans) longest = std::max(longest, span.n_rows);
        for (int i = 0; i < n_threads; i++)
            scratch.push_back({Floats(size_t(longest * round_up(max_positions))), Floats(size_t(widest)),
                               std::vector<char>(size_t(n_bytes))});
    }

   private:
    void make_spans(int64_t max_rows) {
        for (int64_t row = 0; row < batch.n_rows; row++) {
            max_positions = std::max(max_positions, batch.positions[row] + 1);
            const bool continues = row && batch.slots[row] == batch.slots[row - 1] &&
                                   batch.positions[row] == batch.positions[row - 1] + 1 &&
                                   spans.back().n_rows < max_rows;
            if (continues) spans.back().n_rows++;
            else spans.push_back({row, 1});
        }
    }
};

}  // namespace
