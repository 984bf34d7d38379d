"""The API of the ranking page.

In reading order:

    routes.py           its routes
    prompts.py          prompts to rank replies to
    question_queue.py   questions that wait for an answer
    store.py            the thread that touches the file of rankings
    ranking_cache.py    that file, opened once and counted
    reward_training.py  `groundling reward` as a child process
"""
