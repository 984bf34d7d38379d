"""The chat template of our own models: one special id before each message, and one after it.

<user> words <end> <assistant> words <end>
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from groundling.errors import DataError
from groundling.text.chat.messages import Role
from groundling.text.chat.template import ChatTemplate, Segments
from groundling.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class RoleTokens(ChatTemplate):
    """Our own template: each message is the id of its role, its words, and the end."""

    template: ClassVar[str] = "groundling"

    end: int
    """Ends each message."""
    system: int
    user: int
    assistant: int

    @staticmethod
    def after(vocab_size: int) -> "RoleTokens":
        """On the ids that follow on a tokenizer's. The end comes first."""
        return RoleTokens(end=vocab_size, system=vocab_size + 1, user=vocab_size + 2, assistant=vocab_size + 3)

    def __post_init__(self) -> None:
        ids = (self.end, self.system, self.user, self.assistant)
        if not all(type(id) is int and id >= 0 for id in ids) or len(set(ids)) != len(ids):
            raise DataError(f"the ids of a chat template have to be different whole numbers, not {ids}")
        if self.end != min(ids):
            raise DataError(
                f"the end has to be the lowest id of a chat template, so that replies can be told from roles: {ids}"
            )

    def to_json(self) -> dict[str, Any]:
        """The ids by name."""
        return dataclasses.asdict(self)

    def role_id(self, role: Role) -> int:
        """The id that a message of this role begins with."""
        return {"system": self.system, "user": self.user, "assistant": self.assistant}[role]

    def opening(self, role: Role) -> Segments:
        """The role's id."""
        return (self.role_id(role),)

    def closing(self, role: Role) -> Segments:  # noqa: ARG002
        """The end."""
        return (self.end,)

    def names(self, tokenizer: Tokenizer) -> dict[int, str]:  # noqa: ARG002
        """What each id of structure is called, for readers."""
        return {id: name for name, id in self.to_json().items()}
