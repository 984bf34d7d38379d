"""What a model's folder says of text: its tokenizer, the ids that end a text, and its chat template."""

from pathlib import Path

from groundling.export.chat_recognition import read_chat
from groundling.export.hf_folder import read_end_ids
from groundling.export.hf_tokenizer_reading import open_tokenizer, read_tokenizer
from groundling.export.template_reading import TemplateError, find_template, token_names
from groundling.text.chat import ChatFormat
from groundling.text.tokenizer import Tokenizer
from groundling.text.vendors import BPETokenizer


def read_speech(folder: Path, is_gpt2: bool) -> tuple[Tokenizer, ChatFormat | None, str]:
    """The tokenizer and the chat template of a model's folder; where its template is none of ours, why.

    Args:
        folder: in the layout of `transformers`.
        is_gpt2: whether the model is a GPT-2.

    Raises:
        CheckpointError: a file says something impossible of what ends a text.
        DataError: the tokenizer cannot be had.
        MissingExtraError: the package tokenizers is not installed.
    """
    foreign = open_tokenizer(folder, is_gpt2)
    end = foreign.token_to_id(token_names(folder).get("eos_token", ""))
    end_ids = [*read_end_ids(folder), *([] if end is None else [end])]
    tokenizer = read_tokenizer(folder, is_gpt2, list(dict.fromkeys(end_ids)))
    added = {token.content: token.id for token in getattr(tokenizer, "added", ())} or tokenizer.special
    try:
        chat = read_chat(folder, tokenizer, added, lambda text: foreign.encode(text, add_special_tokens=False).ids)
    except TemplateError as error:
        return tokenizer, None, f"its chat template is not recognised: {error}"
    if chat is not None and isinstance(tokenizer, BPETokenizer):
        tokenizer = tokenizer.with_special(chat.marks())
    return tokenizer, chat, ""


def has_template(folder: Path) -> bool:
    """Whether a model's folder has a chat template, of whatever kind."""
    try:
        return find_template(folder) is not None
    except TemplateError:
        return True
