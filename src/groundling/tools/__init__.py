"""Verbs that look at a machine or a run.

In reading order:

    doctor.py  `groundling doctor`: what this machine has, and how fast it is
    plot.py    `groundling plot`: loss curves
    verify.py  `groundling verify-checkpoint`
"""
