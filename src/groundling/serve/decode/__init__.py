"""Decoding for all clients.

In reading order:

    worker.py      the thread that owns all models
    fair_queue.py  samples waiting for a slot, fair between clients
    stream.py      tokens, from that thread to the event loop
"""
