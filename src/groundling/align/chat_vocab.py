"""Chat vocabulary: special tokens for the roles of a conversation, added to a base model."""

import dataclasses

import torch
from torch import Tensor

from groundling.bundle import Bundle, ChatBundle
from groundling.model.gpt import GPT
from groundling.model.uninitialized import blank_gpt
from groundling.text.chat.role_tokens import RoleTokens
from groundling.text.serialize import fingerprint


def with_chat(bundle: Bundle) -> ChatBundle:
    """Add a chat template to a base model; a chat model keeps its own.

    The ids of the special tokens follow the tokenizer's, on spare rows of a padded vocabulary or on new ones.
    """
    if bundle.chat is not None:
        return ChatBundle(bundle.config, bundle.model, bundle.tokenizer, bundle.chat)
    chat = RoleTokens.after(bundle.tokenizer.vocab_size)
    model = with_rows(bundle.model, bundle.tokenizer.vocab_size, max(chat.special_ids()) + 1)
    return ChatBundle(model.config, model, bundle.tokenizer, chat)


def reads_the_same(reader: Bundle, writer: Bundle) -> bool:
    """Whether two models share tokenizer and chat template, and the reader's context is no shorter."""
    same = reader.chat == writer.chat and fingerprint(reader.tokenizer) == fingerprint(writer.tokenizer)
    return same and reader.config.block_size >= writer.config.block_size


@torch.no_grad()
def with_rows(model: GPT, n_known: int, n_ids: int) -> GPT:
    """A copy of a model with new embedding and output rows from `n_known` up to `n_ids`.

    A new row is the mean of the known ones plus a thousandth of their spread as noise, so that new tokens are neither
    surprising nor equal (Hewitt 2021, "Initializing new word embeddings for pretrained language models").
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
