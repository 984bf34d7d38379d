"""`groundling data inspect`: show examples as the model sees them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import tyro
from rich.console import Console
from rich.text import Text

from groundling import config
from groundling.data.examples.conversations import (
    Conversation,
    Preference,
    holds_preferences,
    read_conversations,
    read_preferences,
)
from groundling.data.examples.encoding import EncodingCounts, encode_conversation, encode_preference
from groundling.data.tokenizer_cli import visible
from groundling.errors import require
from groundling.text.char import CharTokenizer
from groundling.text.chat.messages import ROLES
from groundling.text.chat.role_tokens import RoleTokens
from groundling.text.chat.template import ChatTemplate
from groundling.text.tokenizer import Tokenizer

BLOCK_SIZE = 256
"""The context length of the lecture's final model."""
TRAINED, CONTEXT, STRUCTURE = "bold green", "dim", "magenta"


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Show examples as the model sees them: tokens trained on in green, or in [brackets] without colours."""

    bundle: tyro.conf.Positional[str]
    """Take tokenizer and context from a bundle, a checkpoint or a run; none: use the file's own characters."""
    file: tyro.conf.Positional[Path]
    """Conversations or preference pairs."""
    n: int = 3
    """Number of examples to show; all are counted."""
    block_size: int | None = None
    """Context in tokens; None: the model's, or 256 without a model."""

    def __post_init__(self) -> None:
        require(self.n >= 0, f"n is {self.n}; it must be at least 0")


def main(argv: list[str]) -> int:
    """Run `groundling data inspect`."""
    chosen = config.parse(InspectConfig, argv, "groundling data inspect")
    examples: list[Conversation] | list[Preference] = (
        read_preferences(chosen.file) if holds_preferences(chosen.file) else read_conversations(chosen.file)
    )
    tokenizer, chat, block_size = _format(chosen.bundle, examples)
    counts, n_shown, console = EncodingCounts(), 0, Console()
    for example in examples:
        parts = _encode(example, chat, tokenizer, chosen.block_size or block_size, counts)
        if parts and n_shown < chosen.n:
            n_shown += 1
            console.print(f"{example.where}", style="bold", markup=False, highlight=False)
            for name, ids, loss_mask in parts:
                shown = show(ids, loss_mask, chat, tokenizer, console.color_system is not None)
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
    example: Conversation | Preference, chat: ChatTemplate, tokenizer: Tokenizer, max_ids: int, counts: EncodingCounts
) -> list[tuple[str, list[int], list[bool]]]:
    """Sequences of an example as (name, ids, loss mask); empty if the example is dropped."""
    if isinstance(example, Conversation):
        encoded = encode_conversation(example, chat, tokenizer, max_ids, counts)
        return [("", encoded.ids, encoded.loss_mask)] if encoded else []
    pair = encode_preference(example, chat, tokenizer, max_ids, counts)
    if pair is None:
        return []
    before = [False] * len(pair.prompt)
    return [
        (name, pair.prompt + reply, before + [True] * len(reply))
        for name, reply in (("chosen", pair.chosen), ("rejected", pair.rejected))
    ]


def show(ids: list[int], loss_mask: list[bool], chat: ChatTemplate, tokenizer: Tokenizer, in_colour: bool) -> Text:
    """Render a sequence with one message a line; only role tokens can start a line.

    Args:
        ids: token ids of a conversation.
        loss_mask: True for each id trained on.
        chat: its chat template.
        tokenizer: decodes the rest.
        in_colour: mark trained tokens by colour instead of brackets.
    """
    names = chat.names(tokenizer)
    openings = {f"<{names[first]}>" for role in ROLES if isinstance(first := chat.opening(role)[0], int)}
    shown = Text()
    for is_trained, run in groupby(zip(ids, loss_mask, strict=True), key=lambda pair: pair[1]):
        parts = list(_parts([id for id, _ in run], names, tokenizer))
        if is_trained and not in_colour:
            parts = [("[", False), *parts, ("]", False)]
        for words, is_structure in parts:
            if is_structure and words in openings and shown.plain:
                shown.append("\n")
            style = STRUCTURE if is_structure and not is_trained else TRAINED if is_trained else CONTEXT
            shown.append(words, style if in_colour else "")
    return shown


def _parts(ids: list[int], names: dict[int, str], tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """Split ids into text and structure: (text to show, is structure)."""
    for is_structure, run in groupby(ids, key=lambda id: id in names):
        if is_structure:
            yield from ((f"<{names[id]}>", True) for id in run)
        else:
            yield "".join(map(visible, tokenizer.decode(list(run)))), False
