"""The API of the training page.

In reading order:

    routes.py   its routes
    folders.py  finding runs
    curves.py   their metrics, read incrementally
"""
