"""`groundling chatgpt`: every stage of a small ChatGPT.

In reading order:

    chatgpt.py        the verb: which commands, in which order
    step.py           one command: its inputs and outputs, whether it is done
    time_estimate.py  how long it will take
"""
