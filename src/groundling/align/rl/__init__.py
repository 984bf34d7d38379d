"""PPO and GRPO.

In reading order:

    rollout.py    sampled replies, their rewards and log-probabilities, and minibatches
    rounds.py     a round of replies, its checkpoint and metrics
    objective.py  the clipped loss
    trainer.py    the rounds: sample, score, update, record
    ppo.py        `groundling ppo`: advantages from a value model
    grpo.py       `groundling grpo`: advantages within a group of replies
"""
