"""Sequences that share a row do not know of each other."""

import pytest
import torch

from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.model.packing import Layout, PackedSequences


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
    together_BTV = model(idx_BT, PackedSequences(Layout(numbers_BT, torch.zeros_like(numbers_BT))))
    for row, pieces in enumerate(lengths):
        alone_TV = torch.cat([model(piece[None])[0] for piece in idx_BT[row].split(pieces)])
        torch.testing.assert_close(together_BTV[row], alone_TV, atol=1e-6, rtol=1e-5)
    plain_BTV = model(idx_BT)
    assert not torch.allclose(together_BTV, plain_BTV, atol=1e-3)


def test_one_sequence_in_a_row_is_the_plain_model() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=11)).eval()
    idx_BT = torch.randint(11, (3, 12))
    zeros_BT = torch.zeros_like(idx_BT)
    torch.testing.assert_close(model(idx_BT, PackedSequences(Layout(zeros_BT, zeros_BT))), model(idx_BT))


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_ways_on_from_one_beginning_are_what_they_are_alone(position: str) -> None:
    """Learned positions catch a way that counts on from its neighbour; rotary ones a mask that shows it."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=11, position=position)).eval()
    idx_BT = torch.randint(11, (1, 12))
    #  a sequence of its own, then a beginning of 3 with ways on of 2, 1 and 4
    numbers_BT = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
    branches_BT = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 2, 3, 3, 3, 3]])
    together_TV = model(idx_BT, PackedSequences(Layout(numbers_BT, branches_BT)))[0]
    beginning = [2, 3, 4]
    for way in ([5, 6], [7], [8, 9, 10, 11]):
        alone_TV = model(idx_BT[:, beginning + way])[0]
        torch.testing.assert_close(together_TV[beginning + way], alone_TV, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(together_TV[:2], model(idx_BT[:, :2])[0], atol=1e-6, rtol=1e-5)
