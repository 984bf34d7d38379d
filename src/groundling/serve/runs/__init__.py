"""The API of the training page.

In reading order:

    routes.py   its routes
    folders.py  which runs there are
    curves.py   their metrics, read as they grow
"""
