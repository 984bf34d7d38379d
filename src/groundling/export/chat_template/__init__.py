"""Chat templates in Jinja.

In reading order:

    jinja.py        ours as Jinja
    escapes.py      special tokens in the content of messages, broken up
    rendering.py    a foreign template, rendered
    probe.py        the process that renders it
    recognition.py  a foreign template as one of ours
"""
