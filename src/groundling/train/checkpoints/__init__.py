"""Checkpoints on disk, written atomically.

In reading order:

    checkpoint.py  checkpoints of pretraining: bundle and training state, for exact resume
    folder.py      the folder of checkpoints, whatever they hold
    tensors.py     optimizers and random generators as tensors
"""
