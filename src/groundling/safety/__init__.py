"""Safety filter: rules and a classifier for prompts and replies.

In reading order:

    stream.py      the filter for streamed text
    rules.py       rules, read from TOML (default.toml)
    finders.py     interface of a rule's search in streamed text
    patterns.py    `pattern` rules: regular expressions in linear time
    words.py       `words` rules: words and phrases
    classifier.py  a linear classifier of short texts
    training.py    its training
    cli.py         `groundling safety`
"""
