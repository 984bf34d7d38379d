"""Rankings: by people or simulated, kept, counted, encoded.

In reading order:

    judgement.py        one answer of one rater
    store.py            judgements in a file, and as lines of JSON
    database.py         the SQLite file under it
    terminal.py         `groundling rank`: rank replies in the terminal
    measures.py         numbers for a text that a person can check
    simulated_rater.py  a rater that follows a measure, with errors
    simulate.py         `groundling rankings simulate`
    agreement.py        agreement of raters, position bias, strength of models
    encoding.py         rankings and files of preferences as ids
    cli.py              `groundling rankings`
"""
