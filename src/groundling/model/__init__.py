"""The production GPT, independent of ranks, devices, logging, files and HTTP.

In reading order:

    config.py         GPTConfig: sizes, and the six choices
    gpt.py            attention, block, GPT
    layers.py         norms, MLPs, position encodings
    context.py        AttentionContext: what new positions attend to besides each other
    numerics.py       precision of sums
    attention.py      two implementations of causal attention for training
    dropout.py        dropout that a compiler can vectorise
    loss.py           losses as sums over targets
    cache.py          KV cache
    packing.py        several sequences in one row
    packer.py         which examples are packed into a micro-batch
    uninitialized.py  a GPT without weights
    inspect.py        attention maps, residual stream, logit lens
"""
