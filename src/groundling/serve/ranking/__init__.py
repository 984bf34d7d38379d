"""The API of the ranking page.

In reading order:

    routes.py           its routes
    prompts.py          prompts to rank replies to
    question_queue.py   open questions
    store.py            the thread that owns the rankings file
    ranking_cache.py    the rankings file, with cached counts
    reward_training.py  `groundling reward` as a child process
"""
