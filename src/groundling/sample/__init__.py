"""Sampling: from logits to text.

In reading order:

    sampler.py      SamplingConfig, and the choice of the next token
    filters.py      top-k, top-p and other filters of logits
    request.py      one sample: tokens, random numbers, slot
    runner.py       the model runner's protocol, and PyTorch's
    auto_runner.py  PyTorch first, compiled code when it is ready and faster
    native/         the decoding step in C++
    quantize.py     weights in bfloat16 and int8
    slots.py        admission of samples to slots, and memory for them
    speculative.py  speculative decoding
    engine.py       the decoding engine: one step for all running samples
    generate.py     generate and stream
    detokenize.py   ids to text, up to a stop string; which characters each became
    cli.py          `groundling sample`
"""
