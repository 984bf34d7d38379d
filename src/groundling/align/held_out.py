"""Which examples are kept for measuring: those of whole prompts, so that none is learned from and measured by."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from groundling.data.examples import Messages


class Example(Protocol):
    """What was said to some prompt."""

    @property
    def messages(self) -> Messages:
        """The prompt."""
        ...


E = TypeVar("E", bound=Example)


def split(examples: Sequence[E], part: float) -> tuple[list[E], list[E]]:
    """Examples to learn from and to measure by; see `held_out`."""
    kept = held_out([example.messages for example in examples], part)
    train = [example for example, is_kept in zip(examples, kept, strict=True) if not is_kept]
    return train, [example for example, is_kept in zip(examples, kept, strict=True) if is_kept]


def held_out(asked: Sequence[Messages], part: float) -> list[bool]:
    """Whether each example is kept for measuring.

    The last prompts are, in the order in which they first come; however often one was asked, it is on one side.

    Args:
        asked: the prompt of each example.
        part: of the prompts; at least one is kept, if there are two and it is not 0, and half of them at most.
    """
    prompts = list(dict.fromkeys(asked))
    n = min(len(prompts) // 2, max(1, round(part * len(prompts)))) if part else 0
    kept = set(prompts[len(prompts) - n :])
    return [messages in kept for messages in asked]
