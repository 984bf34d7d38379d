"""From text to batches of token ids.

In reading order:

    datasets.py       named data sets
    folders.py        text files of a path
    formats.py        detection of files that are not plain text
    row_formats.py    JSON and tables where text is expected
    text_files.py     text files as one stream of characters
    corpus.py         a tokenized text in two splits, cached
    token_file.py     the token file
    batches.py        seeded batches of windows
    examples/         conversations and preferences
    cli.py            `groundling data`
    dialogues.py      `groundling data dialogues`
    inspect.py        `groundling data inspect`
    tokenizer_cli.py  `groundling tokenizer`
"""
