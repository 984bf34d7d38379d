"""Files.

In reading order:

    files.py     opens and removes files that others may have made
    atomic.py    writes files that survive a crash
    manifest.py  sizes and SHA-256 of a folder's files
    tensors.py   reads safetensors
    download.py  verified downloads
"""
