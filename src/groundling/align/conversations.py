"""The conversations that a stage learns from or draws its prompts from, as ids: your own, or Shakespeare's."""

from dataclasses import dataclass
from pathlib import Path

from groundling.data.dialogues import MAX_PROMPT, prompts, shakespeare_dialogues
from groundling.data.examples import (
    LEAST_IDS,
    Conversation,
    Counts,
    Encoded,
    Messages,
    encode_conversation,
    encode_prompt,
    read_conversations,
)
from groundling.errors import DataError, require
from groundling.text.chat import ChatFormat
from groundling.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ChatDataConfig:
    """Conversations."""

    path: Path | None = None
    """JSONL of chats, or Alpaca's form; None: the speeches of Tiny Shakespeare's plays, each answered by the next."""
    val_path: Path | None = None
    """What it is measured by; None: the last tenth of path."""
    max_prompt: int = MAX_PROMPT
    """Of the speeches: characters of what the user says, each time; longer ones lose their beginning."""
    max_reply: int = 120
    """Of the speeches: characters of what the assistant says, each time; longer ones end after a sentence."""
    max_turns: int = 2
    """Of the speeches: replies in one conversation at most."""

    def __post_init__(self) -> None:
        require(self.val_path is None or self.path is not None, "data.val_path needs data.path")
        for name in ("max_prompt", "max_reply", "max_turns"):
            require(getattr(self, name) >= 1, f"data.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Conversations:
    """Both splits, as text and as ids."""

    chat: ChatFormat
    tokenizer: Tokenizer
    texts: tuple[list[Conversation], list[Conversation]]
    train: list[Encoded]
    val: list[Encoded]
    counts: tuple[Counts, Counts]

    def lines(self) -> list[str]:
        """What became of the examples, for people."""
        return [f"{name:<12}{counts.line()}" for name, counts in zip(("train", "validation"), self.counts, strict=True)]

    def train_prompts(self, max_ids: int) -> list[list[int]]:
        """What is asked in the training split, as ids; none twice."""
        return self._prompts(0, max_ids)

    def prompts(self, n: int, max_ids: int) -> list[list[int]]:
        """The first `n` different prompts of the validation split, as ids."""
        return self._prompts(1, max_ids)[:n]

    def messages(self, split: int) -> list[Messages]:
        """What is asked in a split (0: training, 1: validation), as messages; none twice."""
        return list(dict.fromkeys(prompts(self.texts[split])))

    def _prompts(self, split: int, max_ids: int) -> list[list[int]]:
        counts = Counts()
        found = [
            encode_prompt(messages, self.chat, self.tokenizer, max_ids, counts) for messages in self.messages(split)
        ]
        different = [list(ids) for ids in dict.fromkeys(tuple(ids) for ids in found if ids)]
        if not different:
            raise DataError(f"there is no prompt to reply to: {counts.line()}")
        return different


def prompt_room(block_size: int, max_new_tokens: int) -> int:
    """How many ids a prompt may have where a reply may have so many.

    Raises:
        ConfigError: there is no room for one.
    """
    require(
        max_new_tokens <= block_size - LEAST_IDS,
        f"max_new_tokens is {max_new_tokens}, and the model's context has {block_size} positions, of which a prompt "
        f"needs {LEAST_IDS} at least; it can be {block_size - LEAST_IDS} at most",
    )
    return block_size - max_new_tokens


def prepare_conversations(
    config: ChatDataConfig, chat: ChatFormat, tokenizer: Tokenizer, block_size: int
) -> Conversations:
    """Read both splits, and turn them into ids that fit into a row.

    Raises:
        DataError: a file cannot be read, or nothing is left of it.
    """
    train, val = _read(config)
    counts = Counts(), Counts()
    encoded = [
        [
            example
            for conversation in part
            if (example := encode_conversation(conversation, chat, tokenizer, block_size, count)) is not None
        ]
        for part, count in zip((train, val), counts, strict=True)
    ]
    if not encoded[0]:
        raise DataError(f"no conversation is left to learn from: {counts[0].line()}")
    return Conversations(chat, tokenizer, (train, val), encoded[0], encoded[1], counts)


def _read(config: ChatDataConfig) -> tuple[list[Conversation], list[Conversation]]:
    if config.path is None:
        return shakespeare_dialogues(
            max_prompt=config.max_prompt, max_reply=config.max_reply, max_turns=config.max_turns
        )
    train = read_conversations(config.path)
    if config.val_path is not None:
        return train, read_conversations(config.val_path)
    n_val = max(1, len(train) // 10)
    if len(train) < 2:
        raise DataError(f"{config.path} has {len(train)} conversations; one is kept to measure by, so 2 are needed")
    return train[:-n_val], train[-n_val:]
