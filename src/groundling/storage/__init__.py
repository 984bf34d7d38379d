"""File access.

In reading order:

    files.py     opens and removes untrusted files
    atomic.py    atomic, durable writes
    manifest.py  sizes and SHA-256 of a folder's files
    tensors.py   reads safetensors files
    download.py  verified downloads
"""
