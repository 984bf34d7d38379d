"""PPO and GRPO.

In reading order:

    rollout.py    replies to prompts, their rewards, and minibatches of them
    rounds.py     a round of replies, and its figures
    objective.py  the clipped loss
    trainer.py    the rounds: sample, score, update, record
    ppo.py        `groundling ppo`: advantages from a value model
    grpo.py       `groundling grpo`: advantages within a group of replies
"""
