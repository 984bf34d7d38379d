"""A round of replies: what is known of them, how a checkpoint keeps it, and what is written down of it."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from groundling.align.logprobs import exchanges_of
from groundling.align.preferences.measures import measure_by_name
from groundling.align.replies import Reply
from groundling.errors import CheckpointError


@dataclass
class Round:
    """Replies of one round, and what is known of them. Tensors are of each reply's said ids, in order."""

    replies: list[Reply]
    rewards: list[float]
    logprobs: list[Tensor]
    """Of the policy that drew them, recomputed."""
    reference: list[Tensor]
    advantages: list[Tensor] = field(default_factory=list)

    def kl(self) -> float:
        """How far the policy has left the reference: nats a reply, as these replies tell."""
        return nats_a_reply(self.logprobs, self.reference)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a checkpoint; `exchanges_in` and `RolloutSampler.round_of` take it back."""
        exchanges = exchanges_of(self.replies)
        return {
            **laid_end_to_end("prompt", [torch.tensor(prompt) for prompt, _ in exchanges]),
            **laid_end_to_end("said", [torch.tensor(said) for _, said in exchanges]),
            "rewards": torch.tensor(self.rewards, dtype=torch.float64),
            **laid_end_to_end("logprobs", self.logprobs),
            **laid_end_to_end("reference", self.reference),
            **laid_end_to_end("advantages", self.advantages),
        }


def laid_end_to_end(name: str, values: Sequence[Tensor]) -> dict[str, Tensor]:
    """Vectors of different lengths as two tensors: all their numbers, and their lengths.

    A checkpoint holds floating point only; whole numbers are exact in float64.
    """
    numbers, lengths = torch.cat(list(values)), torch.tensor([len(each) for each in values], dtype=torch.float64)
    return {name: numbers if numbers.is_floating_point() else numbers.double(), f"{name}.lengths": lengths}


def of_each(tensors: dict[str, Tensor], name: str) -> list[Tensor]:
    """The vectors that `laid_end_to_end` was given.

    Raises:
        CheckpointError: they are none.
    """
    numbers, lengths = tensors[name], tensors[f"{name}.lengths"]
    is_right = numbers.dim() == lengths.dim() == 1 and are_whole(lengths, len(numbers) + 1)
    if not is_right or int(lengths.sum()) != len(numbers):
        raise CheckpointError(f"its {name} has {tuple(numbers.shape)} numbers, and its lengths say otherwise")
    return [part.clone() for part in torch.split(numbers, lengths.long().tolist())]


def are_whole(numbers: Tensor, end: int) -> bool:
    """Whether all are whole numbers from 0 to below `end`."""
    return bool(((numbers >= 0) & (numbers < end) & (numbers == numbers.floor())).all())


def values_of_each(tensors: dict[str, Tensor], name: str, said_lengths: Sequence[int]) -> list[Tensor]:
    """The same, where each reply has a finite number for each of its ids.

    Raises:
        CheckpointError: it has not.
    """
    values = of_each(tensors, name)
    if [len(each) for each in values] != list(said_lengths) or not bool(tensors[name].isfinite().all()):
        raise CheckpointError(f"its {name} is not a finite number for each id that was said")
    return values


def exchanges_in(
    tensors: dict[str, Tensor], n_replies: int, n_ids: int, n_reply_ids: int, max_length: int
) -> list[tuple[list[int], list[int]]]:
    """The prompt and what was said to it, of each reply of a round that a checkpoint has kept.

    Raises:
        CheckpointError: they are not so many, too long, or no ids of this model.
    """
    for name, n in (("prompt", n_ids), ("said", n_reply_ids)):
        if not are_whole(tensors[name], n):
            raise CheckpointError(f"its {name} has other numbers than ids from 0 to {n - 1:,}")
    prompts, said = ([part.long().tolist() for part in of_each(tensors, name)] for name in ("prompt", "said"))
    if not len(prompts) == len(said) == tensors["rewards"].numel() == n_replies:
        raise CheckpointError(f"its round has {len(said):,} replies, and a round of this stage {n_replies:,}")
    if not bool(tensors["rewards"].isfinite().all()):
        raise CheckpointError("its round has a reward that is not finite")
    exchanges = list(zip(prompts, said, strict=True))
    if not all(prompt and words and len(prompt) + len(words) <= max_length for prompt, words in exchanges):
        raise CheckpointError(f"its round has a reply that is empty, or longer than {max_length:,} ids with its prompt")
    return exchanges


def nats_a_reply(new: Sequence[Tensor], old: Sequence[Tensor]) -> float:
    """The KL of one policy to another, as replies of the first tell: what each gives their ids -> nats a reply."""
    return math.fsum(float((ours - theirs).sum()) for ours, theirs in zip(new, old, strict=True)) / len(new)


def figures_of(round_: Round, started: float, gold: str | None = None) -> dict[str, float]:
    """What a round's replies were like."""
    n = len(round_.replies)
    measured = {}
    if gold is not None:
        measure = measure_by_name(gold)
        measured["gold"] = math.fsum(measure(reply.text) for reply in round_.replies) / n
    return {
        **measured,
        "reward": math.fsum(round_.rewards) / n,
        "kl": round_.kl(),
        "replies_ended": sum(reply.ended for reply in round_.replies) / n,
        "length": sum(len(reply.said) for reply in round_.replies) / n,
        "seconds": round(time.perf_counter() - started, 2),
    }
