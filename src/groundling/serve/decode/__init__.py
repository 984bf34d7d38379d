"""Decoding for all clients.

In reading order:

    worker.py  the thread that owns all models
    stream.py  tokens, from that thread to the event loop
"""
