"""Optimizers.

In reading order:

    optimizers.py  AdamW and Muon: which parameter is updated by what
    muon.py        Muon
    schedule.py    the learning rate
    ema.py         an exponential moving average of the weights
"""
