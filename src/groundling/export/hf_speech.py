"""Read a folder's tokenizer, end-of-text ids and chat template."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groundling.export.chat_template.recognition import read_chat
from groundling.export.chat_template.rendering import TemplateError, find_template, token_names
from groundling.export.export_note import ExportNote, chat_template
from groundling.export.hf_folder import read_end_ids, read_own_note
from groundling.export.hf_tokenizer_import import open_tokenizer, read_tokenizer
from groundling.text.bpe import BPETokenizer
from groundling.text.chat.template import ChatTemplate
from groundling.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


def read_tokenizer_and_chat(folder: Path, is_gpt2: bool) -> tuple[Tokenizer, ChatTemplate | None, str]:
    """Return a folder's tokenizer, its chat template if it has one, and why the template is not supported (or "").

    Args:
        folder: in the layout of `transformers`.
        is_gpt2: whether the model is a GPT-2.

    Raises:
        CheckpointError: a file has invalid end-of-text ids.
        DataError: the tokenizer cannot be loaded.
        MissingExtraError: the package tokenizers is not installed.
    """
    foreign = open_tokenizer(folder, is_gpt2)
    end = foreign.token_to_id(token_names(folder).get("eos_token", ""))
    end_ids = list(dict.fromkeys([*read_end_ids(folder), *([] if end is None else [end])]))
    note = read_own_note(folder)
    if note is not None and all(foreign.token_to_id(text) == id for text, id in note.texts.items()):
        return _read_own(folder, is_gpt2, end_ids, note)
    tokenizer = read_tokenizer(folder, is_gpt2, end_ids)
    _log_lost_tokens(foreign, end_ids, tokenizer)
    added = {token.content: token.id for token in getattr(tokenizer, "added", ())} or tokenizer.special
    try:
        chat = read_chat(folder, tokenizer, added, lambda text: foreign.encode(text, add_special_tokens=False).ids)
    except TemplateError as error:
        return tokenizer, None, f"its chat template is not recognised: {error}"
    if chat is not None and isinstance(tokenizer, BPETokenizer):
        # End of reply first, as in an export, so that a round trip changes nothing.
        tokenizer = tokenizer.with_special(chat.marks(), chat.end_ids(tokenizer))
    return tokenizer, chat, ""


def _log_lost_tokens(foreign: Any, end_ids: Sequence[int], tokenizer: Tokenizer) -> None:
    """Log begin and end tokens that are not supported here; ids without a token are never sampled."""
    first, plain = foreign.encode("a").ids[:1], foreign.encode("a", add_special_tokens=False).ids[:1]
    if first != plain:
        log.info(
            f"transformers puts {foreign.id_to_token(first[0])!r} before each text; here only a chat template does so"
        )
    for id in end_ids:
        if id < tokenizer.vocab_size and id not in tokenizer.end_ids:
            log.info(
                f"eos_token_id has {id}, the ordinary token {tokenizer.piece(id)!r}; generation continues after it"
            )


def _read_own(
    folder: Path, is_gpt2: bool, end_ids: list[int], note: ExportNote
) -> tuple[Tokenizer, ChatTemplate | None, str]:
    """Read an export of ours: remove its additions, and recognise its template by its text."""
    own_ends = [id for id in end_ids if id not in note.texts.values()]
    tokenizer = read_tokenizer(folder, is_gpt2, own_ends, note)
    if note.chat is None:
        return tokenizer, None, ""
    try:
        found = find_template(folder) or ""  # an editor may have added a final newline, which Jinja drops
        is_unchanged = found.removesuffix("\n") == chat_template(tokenizer, note.chat, note.texts)
    except (TemplateError, KeyError):
        is_unchanged = False
    if not is_unchanged:
        return tokenizer, None, "its chat template is not the one it was exported with"
    return tokenizer, note.chat, ""


def has_template(folder: Path) -> bool:
    """Whether a folder has a chat template of any kind."""
    try:
        return find_template(folder) is not None
    except TemplateError:
        return True
