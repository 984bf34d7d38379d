"""Rankings: collected, simulated, stored, measured, encoded.

In reading order:

    judgement.py        one answer of one rater
    store.py            a store of judgements, with JSON Lines import and export
    database.py         its SQLite file
    terminal.py         `groundling rank`: rank replies in the terminal
    measures.py         gold measures of a text
    simulated_rater.py  a noisy rater that follows a measure
    simulate.py         `groundling rankings simulate`
    agreement.py        agreement of raters, position bias, strength of models
    encoding.py         rankings and preference files as ids
    cli.py              `groundling rankings`
"""
