"""Evaluate a model.

In reading order:

    loss.py        validation loss, estimate of the training loss
    statistics.py  intervals, kappa, Bradley-Terry
"""
