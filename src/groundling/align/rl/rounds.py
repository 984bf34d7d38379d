"""A round of replies, its form in a checkpoint, and its metrics."""

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
    """The replies of one round. Each tensor has one value per id of a reply."""

    replies: list[Reply]
    rewards: list[float]
    logprobs: list[Tensor]
    """Under the policy that sampled them, recomputed."""
    reference: list[Tensor]
    advantages: list[Tensor] = field(default_factory=list)

    def kl(self) -> float:
        """Estimated KL of the policy to the reference, in nats per reply."""
        return nats_per_reply(self.logprobs, self.reference)

    def tensors(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint, restored by `RolloutSampler.round_of`."""
        exchanges = exchanges_of(self.replies)
        return {
            **concatenated("prompt", [torch.tensor(prompt) for prompt, _ in exchanges]),
            **concatenated("said", [torch.tensor(reply) for _, reply in exchanges]),
            "rewards": torch.tensor(self.rewards, dtype=torch.float64),
            **concatenated("logprobs", self.logprobs),
            **concatenated("reference", self.reference),
            **concatenated("advantages", self.advantages),
        }


def concatenated(name: str, values: Sequence[Tensor]) -> dict[str, Tensor]:
    """Store vectors of different lengths as two tensors: their concatenation, and their lengths.

    A checkpoint holds floating-point tensors only; integers are exact in float64.
    """
    numbers, lengths = torch.cat(list(values)), torch.tensor([len(each) for each in values], dtype=torch.float64)
    return {name: numbers if numbers.is_floating_point() else numbers.double(), f"{name}.lengths": lengths}


def split_values(tensors: dict[str, Tensor], name: str) -> list[Tensor]:
    """The inverse of `concatenated`.

    Raises:
        CheckpointError: values and lengths do not match.
    """
    numbers, lengths = tensors[name], tensors[f"{name}.lengths"]
    is_right = numbers.dim() == lengths.dim() == 1 and are_whole(lengths, len(numbers) + 1)
    if not is_right or int(lengths.sum()) != len(numbers):
        raise CheckpointError(f"its {name} has {tuple(numbers.shape)} numbers, and its lengths do not match")
    return [part.clone() for part in torch.split(numbers, lengths.long().tolist())]


def are_whole(numbers: Tensor, end: int) -> bool:
    """Whether all are integers from 0 to `end` - 1."""
    return bool(((numbers >= 0) & (numbers < end) & (numbers == numbers.floor())).all())


def read_values(tensors: dict[str, Tensor], name: str, lengths: Sequence[int]) -> list[Tensor]:
    """`split_values`, with one finite value per id of each reply.

    Raises:
        CheckpointError: a value is missing or not finite.
    """
    values = split_values(tensors, name)
    if [len(each) for each in values] != list(lengths) or not bool(tensors[name].isfinite().all()):
        raise CheckpointError(f"its {name} is not one finite number for each id of the replies")
    return values


def exchanges_in(
    tensors: dict[str, Tensor], n_replies: int, n_ids: int, n_reply_ids: int, max_length: int
) -> list[tuple[list[int], list[int]]]:
    """Prompts and replies of a round from a checkpoint.

    Raises:
        CheckpointError: their number, lengths or ids do not fit the stage.
    """
    for name, n in (("prompt", n_ids), ("said", n_reply_ids)):
        if not are_whole(tensors[name], n):
            raise CheckpointError(f"its {name} has numbers that are not ids from 0 to {n - 1:,}")
    prompts, replies = ([part.long().tolist() for part in split_values(tensors, name)] for name in ("prompt", "said"))
    if not len(prompts) == len(replies) == tensors["rewards"].numel() == n_replies:
        raise CheckpointError(f"its round has {len(replies):,} replies, and a round of this stage {n_replies:,}")
    if not bool(tensors["rewards"].isfinite().all()):
        raise CheckpointError("its round has a reward that is not finite")
    exchanges = list(zip(prompts, replies, strict=True))
    if not all(prompt and reply and len(prompt) + len(reply) <= max_length for prompt, reply in exchanges):
        raise CheckpointError(f"its round has a reply that is empty, or longer than {max_length:,} ids with its prompt")
    return exchanges


def nats_per_reply(new: Sequence[Tensor], old: Sequence[Tensor]) -> float:
    """Estimated KL of policy `new` to `old`, in nats per reply, from both log-probabilities of replies by `new`."""
    return math.fsum(float((ours - theirs).sum()) for ours, theirs in zip(new, old, strict=True)) / len(new)


def figures_of(round_: Round, started: float, gold: str | None = None) -> dict[str, float]:
    """Metrics of a round's replies."""
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
        "length": sum(len(reply.ids) for reply in round_.replies) / n,
        "seconds": round(time.perf_counter() - started, 2),
    }
