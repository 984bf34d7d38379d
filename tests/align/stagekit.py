"""A tiny model, tiny conversations, and a judge that anybody can check: how many letters are e."""

import json
from pathlib import Path

import torch

from groundling.align.preferences.judgement import Candidate, Judgement
from groundling.align.preferences.simulated_rater import SimulatedRater
from groundling.align.preferences.store import Rankings
from groundling.bundle import save_bundle
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.text.char import CharTokenizer
from groundling.text.chat.messages import Message

LETTERS = "abcde "
FAST = (
    *("--runtime.device", "cpu", "--runtime.dtype", "float32"),
    *("--optim.lr", "1e-2", "--schedule.warmup-steps", "2", "--log-every", "5"),
)


def e_share(text: str) -> float:
    """The measure: the part of a text that is the letter e."""
    return text.count("e") / max(1, len(text))


def reward(prompt: str, reply: str) -> float:
    """The same as a reward function; the prompt does not matter."""
    assert set(prompt) <= set(LETTERS)
    return e_share(reply)


def e_share_of(prompt: str, reply: str) -> float:
    """The same again, by another name."""
    return reward(prompt, reply)


def write_base(folder: Path, **fields: object) -> Path:
    """A bundle that knows nothing yet."""
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 48, "vocab_size": len(LETTERS)}
    model = GPT(GPTConfig(**{**sizes, **fields}))
    save_bundle(folder, model, CharTokenizer("".join(sorted(LETTERS))))
    return folder


def failing(prompt: str, reply: str) -> float:
    """A reward function with a bug."""
    return float({"e": 1}[reply])


def write_conversations(path: Path, n: int = 120, reply: tuple[int, int] = (4, 4)) -> Path:
    """Prompts of letters, and replies of others, so many of them."""
    draw = torch.Generator().manual_seed(1)

    def word(least: int, most: int) -> str:
        length = int(torch.randint(least, most + 1, (1,), generator=draw))
        return "".join("abcde"[i] for i in torch.randint(5, (length,), generator=draw).tolist())

    rows = [
        {"messages": [{"role": "user", "content": word(3, 8)}, {"role": "assistant", "content": word(*reply)}]}
        for _ in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_rankings(path: Path, n: int = 240, noise: float = 0.05) -> Path:
    """Answers of a judge of e's, about replies that no model made."""
    draw, judge = torch.Generator().manual_seed(2), SimulatedRater(e_share, noise, 0)
    with Rankings(path) as rankings:
        for number in range(n):
            texts = ["".join("abcde"[i] for i in torch.randint(5, (6,), generator=draw).tolist()) for _ in range(4)]
            prompt = "".join("abcde"[i] for i in torch.randint(5, (6,), generator=draw).tolist())
            rankings.add(
                Judgement(
                    key=f"answer-{number}",
                    messages=(Message("user", prompt),),
                    candidates=tuple(Candidate(text, "nobody") for text in texts),
                    shown=(0, 1, 2, 3),
                    choice=judge.rank(number, texts),
                    rater="judge",
                    time="2026-01-01T00:00:00+00:00",
                )
            )
    return path
