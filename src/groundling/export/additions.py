"""The special tokens that an export adds to a tokenizer of ours, which has none: their text, their ids and their rows.

A model that chats has rows for the structure of a conversation already; here its ids get a text. Other models get an
end of text, because programs ask for one (lm-eval reads it first, batches are padded with it), and a tokenizer of
characters gets an unknown token, because the library's word list needs one. These two use rows that the model has to
spare, or rows that only the exported files have: copies of the rarest token's row. The weights of all other ids,
and so their logits, stay as they are, and `groundling import hf` leaves those rows out again.

Shapes: B batch, V vocabulary, C n_embd.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from groundling.bundle import Bundle
from groundling.text.char import CharTokenizer
from groundling.text.chat.role_tokens import RoleTokens
from groundling.text.chat.template import ChatTemplate
from groundling.text.gpt2 import END_OF_TEXT
from groundling.text.tokenizer import Tokenizer

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
    ends: tuple[int, ...]
    """The ids that end a text, or a turn; the first is the one to write. They may be the tokenizer's own."""
    end_is_known: bool
    """Whether the model has learned them."""
    unknown: int | None
    """The id of a character that the tokenizer does not know, if its kind has none."""
    never_drawn: list[int]
    """Ids that no reply and no text holds: generation leaves them out."""
    n_ids: int
    """Rows of the exported model: at least the model's own."""

    @property
    def end(self) -> int:
        """The first of the ends."""
        return self.ends[0]

    def text_of(self, token: int) -> str:
        """The text of an added id."""
        return next(text for text, id in self.texts.items() if id == token)


def additions_of(
    tokenizer: Tokenizer,
    chat: ChatTemplate | None,
    *,
    n_rows: int = 0,
    taken: Collection[str] = (),
    has_unknown: bool = True,
    own_end: int | None = None,
) -> Additions:
    """What has to be added to a tokenizer.

    Args:
        tokenizer: of the model to export.
        chat: how it lays a conversation out, if it does.
        n_rows: ids that the model has rows for.
        taken: texts that are tokens already; an added one gets another text.
        has_unknown: whether the target needs an id for unknown characters.
        own_end: an id of the tokenizer's that ends a text though the tokenizer does not say so, if it has one.
    """
    first, end_is_known = tokenizer.vocab_size, True
    texts: dict[str, int] = {}
    if isinstance(chat, RoleTokens):
        names = {id: name for name, id in chat.to_json().items()}
        texts = {_free(CHAT_TEXTS[names[id]], taken): id for id in sorted(names)}
    if chat is not None:
        ends, n_drawn = chat.end_ids(tokenizer), chat.n_reply_ids(tokenizer)
    elif tokenizer.end_ids:
        ends, n_drawn = tokenizer.end_ids, first
    elif own_end is not None:
        ends, n_drawn = (own_end,), first
    else:
        ends, n_drawn = (first,), first
        texts, end_is_known = {_free(END_OF_TEXT, taken): first}, False
    unknown = first + len(texts) if has_unknown and needs_unknown(tokenizer) else None
    if unknown is not None:
        texts[_free(UNKNOWN, taken)] = unknown
    n_ids = max(n_rows, first + len(texts))
    return Additions(
        texts=texts,
        ends=ends,
        end_is_known=end_is_known,
        unknown=unknown,
        never_drawn=list(range(n_drawn, n_ids)),
        n_ids=n_ids,
    )


def needs_unknown(tokenizer: Tokenizer) -> bool:
    """Whether a character can be unknown to a tokenizer, with nothing to put in its place."""
    return isinstance(tokenizer, CharTokenizer) and tokenizer.unknown == "error"


def special_names(tokenizer: Tokenizer, texts: Mapping[str, int]) -> dict[int, str]:
    """The text of each id that stands beside a vocabulary: the tokenizer's own, and what an export adds."""
    own = {token.id: token.content for token in getattr(tokenizer, "added", ())}
    return {**own, **{id: text for text, id in {**tokenizer.special, **texts}.items()}}


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
