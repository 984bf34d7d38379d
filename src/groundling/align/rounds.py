"""A round of replies, and how a checkpoint holds it: others may have made that, so it is whole or refused."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from groundling.align.replies import Reply
from groundling.train.training_tensors import of_ragged, ragged


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
        """All of it, for a checkpoint; `Drawer.round_of` takes it back."""
        return {
            **ragged("prompt", [torch.tensor(reply.prompt) for reply in self.replies]),
            **ragged("said", [torch.tensor(reply.said) for reply in self.replies]),
            "rewards": torch.tensor(self.rewards, dtype=torch.float64),
            **ragged("logprobs", self.logprobs),
            **ragged("reference", self.reference),
            **ragged("advantages", self.advantages),
        }


def nats_a_reply(new: Sequence[Tensor], old: Sequence[Tensor]) -> float:
    """The KL of one policy to another, as replies of the first tell: what each gives their ids -> nats a reply."""
    return math.fsum(float((ours - theirs).sum()) for ours, theirs in zip(new, old, strict=True)) / len(new)


def read_exchanges(tensors: dict[str, Tensor], n: int, n_ids: int, longest: int) -> list[tuple[list[int], list[int]]]:
    """The prompts of a round's tensors, and what was said to each.

    Args:
        tensors: of a checkpoint.
        n: how many there have to be.
        n_ids: that the model has.
        longest: ids of a prompt with its reply.

    Raises:
        ValueError, LookupError: there are others.
    """
    prompts, said = (_ids_of(tensors, name, n_ids) for name in ("prompt", "said"))
    if len(prompts) != n:
        raise ValueError(f"its round has {len(prompts)} replies, expected {n}")
    found = list(zip(prompts, said, strict=True))
    if not all(prompt and reply and len(prompt) + len(reply) <= longest for prompt, reply in found):
        raise ValueError(f"its round has an empty prompt or reply, or one of more than {longest} ids")
    return found


def read_round(replies: list[Reply], tensors: dict[str, Tensor]) -> Round:
    """The round of these replies.

    Raises:
        ValueError, LookupError: something else than a finite number is known of a reply or of what was said.
    """
    rewards = tensors["rewards"]
    if rewards.shape != (len(replies),) or not bool(rewards.isfinite().all()):
        raise ValueError("its round has not a finite reward for each reply")
    known = [of_ragged(tensors, name) for name in ("logprobs", "reference", "advantages")]
    require_numbers(replies, *known)
    return Round(replies, rewards.tolist(), *known)


def require_numbers(replies: Sequence[Reply], *values: Sequence[Tensor]) -> None:
    """Check that each value has a finite number for each id that was said. Raises ValueError where one has not."""
    lengths = [len(reply.said) for reply in replies]
    for value in values:
        if [len(each) for each in value] != lengths or not bool(torch.cat(list(value)).isfinite().all()):
            raise ValueError("its round has not a finite number for each id that was said")


def _ids_of(tensors: dict[str, Tensor], name: str, n_ids: int) -> list[list[int]]:
    """Ids that `ragged` was given. Raises ValueError for numbers that are none."""
    numbers = tensors[name]
    if not bool(((numbers == numbers.round()) & (numbers >= 0) & (numbers < n_ids)).all()):
        raise ValueError(f"its round has numbers among the ids of {name} that are no ids of the model")
    return [ids.long().tolist() for ids in of_ragged(tensors, name)]
