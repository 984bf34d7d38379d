"""Training of one rung, and its results.

In reading order:

    begin.py      model, data and optimizer
    short_run.py  training in one go
    long_run.py   training for hours, with checkpoints
    results.py    losses, and the table of them
    chart.py      the figure
"""
