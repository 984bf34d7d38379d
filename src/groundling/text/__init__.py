"""Tokenizers and chat templates.

In reading order:

    tokenizer.py       the protocol, and checks that all share
    char.py            one id a character
    byte_pieces.py     ids to text, where pieces are bytes
    bpe.py             byte-level BPE, by tokenizers
    gpt2.py            GPT-2's, by tiktoken
    sentence_piece.py  SentencePiece
    serialize.py       saving and loading
    libraries.py       the adapters above, from JSON
    build.py           a tokenizer for a text
    trainers.py        training by a library, in a process of its own
    chunking.py        where a text may be cut
    chat/              chat templates: messages to ids and back
"""
