"""The special tokens that an export adds to a tokenizer of ours, which has none: their text, their ids and their rows.

A model that chats has rows for the structure of a conversation already; here its ids get a text. Other models get an
end of text, because programs ask for one (lm-eval reads it first, batches are padded with it), and a tokenizer of
characters gets an unknown token, because the library's word list needs one. These two use rows that the model has to
spare, or rows that only the exported files have: copies of the rarest token's row. The logits of all other ids stay
as they are to the bit, and `groundling import hf` leaves those rows out again.

Shapes: B batch, V vocabulary, C n_embd.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from groundling.bundle import Bundle
from groundling.text.chat import ChatFormat
from groundling.text.tokenizer import CharTokenizer, Tokenizer
from groundling.text.vendors import END_OF_TEXT

UNKNOWN = "<|unk|>"
CHAT_TEXTS = {
    "end": "<|turn_end|>",
    "system": "<|system_start|>",
    "user": "<|user_start|>",
    "assistant": "<|assistant_start|>",
}
"""Texts that no other model's template uses: programs recognise some templates by such texts and lay them out anew."""
STARTS = 256
"""At most this many single tokens are tried to find the rarest one."""


@dataclass(frozen=True, kw_only=True)
class Additions:
    """Special tokens beside a tokenizer's own ids."""

    texts: dict[str, int]
    """Text to id, ascending; the ids follow on the tokenizer's without a gap."""
    end: int
    """The id that ends a text, or a turn; may be the tokenizer's own."""
    unknown: int | None
    """The id of a character that the tokenizer does not know, if its kind has none."""
    never_drawn: list[int]
    """Ids that no reply and no text holds: generation leaves them out."""
    n_ids: int
    """Rows of the exported model: at least the model's own."""

    def text_of(self, token: int) -> str:
        """The text of an added id."""
        return next(text for text, id in self.texts.items() if id == token)


def additions_of(bundle: Bundle, taken: Collection[str] = (), *, has_unknown: bool = True) -> Additions:
    """What has to be added to a bundle's tokenizer.

    Args:
        bundle: the model to export.
        taken: texts that are tokens already; an added one gets another text.
        has_unknown: whether the target needs an id for unknown characters.
    """
    first, own_end = bundle.tokenizer.vocab_size, getattr(bundle.tokenizer, "end_of_text", None)
    texts: dict[str, int] = {}
    if bundle.chat is not None:
        ids = bundle.chat.to_json()
        texts = {_free(CHAT_TEXTS[name], taken): ids[name] for name in sorted(ids, key=ids.__getitem__)}
        end = bundle.chat.end
    elif own_end is not None:
        end = own_end
    else:
        texts[_free(END_OF_TEXT, taken)] = end = first
    unknown = first + len(texts) if has_unknown and needs_unknown(bundle.tokenizer) else None
    if unknown is not None:
        texts[_free(UNKNOWN, taken)] = unknown
    n_ids = max(bundle.config.vocab_size, first + len(texts))
    # A tokenizer's own end of text is trained on, and the end of a turn too; the added one is not.
    drawn = end if bundle.chat is not None or own_end is not None else first - 1
    return Additions(
        texts=texts,
        end=end,
        unknown=unknown,
        never_drawn=[id for id in range(first, n_ids) if id > drawn],
        n_ids=n_ids,
    )


def needs_unknown(tokenizer: Tokenizer) -> bool:
    """Whether a character can be unknown to a tokenizer, with nothing to put in its place."""
    return isinstance(tokenizer, CharTokenizer) and tokenizer.unknown == "error"


def chat_texts(additions: Additions, chat: ChatFormat) -> dict[str, str]:
    """The text of each part of a conversation's structure: end, system, user, assistant."""
    return {name: additions.text_of(id) for name, id in chat.to_json().items()}


def _free(text: str, taken: Collection[str]) -> str:
    """The text, or one like it that is no token yet."""
    while text in taken:
        text = f"{text[:-2]}_|>"
    return text


@torch.no_grad()
def rarest_token(bundle: Bundle) -> int:
    """The token that the model finds least likely at its likeliest, among all that follow a single token.

    An added token gets its weights. No row of numbers keeps a logit low for every text: zeros win wherever all
    others are negative. A copy of a row never rises above that row, so greedy text never ends (of equals the first is
    taken, and the copy is the last), and drawn text ends as often as the rarest token stands in it.
    """
    n_tokens = bundle.tokenizer.vocab_size
    starts_B1 = torch.arange(min(n_tokens, STARTS), device=bundle.model.wte.weight.device)[:, None]
    logits_BV = bundle.model(starts_B1)[:, -1, :n_tokens].float()
    return int(logits_BV.softmax(-1).amax(0).argmin())


VOCABULARY_ROWS = ("wte.weight", "lm_head.weight")
"""The matrices with a row for each id; a tied one is there once."""


def with_copies(weights: Mapping[str, Tensor], row: int, n_rows: int) -> dict[str, Tensor]:
    """Weights with copies of one row at the end of each matrix VC that has a row for each id.

    Args:
        weights: as `plain_state_dict` gives them.
        row: which row is copied.
        n_rows: how many copies.
    """
    copied = {
        name: torch.cat([weights[name], weights[name][row].expand(n_rows, -1)])
        for name in VOCABULARY_ROWS
        if name in weights
    }
    return {**weights, **copied}


def without_copies(weights: Mapping[str, Tensor], row: int, n_rows: int) -> dict[str, Tensor] | None:
    """Undo `with_copies`; None where the last rows are no longer copies, because somebody has trained them."""
    kept = {name: weights[name][:-n_rows] for name in VOCABULARY_ROWS if name in weights}
    rows = [(weights[name][-n_rows:], part[row]) for name, part in kept.items()]
    if not all(torch.equal(copies, original.expand_as(copies)) for copies, original in rows):
        return None
    return {**weights, **{name: part.clone() for name, part in kept.items()}}
