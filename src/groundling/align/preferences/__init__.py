"""Rankings of replies by people or by a simulated rater: collect, store, analyse, encode.

In reading order:

    judgement.py        one rater's ranking of the replies to a prompt
    store.py            a file of judgements; export and import as JSONL
    database.py         the SQLite file under it
    terminal.py         `groundling rank`: rank replies in the terminal
    measures.py         gold measures: scores of a text that a person can check
    simulated_rater.py  a noisy rater that follows a gold measure
    simulate.py         `groundling rankings simulate`
    agreement.py        agreement of raters, position bias, model scores
    encoding.py         rankings and preference files as token ids
    cli.py              `groundling rankings`
"""
