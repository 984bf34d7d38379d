"""Teachers (distillation, arXiv:1503.02531).

In reading order:

    table.py      a table of next-token distributions, from models or counts
    ngrams.py     counts
    objective.py  the loss with a teacher, whose weight fades
"""
