"""The speedrun: a fixed recipe, timed as a whole.

In reading order:

    run.py      `groundling speedrun`
    recipes.py  a recipe, its teachers, and their processes
    report.py   results of each seed, and their table
"""
