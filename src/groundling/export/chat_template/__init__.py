"""Chat templates in Jinja.

In reading order:

    jinja.py        our templates as Jinja
    escapes.py      escaping of special tokens in the content of messages
    rendering.py    rendering of a foreign template
    probe.py        the sandboxed process that renders it
    recognition.py  conversion of a foreign template to one of ours
"""
