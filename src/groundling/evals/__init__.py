"""Measuring a model.

In reading order:

    loss.py        validation loss, and an estimate of the training loss
    statistics.py  intervals, kappa, Bradley-Terry
"""
