"""The ctypes mirror of csrc/abi.h, and the check that a compiled library matches it."""

import ctypes

ABI_VERSION = 1
PRECISIONS = ("float32", "bfloat16", "int8")
NORMS = ("layernorm", "rmsnorm")
ACTIVATIONS = ("relu", "gelu", "relu2", "swiglu")
Int, Pointer = ctypes.c_int64, ctypes.c_void_p


class AbiError(OSError):
    """A compiled library has another binary interface than this module."""


class NormWeights(ctypes.Structure):
    """Weight and bias of a norm; null where it has none."""

    _fields_ = [("weight", Pointer), ("bias", Pointer)]


class Linear(ctypes.Structure):
    """A linear layer with packed weights."""

    _fields_ = [("weights", Pointer), ("scales", Pointer), ("bias", Pointer), ("n_in", Int), ("n_out", Int)]


class Layer(ctypes.Structure):
    """A transformer block."""

    _fields_ = [
        *((name, NormWeights) for name in ("ln_1", "q_norm", "k_norm", "ln_2")),
        *((name, Linear) for name in ("c_attn", "attn_proj", "c_gate", "c_fc", "mlp_proj")),
    ]


class Model(ctypes.Structure):
    """A GPT."""

    _fields_ = [
        *((name, Int) for name in ("n_layer", "n_head", "n_kv_head", "head_size", "n_embd", "n_hidden")),
        *((name, Int) for name in ("block_size", "vocab_size", "precision", "norm", "activation")),
        ("norm_eps", ctypes.c_float),
        *((name, Pointer) for name in ("wte", "wpe", "cos_TP", "sin_TP")),
        ("ln_f", NormWeights),
        ("lm_head", Linear),
        ("layers", Pointer),
    ]


class Cache(ctypes.Structure):
    """Pointers to the keys and values of each layer and slot."""

    _fields_ = [("kv", Pointer), ("capacities", Pointer), ("n_slots", Int), ("is_bfloat16", Int)]


class Batch(ctypes.Structure):
    """The rows of one forward pass."""

    _fields_ = [
        ("n_rows", Int),
        ("n_scored", Int),
        *((name, Pointer) for name in ("ids", "slots", "positions", "scored")),
    ]


class Entry(ctypes.Structure):
    """One line of the library's `abi_layout()`."""

    _fields_ = [("name", ctypes.c_char_p), ("value", Int)]


STRUCTURES: tuple[type[ctypes.Structure], ...] = (NormWeights, Linear, Layer, Model, Cache, Batch)
ENUMS = {"Precision": PRECISIONS, "Norm": NORMS, "Activation": ACTIVATIONS}


def expected_layout() -> dict[str, int]:
    """Version, enumerators, structure sizes and field offsets in bytes, as `abi_layout()` of abi.h lists them."""
    layout = {"ABI_VERSION": ABI_VERSION}
    for enum, names in ENUMS.items():
        layout |= {f"{enum}.{name.upper()}": value for value, name in enumerate(names)}
    for structure in STRUCTURES:
        layout[structure.__name__] = ctypes.sizeof(structure)
        fields = [field[0] for field in structure._fields_]
        layout |= {f"{structure.__name__}.{field}": getattr(structure, field).offset for field in fields}
    return layout


def require_matching(library: ctypes.CDLL) -> None:
    """Check a library's version, enumerators, structure sizes and field offsets.

    Raises:
        AbiError: one of them differs; names the first.
    """
    try:
        function = library.abi_layout
    except AttributeError:
        raise AbiError("the compiled library has no abi_layout; csrc/abi.h and abi.py do not match") from None
    function.argtypes, function.restype = [], ctypes.POINTER(Entry)
    entries, found = function(), dict[str, int]()
    while name := entries[len(found)].name:
        found[name.decode("ascii")] = entries[len(found)].value
    expected = expected_layout()
    for key in [*expected, *found]:
        if found.get(key) != expected.get(key):
            raise AbiError(
                f"the compiled library has {key} = {found.get(key)}, expected {expected.get(key)}; "
                "csrc/abi.h and abi.py do not match"
            )
