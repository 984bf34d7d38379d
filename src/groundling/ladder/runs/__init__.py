"""Train one rung, and record its results.

In reading order:

    begin.py      model, data and optimizer
    short_run.py  training without checkpoints
    long_run.py   training for hours, with checkpoints
    results.py    losses, and their table
    chart.py      the figure
"""
