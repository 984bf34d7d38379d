"""The production GPT. It knows no ranks, devices, logging, files or HTTP: those are applied from outside.

In reading order:

    config.py         GPTConfig: sizes, and the six choices
    gpt.py            attention, block, GPT
    layers.py         norms, MLPs, positions
    numerics.py       precision of sums
    attention.py      two ways to compute attention over a window
    dropout.py        dropout that a compiler can vectorise
    loss.py           losses as sums over targets
    cache.py          the KV cache
    packed.py         several sequences in one row
    packing.py        which sequences share a row
    uninitialized.py  a GPT without weights
    inspect.py        attention maps, residual stream, logit lens
"""
