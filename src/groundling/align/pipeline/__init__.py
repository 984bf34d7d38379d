"""`groundling chatgpt`: every stage of a small ChatGPT.

In reading order:

    chatgpt.py        the verb: runs the steps that are not done
    recipe.py         the settings of each step, and the steps with their inputs and outputs
    step.py           one step: whether it is done, how it resumes
    command_line.py   a config as the command line to print
    time_estimate.py  how long the steps will take
"""
