"""Training conversations and prompts as ids: from your own files, or dialogues of Tiny Shakespeare."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from groundling.bundle import ChatBundle
from groundling.data.examples.conversations import Conversation, holds_prompts, read_conversations, read_prompts
from groundling.data.examples.encoding import Encoded, EncodingCounts, encode_chat_prompt, encode_conversation
from groundling.data.examples.messages import Messages
from groundling.data.examples.shakespeare import MAX_PROMPT, prompts, shakespeare_dialogues
from groundling.errors import DataError, require
from groundling.system.progress import Progress

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ChatDataConfig:
    """Conversations."""

    path: Path | None = None
    """JSONL of conversations in any common format; None: dialogues from Tiny Shakespeare. Where only prompts are
    needed: {"prompt": ...} lines, or a .txt file with one prompt per line."""
    val_path: Path | None = None
    """Validation file; None: the last tenth of path."""
    max_prompt: int = MAX_PROMPT
    """Dialogues only: maximum length of a user message in characters; longer ones lose their beginning."""
    max_reply: int = 120
    """Dialogues only: maximum length of an assistant message in characters; longer ones are cut after a sentence."""
    max_turns: int = 2
    """Dialogues only: maximum number of replies per conversation."""

    def __post_init__(self) -> None:
        require(self.val_path is None or self.path is not None, "data.val_path needs data.path")
        for name in ("max_prompt", "max_reply", "max_turns"):
            require(getattr(self, name) >= 1, f"data.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Conversations:
    """Both splits as ids, and their prompts."""

    train: list[Encoded]
    val: list[Encoded]
    counts: tuple[EncodingCounts, EncodingCounts]
    prompts: "PromptSplits"

    def lines(self) -> list[str]:
        """How many examples of each split were kept, and why others were not."""
        return [f"{name:<12}{counts.line()}" for name, counts in zip(("train", "validation"), self.counts, strict=True)]


@dataclass(frozen=True)
class PromptSplits:
    """The prompts of both splits as messages, without duplicates."""

    train: list[Messages]
    val: list[Messages]
    """Disjoint from `train`."""

    @classmethod
    def of(cls, train: Sequence[Messages], val: Sequence[Messages]) -> "PromptSplits":
        """Remove duplicates from both splits."""
        known = dict.fromkeys(train)
        return cls(list(known), [messages for messages in dict.fromkeys(val) if messages not in known])


def encode_prompts(prompts: Sequence[Messages], bundle: ChatBundle, max_ids: int) -> dict[tuple[int, ...], Messages]:
    """Encode prompts in at most `max_ids` ids, without duplicates: ids -> messages.

    Raises:
        DataError: no prompt is left.
    """
    counts, found = EncodingCounts(), dict[tuple[int, ...], Messages]()
    for messages in prompts:
        ids = encode_chat_prompt(messages, bundle.chat, bundle.tokenizer, max_ids, counts)
        if ids is not None:
            found.setdefault(tuple(ids), messages)
    if not found:
        raise DataError(f"there is no prompt to reply to: {counts.line()}")
    return found


def prompt_room(block_size: int, max_new_tokens: int, least: int) -> int:
    """Maximum length of a prompt that leaves room for a reply.

    Args:
        block_size: the model's context.
        max_new_tokens: length limit of a reply.
        least: ids of the shortest conversation (`least_ids`).

    Raises:
        ConfigError: there is no room for a prompt.
    """
    require(
        max_new_tokens <= block_size - least,
        f"max_new_tokens is {max_new_tokens}, and the model's context has {block_size} positions, of which a prompt "
        f"needs at least {least}; it can be at most {block_size - least}",
    )
    return block_size - max_new_tokens


def prepare_conversations(config: ChatDataConfig, bundle: ChatBundle, max_ids: int) -> Conversations:
    """Read and encode both splits, each conversation in at most `max_ids` ids.

    Raises:
        DataError: a file cannot be read, or no conversation is left.
    """
    train, val = _read(config)
    counts = EncodingCounts(), EncodingCounts()
    with Progress("encoding the conversations", len(train) + len(val)) as progress:
        encoded: list[list[Encoded]] = [[], []]
        for part, examples, count in zip((train, val), encoded, counts, strict=True):
            for conversation in part:
                example = encode_conversation(conversation, bundle.chat, bundle.tokenizer, max_ids, count)
                examples += [] if example is None else [example]
                progress.advance(1)
    if not encoded[0]:
        raise DataError(f"no conversation is left to train on: {counts[0].line()}")
    return Conversations(encoded[0], encoded[1], counts, PromptSplits.of(prompts(train), prompts(val)))


def read_prompt_splits(config: ChatDataConfig) -> PromptSplits:
    """Read the prompts of both splits, from conversations or from files of prompts.

    Raises:
        DataError: a file cannot be read, or holds no prompt.
    """
    if config.path is None or not holds_prompts(config.path):
        return PromptSplits.of(*(prompts(part) for part in _read(config)))
    train = read_prompts(config.path)
    if config.val_path is None:
        return PromptSplits.of(*_cut(train, config.path, "prompts"))
    if holds_prompts(config.val_path):
        return PromptSplits.of(train, read_prompts(config.val_path))
    return PromptSplits.of(train, prompts(read_conversations(config.val_path)))


def _read(config: ChatDataConfig) -> tuple[list[Conversation], list[Conversation]]:
    if config.path is None:
        return shakespeare_dialogues(
            max_prompt=config.max_prompt, max_reply=config.max_reply, max_turns=config.max_turns
        )
    train = read_conversations(config.path)
    if config.val_path is not None:
        return train, read_conversations(config.val_path)
    return _cut(train, config.path, "conversations")


def _cut(rows: list[T], path: Path, what: str) -> tuple[list[T], list[T]]:
    """Split off the last tenth for validation."""
    n_val = max(1, len(rows) // 10)
    if len(rows) < 2:
        raise DataError(f"{path} has {len(rows)} {what}; one is held out for validation, so 2 are needed")
    return rows[:-n_val], rows[-n_val:]


class Example(Protocol):
    """An example with a prompt."""

    @property
    def messages(self) -> Messages:
        """The prompt."""
        ...


E = TypeVar("E", bound=Example)


def split(examples: Sequence[E], part: float) -> tuple[list[E], list[E]]:
    """Split examples into training and held-out ones; see `held_out`."""
    kept = held_out([example.messages for example in examples], part)
    train = [example for example, is_kept in zip(examples, kept, strict=True) if not is_kept]
    return train, [example for example, is_kept in zip(examples, kept, strict=True) if is_kept]


def held_out(prompts: Sequence[Messages], part: float) -> list[bool]:
    """Whether each example is held out: those of the last distinct prompts, so that no prompt is in both splits.

    Args:
        prompts: the prompt of each example.
        part: share of the prompts; unless 0, at least one of two, and at most half of them.
    """
    distinct = list(dict.fromkeys(prompts))
    n = min(len(distinct) // 2, max(1, round(part * len(distinct)))) if part else 0
    kept = set(distinct[len(distinct) - n :])
    return [messages in kept for messages in prompts]
