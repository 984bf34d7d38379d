"""Alignment, from a base model to a chat model: fine-tuning, rankings, rewards, and optimising against them.

In reading order:

    stage.py             what all stages share: settings, run folder, checkpoints, metrics, summary
    arguments.py         their command line
    checkpoint.py        their checkpoints
    chat_vocab.py        special tokens of a conversation
    data.py              encoded conversations and prompts, and the held-out split
    example_loader.py    shuffled epochs of examples
    example_training.py  the training of SFT, reward model and DPO
    lora.py              low-rank adapters
    sft.py               supervised fine-tuning
    dpo.py               direct preference optimisation
    replies.py           batched sampling of replies
    logprobs.py          log-probabilities of replies under a policy
    chat.py              `groundling chat`
    preferences/         rankings: collected, simulated, stored, measured, encoded
    reward/              the reward model and reward functions
    rl/                  PPO and GRPO
    report/              the comparison of all stages
    pipeline/            `groundling chatgpt`: all stages one after another
"""
