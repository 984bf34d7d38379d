// The binary interface between this library and Python: every struct and enum that crosses it, and the exported
// functions. native/abi.py mirrors this file. Python compares `abi_layout()` with its own structures when it loads the
// library. Increase ABI_VERSION when a function's signature or the meaning of a field changes.
//
// Notation: V vocab_size, C n_embd, D head_size, R rows.

#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

constexpr int64_t ABI_VERSION = 1;

enum Precision { FLOAT32, BFLOAT16, INT8 };
enum Norm { LAYERNORM, RMSNORM };
enum Activation { RELU, GELU, RELU2, SWIGLU };

struct NormWeights {
    const float* weight;  // null: no norm
    const float* bias;    // or null
};
struct Linear {
    const char* weights;  // packed panels, see panels.h
    const float* scales;  // per output, padded to whole panels
    const float* bias;    // per output, padded to whole panels
    int64_t n_in, n_out;
};
struct Layer {
    NormWeights ln_1, q_norm, k_norm, ln_2;
    Linear c_attn, attn_proj, c_gate, c_fc, mlp_proj;  // c_gate: SwiGLU only
};
struct Model {
    int64_t n_layer, n_head, n_kv_head, head_size, n_embd, n_hidden, block_size, vocab_size;
    int64_t precision, norm, activation;  // values of the enums above
    float norm_eps;
    const float* wte;              // (V, C)
    const float* wpe;              // (block_size, C), or null
    const float *cos_TP, *sin_TP;  // (block_size, D / 2), or null
    NormWeights ln_f;
    Linear lm_head;
    const Layer* layers;
};
struct Cache {
    void* const* kv;            // [layer, slot]: keys, then values, each (n_kv_head, capacity, D)
    const int64_t* capacities;  // positions allocated per slot
    int64_t n_slots;
    int64_t is_bfloat16;  // else float32
};
// A row is one new position of the sequence in one slot. Positions of a slot continue its cached ones.
struct Batch {
    int64_t n_rows, n_scored;
    const int64_t *ids, *slots, *positions;  // per row
    const int64_t* scored;                   // rows to compute logits for
};
struct AbiEntry {
    const char* name;
    int64_t value;
};

// Version, enumerators, struct sizes and field offsets in bytes; the last entry has a null name.
const AbiEntry* abi_layout();

// A processor feature that this library was compiled for and this processor lacks; null: none known (x86-64 only).
// Any other function may execute its instructions.
const char* missing_feature();

// How weights are packed: outputs per panel, and panels per interleaved group.
int panel_lanes();
int panels_per_group(int precision);

// Returns null if memory is short. `size` includes the calling thread; the system may grant fewer threads.
void* team_create(int size);
void team_wake(void* team);
void team_destroy(void* team);

// Runs the model on a batch: writes keys and values to the cache, and logits (n_scored, V).
// Returns 0, or 1 if memory is short; then nothing was written.
int forward(void* team, const Model* model, const Cache* cache, const Batch* batch, float* logits);

// Samples one id per row by an exponential race (see filters.exponential_race); -1 if the largest logit is not finite.
void race(const float* logits, int64_t n_rows, int64_t stride, int64_t n_ids, float temperature,
          const float* const* noise, int64_t* ids);

}  // extern "C"

namespace {

#define ENUMERATOR(enumeration, name) {#enumeration "." #name, enumeration::name}
#define SIZE(structure) {#structure, sizeof(structure)}
#define FIELD(structure, field) {#structure "." #field, offsetof(structure, field)}

constexpr AbiEntry ABI_LAYOUT[] = {
    {"ABI_VERSION", ABI_VERSION},
    ENUMERATOR(Precision, FLOAT32), ENUMERATOR(Precision, BFLOAT16), ENUMERATOR(Precision, INT8),
    ENUMERATOR(Norm, LAYERNORM), ENUMERATOR(Norm, RMSNORM),
    ENUMERATOR(Activation, RELU), ENUMERATOR(Activation, GELU), ENUMERATOR(Activation, RELU2),
    ENUMERATOR(Activation, SWIGLU),
    SIZE(NormWeights), FIELD(NormWeights, weight), FIELD(NormWeights, bias),
    SIZE(Linear), FIELD(Linear, weights), FIELD(Linear, scales), FIELD(Linear, bias), FIELD(Linear, n_in),
    FIELD(Linear, n_out),
    SIZE(Layer), FIELD(Layer, ln_1), FIELD(Layer, q_norm), FIELD(Layer, k_norm), FIELD(Layer, ln_2),
    FIELD(Layer, c_attn), FIELD(Layer, attn_proj), FIELD(Layer, c_gate), FIELD(Layer, c_fc), FIELD(Layer, mlp_proj),
    SIZE(Model), FIELD(Model, n_layer), FIELD(Model, n_head), FIELD(Model, n_kv_head), FIELD(Model, head_size),
    FIELD(Model, n_embd), FIELD(Model, n_hidden), FIELD(Model, block_size), FIELD(Model, vocab_size),
    FIELD(Model, precision), FIELD(Model, norm), FIELD(Model, activation), FIELD(Model, norm_eps), FIELD(Model, wte),
    FIELD(Model, wpe), FIELD(Model, cos_TP), FIELD(Model, sin_TP), FIELD(Model, ln_f), FIELD(Model, lm_head),
    FIELD(Model, layers),
    SIZE(Cache), FIELD(Cache, kv), FIELD(Cache, capacities), FIELD(Cache, n_slots), FIELD(Cache, is_bfloat16),
    SIZE(Batch), FIELD(Batch, n_rows), FIELD(Batch, n_scored), FIELD(Batch, ids), FIELD(Batch, slots),
    FIELD(Batch, positions), FIELD(Batch, scored),
    {nullptr, 0},
};

#undef ENUMERATOR
#undef SIZE
#undef FIELD

}  // namespace
