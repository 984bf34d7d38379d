"""Sampling: from logits to text.

In reading order:

    sampler.py      SamplingConfig, and choosing the next token
    filters.py      top-k, top-p and other filters of logits
    request.py      one request: tokens, random numbers, slot
    runner.py       the ModelRunner protocol, and the runner in PyTorch
    auto_runner.py  PyTorch first, the native decoder when it is ready and faster
    native/         the decoding step in C++
    quantize.py     weights in bfloat16 and int8
    slots.py        admission of requests to slots, and their memory
    speculative.py  speculative decoding
    engine.py       the decoding engine: one step for all running requests
    scheduler.py    run_all: requests through an engine, first come, first served
    generate.py     generate and stream
    detokenize.py   ids to text, up to a stop string; the characters of each id
    cli.py          `groundling sample`
"""
