"""Special tokens that an export adds, because our tokenizers have none: their text, ids and embedding rows.

A chat model has rows for its role tokens already; their ids get a text here. Other models get an end-of-text token,
because programs expect one (lm-eval prepends it, batches are padded with it), and a character tokenizer gets an unknown
token, which the library's word list requires. These two use spare rows of the model, or rows in the exported files
only: copies of the rarest token's row. Weights and logits of all other ids stay unchanged, and `groundling import hf`
removes those rows again.

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
"""Texts that no other model's template uses: programs recognise some templates by such texts and replace them."""
STARTS = 256
"""Maximum number of single tokens tried to find the rarest one."""


@dataclass(frozen=True, kw_only=True)
class Additions:
    """Special tokens beside a tokenizer's own ids."""

    texts: dict[str, int]
    """Text to id, ascending; ids continue the tokenizer's without a gap."""
    ends: tuple[int, ...]
    """Ids that end a text or a turn, the preferred one first. They may be the tokenizer's own."""
    end_is_known: bool
    """Whether the model was trained on them."""
    unknown: int | None
    """Id of an unknown character, if the tokenizer's kind has none."""
    never_drawn: list[int]
    """Ids that occur in no reply and no text; generation suppresses them."""
    n_ids: int
    """Number of rows of the exported model; at least the model's own."""

    @property
    def end(self) -> int:
        """The first end id."""
        return self.ends[0]

    def text_of(self, token: int) -> str:
        """Return the text of an added id."""
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
    """Determine the tokens to add to a tokenizer.

    Args:
        tokenizer: of the model to export.
        chat: its chat template, if any.
        n_rows: number of embedding rows of the model.
        taken: texts of existing tokens; an added one gets another text.
        has_unknown: whether the target format requires an unknown token.
        own_end: id that ends a text but is not among the tokenizer's `end_ids`, if any.
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
    """Whether the tokenizer fails on unknown characters and has no replacement."""
    return isinstance(tokenizer, CharTokenizer) and tokenizer.unknown == "error"


def special_names(tokenizer: Tokenizer, texts: Mapping[str, int]) -> dict[int, str]:
    """Return the text of each id beside the vocabulary: the tokenizer's special tokens, and the added ones."""
    own = {token.id: token.content for token in getattr(tokenizer, "added", ())}
    return {**own, **{id: text for text, id in {**tokenizer.special, **texts}.items()}}


def _free(text: str, taken: Collection[str]) -> str:
    """Return the text, or a similar one that is not a token yet."""
    while text in taken:
        text = f"{text[:-2]}_|>"
    return text


@torch.no_grad()
def rarest_token(bundle: Bundle) -> int:
    """Return the token whose highest probability is lowest, over all single-token contexts.

    An added token copies its weights. No constant row keeps a logit low everywhere: zeros win wherever all other logits
    are negative. A copy never exceeds its original, so greedy text never ends (ties go to the first, and the copy is
    the last), and sampled text ends as often as the rarest token occurs.
    """
    n_tokens = bundle.tokenizer.vocab_size
    starts_B1 = torch.arange(min(n_tokens, STARTS), device=bundle.model.wte.weight.device)[:, None]
    logits_BV = bundle.model(starts_B1)[:, -1, :n_tokens].float()
    return int(logits_BV.softmax(-1).amax(0).argmin())


VOCABULARY_ROWS = ("wte.weight", "lm_head.weight")
"""Matrices with one row per id; a tied one is stored once."""


def with_copies(weights: Mapping[str, Tensor], row: int, n_rows: int) -> dict[str, Tensor]:
    """Append copies of one row to each matrix with one row per id (VC).

    Args:
        weights: from `plain_state_dict`.
        row: row to copy.
        n_rows: number of copies.
    """
    copied = {
        name: torch.cat([weights[name], weights[name][row].expand(n_rows, -1)])
        for name in VOCABULARY_ROWS
        if name in weights
    }
    return {**weights, **copied}


def without_copies(weights: Mapping[str, Tensor], row: int, n_rows: int) -> dict[str, Tensor] | None:
    """Undo `with_copies`; None if the last rows are no longer copies, because the model was trained since."""
    kept = {name: weights[name][:-n_rows] for name in VOCABULARY_ROWS if name in weights}
    rows = [(weights[name][-n_rows:], part[row]) for name, part in kept.items()]
    if not all(torch.equal(copies, original.expand_as(copies)) for copies, original in rows):
        return None
    return {**weights, **{name: part.clone() for name, part in kept.items()}}
