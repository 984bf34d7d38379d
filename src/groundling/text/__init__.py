"""Tokenizers and chat templates.

In reading order:

    tokenizer.py       the protocol, and shared checks
    char.py            one id per character
    byte_pieces.py     ids to text, for byte-level tokenizers
    bpe.py             byte-level BPE, by tokenizers
    gpt2.py            GPT-2's, by tiktoken
    sentence_piece.py  SentencePiece
    serialize.py       saving and loading
    libraries.py       library tokenizers from JSON
    build.py           build or train a tokenizer
    trainers.py        training by a library in a child process
    chunking.py        safe cut points
    chat/              chat templates: messages to ids and back
"""
