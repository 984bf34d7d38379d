"""Ids for a conversation's structure: a model's vocabulary made longer."""

import dataclasses
import shlex

import torch
from torch import Tensor

from groundling.bundle import Bundle
from groundling.bundle.layout import require_speaker
from groundling.errors import ConfigError
from groundling.model.gpt import GPT
from groundling.model.uninitialized import blank_gpt
from groundling.text.chat.role_tokens import RoleTokens
from groundling.text.serialize import fingerprint


def with_chat(bundle: Bundle) -> Bundle:
    """The bundle with ids for a conversation's structure; one that has them already is returned as it is.

    They follow on the tokenizer's own, on rows that the model has to spare (a padded vocabulary) or on new ones.
    """
    if bundle.chat is not None:
        return bundle
    chat = RoleTokens.after(bundle.tokenizer.vocab_size)
    model = with_rows(bundle.model, bundle.tokenizer.vocab_size, max(chat.special_ids()) + 1)
    return Bundle(model.config, model, bundle.tokenizer, chat)


def require_chat(bundle: Bundle, path: str) -> Bundle:
    """The bundle, if it chats.

    Raises:
        ConfigError: it does not.
    """
    require_speaker(path)
    if bundle.chat is None:
        raise ConfigError(f"{path} was never taught to answer; `groundling sft {shlex.quote(path)}` does that first")
    return bundle


def reads_the_same(reader: Bundle, writer: Bundle) -> bool:
    """Whether one model means by an id what another does, and can read all that the other writes."""
    same = reader.chat == writer.chat and fingerprint(reader.tokenizer) == fingerprint(writer.tokenizer)
    return same and reader.config.block_size >= writer.config.block_size


@torch.no_grad()
def with_rows(model: GPT, n_known: int, n_ids: int) -> GPT:
    """A copy of a model whose embeddings and scores have new rows from `n_known` up to `n_ids`.

    A new row is the mean of the known ones, moved by a thousandth of their spread: a token that is not surprising, and
    not the same as the next (Hewitt 2021, "Initializing new word embeddings for pretrained language models").
    """
    config = dataclasses.replace(model.config, vocab_size=max(n_ids, model.config.vocab_size))
    longer = blank_gpt(config)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name in ("wte.weight", "lm_head.weight"):
        state[name] = _longer(state[name], n_known, config.vocab_size)
    longer.load_state_dict(state)
    device, dtype = model.wte.weight.device, model.wte.weight.dtype
    return longer.to(device, dtype).train(model.training)


def _longer(rows_VC: Tensor, n_known: int, n_ids: int) -> Tensor:
    known_VC = rows_VC[:n_known]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n_ids - n_known, rows_VC.size(1), generator=generator).to(rows_VC)
    new_VC = known_VC.mean(0) + 1e-3 * known_VC.std() * noise
    return torch.cat([known_VC, new_VC])
