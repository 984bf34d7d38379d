"""Checkpoints on disk: whole or not there.

In reading order:

    checkpoint.py  of pretraining: bundle, training state, exact resume
    folder.py      the folder of them
    tensors.py     optimizers and random generators as tensors
"""
