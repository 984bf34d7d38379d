"""`groundling data dialogues|inspect`: examples written down, and shown as a model sees them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import tyro
from rich.console import Console
from rich.text import Text

from groundling import config
from groundling.data.corpus import TextConfig
from groundling.data.examples import shakespeare
from groundling.data.examples.conversations import (
    Conversation,
    Preference,
    holds_preferences,
    read_conversations,
    read_preferences,
)
from groundling.data.examples.encoding import Counts, encode_conversation, encode_preference
from groundling.data.tokenizer_cli import visible
from groundling.errors import require
from groundling.storage import atomic
from groundling.text.char import CharTokenizer
from groundling.text.chat.messages import ROLES
from groundling.text.chat.role_tokens import RoleTokens
from groundling.text.chat.template import ChatTemplate
from groundling.text.tokenizer import Tokenizer

BLOCK_SIZE = 256
"""The lecture's."""
LEARNED, READ, STRUCTURE = "bold green", "dim", "magenta"


@dataclass(frozen=True, kw_only=True)
class DialoguesConfig:
    """Write the dialogues of plays as JSON lines, as fine-tuning takes them."""

    out: tyro.conf.Positional[Path]
    """The file to write, for example train.jsonl."""
    split: shakespeare.Split = "train"
    """Of which part of the text: what pretraining trains on, or what it holds out."""
    max_prompt: int = shakespeare.MAX_PROMPT
    """Characters of what the user says, each time."""
    max_reply: int = shakespeare.MAX_REPLY
    """Characters of what the assistant says, each time."""
    max_turns: int = 3
    """Pairs of prompt and reply in a dialogue at most."""
    data: TextConfig = field(default_factory=TextConfig)


def write_dialogues(argv: list[str]) -> int:
    """The verb `data dialogues`."""
    chosen = config.parse(DialoguesConfig, argv, "groundling data dialogues")
    found = shakespeare.dialogues(
        "".join(chosen.data.text_files().pieces()),
        chosen.split,
        max_prompt=chosen.max_prompt,
        max_reply=chosen.max_reply,
        max_turns=chosen.max_turns,
        val_fraction=chosen.data.val_fraction,
    )
    lines = (json.dumps(conversation.to_row(), ensure_ascii=False) + "\n" for conversation in found)
    atomic.write_text(chosen.out, "".join(lines))
    print(f"{chosen.out}: {len(found):,} dialogues of the {chosen.split} part")
    return 0


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Show examples as a model sees them: what is learned in green, or in [brackets] where there are no colours."""

    bundle: tyro.conf.Positional[str]
    """Whose tokenizer and context: a bundle, a checkpoint or a run; none: the file's own characters."""
    file: tyro.conf.Positional[Path]
    """Conversations or preference pairs."""
    n: int = 3
    """How many are shown; all are counted."""
    block_size: int | None = None
    """The context in tokens; the model's, or the lecture's 256, when absent."""

    def __post_init__(self) -> None:
        require(self.n >= 0, f"n is {self.n}; it must be at least 0")


def inspect(argv: list[str]) -> int:
    """The verb `data inspect`."""
    chosen = config.parse(InspectConfig, argv, "groundling data inspect")
    examples: list[Conversation] | list[Preference] = (
        read_preferences(chosen.file) if holds_preferences(chosen.file) else read_conversations(chosen.file)
    )
    tokenizer, chat, block_size = _format(chosen.bundle, examples)
    counts, n_shown, console = Counts(), 0, Console()
    for example in examples:
        parts = _encode(example, chat, tokenizer, chosen.block_size or block_size, counts)
        if parts and n_shown < chosen.n:
            n_shown += 1
            console.print(f"{example.where}", style="bold", markup=False, highlight=False)
            for name, ids, said in parts:
                shown = show(ids, said, chat, tokenizer, console.color_system is not None)
                console.print(Text.assemble(f"{name}:\n" if name else "", shown), soft_wrap=True)
            console.print()
    console.print(counts.line(), highlight=False, markup=False)
    return 0


def _format(path: str, examples: Sequence[Conversation] | Sequence[Preference]) -> tuple[Tokenizer, ChatTemplate, int]:
    if path != "none":
        from groundling.bundle import load_bundle

        bundle = load_bundle(path)
        return bundle.tokenizer, bundle.chat or RoleTokens.after(bundle.tokenizer.vocab_size), bundle.config.block_size
    tokenizer = CharTokenizer.from_text("".join(text for example in examples for text in _texts(example)) or " ")
    return tokenizer, RoleTokens.after(tokenizer.vocab_size), BLOCK_SIZE


def _texts(example: Conversation | Preference) -> list[str]:
    if isinstance(example, Conversation):
        return [message.content for message in example.messages]
    return [*(message.content for message in example.prompt), example.chosen, example.rejected]


def _encode(
    example: Conversation | Preference, chat: ChatTemplate, tokenizer: Tokenizer, max_ids: int, counts: Counts
) -> list[tuple[str, list[int], list[bool]]]:
    """The sequences of an example: name, ids, what is learned; none when it is left out."""
    if isinstance(example, Conversation):
        encoded = encode_conversation(example, chat, tokenizer, max_ids, counts)
        return [("", encoded.ids, encoded.said)] if encoded else []
    pair = encode_preference(example, chat, tokenizer, max_ids, counts)
    if pair is None:
        return []
    before = [False] * len(pair.prompt)
    return [
        (name, pair.prompt + reply, before + [True] * len(reply))
        for name, reply in (("chosen", pair.chosen), ("rejected", pair.rejected))
    ]


def show(ids: list[int], said: list[bool], chat: ChatTemplate, tokenizer: Tokenizer, in_colour: bool) -> Text:
    """A sequence for people, each message on a line of its own; only structure can begin a line.

    Args:
        ids: of a conversation.
        said: which of them are learned.
        chat: the ids of its structure.
        tokenizer: its words.
        in_colour: colours mark what is learned; else brackets do.
    """
    names = chat.names(tokenizer)
    openings = {f"<{names[first]}>" for role in ROLES if isinstance(first := chat.opening(role)[0], int)}
    shown = Text()
    for is_learned, run in groupby(zip(ids, said, strict=True), key=lambda pair: pair[1]):
        parts = list(_parts([id for id, _ in run], names, tokenizer))
        if is_learned and not in_colour:
            parts = [("[", False), *parts, ("]", False)]
        for words, is_structure in parts:
            if is_structure and words in openings and shown.plain:
                shown.append("\n")
            style = STRUCTURE if is_structure and not is_learned else LEARNED if is_learned else READ
            shown.append(words, style if in_colour else "")
    return shown


def _parts(ids: list[int], names: dict[int, str], tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """Runs of words, and signs of structure: (what is shown, whether it is structure)."""
    for is_structure, run in groupby(ids, key=lambda id: id in names):
        if is_structure:
            yield from ((f"<{names[id]}>", True) for id in run)
        else:
            yield "".join(map(visible, tokenizer.decode(list(run)))), False
