"""From a base model to one that answers: fine-tuning, rankings, rewards, and optimising against them.

In reading order:

    stage.py             what all stages share: settings, run folder, checkpoints, metrics, summary
    arguments.py         their command line
    checkpoint.py        their checkpoints
    chat_vocab.py        ids for the structure of a conversation
    data.py              conversations and prompts as ids, and which are held out
    example_loader.py    shuffled epochs of examples
    example_training.py  the loop of SFT, reward model and DPO
    lora.py              low-rank adapters
    sft.py               supervised fine-tuning
    dpo.py               direct preference optimisation
    replies.py           replies of a chat model, many at a time
    logprobs.py          their log-probabilities under a policy
    chat.py              `groundling chat`
    preferences/         rankings: by people or simulated, kept, counted, encoded
    reward/              the reward model, and reward functions
    rl/                  PPO and GRPO
    report/              the comparison of all stages
    pipeline/            `groundling chatgpt`: all stages one after another
"""
