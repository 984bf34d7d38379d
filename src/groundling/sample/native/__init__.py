"""The decoding step in C++, compiled at run time for this processor. README.md is the overview.

In reading order:

    build.py       compile csrc/, cache the library, load it
    abi.py         the structures of csrc/abi.h, and the check that a library matches them
    runner.py      NativeRunner: a GPT as pointers and packed matrices
    comparison.py  timing against PyTorch
    csrc/          the C++ sources
"""
