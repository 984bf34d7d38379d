"""Messages of a conversation, and checks of their roles."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from groundling.errors import DataError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Message:
    """One message."""

    role: Role
    content: str


class WrongTurn(NamedTuple):
    """A message with the wrong role; as text: "is the user's where ..."."""

    number: int
    """Index of the message, from 0."""
    role: Role | None
    """None: the message is missing."""
    expected: Role

    def __str__(self) -> str:
        came = "is missing" if self.role is None else f"is the {self.role}'s"
        return (
            f"{came} where the {self.expected}'s is expected; "
            "after at most one system message, user and assistant alternate"
        )


def wrong_turn(messages: Sequence[Message]) -> WrongTurn | None:
    """Return the first message with the wrong role: an optional system message, then user and assistant alternate."""
    n_system = int(bool(messages) and messages[0].role == "system")
    for number, message in enumerate(messages[n_system:], n_system):
        expected: Role = ("user", "assistant")[(number - n_system) % 2]
        if message.role != expected:
            return WrongTurn(number, message.role, expected)
    return WrongTurn(n_system, None, "user") if len(messages) == n_system else None


def check_messages(messages: Sequence[Message], where: str) -> None:
    """Check the roles: an optional system message, then user and assistant alternate.

    Raises:
        DataError: they are wrong; the message starts with `where`.
    """
    if not messages:
        raise DataError(f"{where}: there are no messages")
    wrong = wrong_turn(messages)
    if wrong is not None and wrong.role is None:
        raise DataError(f"{where}: there is only a system message")
    if wrong is not None:
        raise DataError(f"{where}: message {wrong.number + 1} {wrong}")
