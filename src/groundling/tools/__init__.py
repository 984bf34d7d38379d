"""Verbs that inspect a machine or a run.

In reading order:

    doctor.py  `groundling doctor`: hardware, settings, measured speed
    plot.py    `groundling plot`: loss curves
    verify.py  `groundling verify-checkpoint`
"""
