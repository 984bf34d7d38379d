"""Optimizers.

In reading order:

    optimizers.py  AdamW and Muon, and their parameter groups
    muon.py        Muon
    schedule.py    the learning rate
    ema.py         an exponential moving average of the weights
"""
