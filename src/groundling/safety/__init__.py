"""The safety stage: rules and a classifier for prompts and replies.

In reading order:

    stream.py      the stage: what it lets pass, as text arrives
    rules.py       the rules, from TOML (default.toml)
    finders.py     what every rule has: a finder in a text that grows
    patterns.py    the rule `pattern`: regular expressions in linear time
    words.py       the rule `words`: words and phrases
    classifier.py  a linear classifier of short texts
    training.py    its training
    cli.py         `groundling safety`
"""
