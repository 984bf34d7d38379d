"""The decoding step in C++, compiled at run time for this processor.

In reading order:

    build.py       compiles csrc/ once, and loads it
    runner.py      a GPT as pointers and packed matrices
    comparison.py  whether it is faster than PyTorch here
    csrc/          decode.cpp, attention.h, vectors.h, simd.h, thread_team.h
"""
