"""Sequences that share a row do not know of each other."""

import pytest
import torch

from groundling.model.gpt import GPT, GPTConfig
from groundling.model.packed import Packed


@pytest.mark.parametrize("position", ["learned", "rotary"])
@pytest.mark.parametrize("training", [True, False])
def test_packed_sequences_are_what_they_are_alone(position: str, training: bool) -> None:
    """Learned positions catch places that count on over a border; rotary ones a mask that lets something through."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=11, position=position))
    model.train(training)
    idx_BT = torch.randint(11, (2, 12))
    lengths = [[5, 1, 6], [3, 9]]
    numbers_BT = torch.stack([torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n)) for n in lengths])
    together_BTV = model(idx_BT, Packed(numbers_BT))
    for row, pieces in enumerate(lengths):
        alone_TV = torch.cat([model(piece[None])[0] for piece in idx_BT[row].split(pieces)])
        torch.testing.assert_close(together_BTV[row], alone_TV, atol=1e-6, rtol=1e-5)
    plain_BTV = model(idx_BT)
    assert not torch.allclose(together_BTV, plain_BTV, atol=1e-3)


def test_one_sequence_in_a_row_is_the_plain_model() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=11)).eval()
    idx_BT = torch.randint(11, (3, 12))
    torch.testing.assert_close(model(idx_BT, Packed(torch.zeros_like(idx_BT))), model(idx_BT))
