"""Rewards of replies.

In reading order:

    model.py      a GPT with a head that scores each position
    train.py      `groundling reward`: trains it on rankings
    metrics.py    accuracy on held-out pairs, calibration
    functions.py  rewards for PPO and GRPO: the model, or a Python function
"""
