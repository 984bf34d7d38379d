"""The chat template of our own models: a special id before and after each message.

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
    """Our template: each message is its role's id, its text, and the end id."""

    template: ClassVar[str] = "groundling"

    end: int
    """Ends each message."""
    system: int
    user: int
    assistant: int

    @staticmethod
    def after(vocab_size: int) -> "RoleTokens":
        """Return a template with the ids after a tokenizer's; the end comes first."""
        return RoleTokens(end=vocab_size, system=vocab_size + 1, user=vocab_size + 2, assistant=vocab_size + 3)

    def __post_init__(self) -> None:
        ids = (self.end, self.system, self.user, self.assistant)
        if not all(type(id) is int and id >= 0 for id in ids) or len(set(ids)) != len(ids):
            raise DataError(f"the ids of a chat template must be different whole numbers, not {ids}")
        if self.end != min(ids):
            raise DataError(
                f"the end must be the lowest id of a chat template, so that replies can be told from roles: {ids}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the ids by name."""
        return dataclasses.asdict(self)

    def role_id(self, role: Role) -> int:
        """Return the id of a role."""
        return {"system": self.system, "user": self.user, "assistant": self.assistant}[role]

    def opening(self, role: Role) -> Segments:
        """Return the role's id."""
        return (self.role_id(role),)

    def closing(self, role: Role) -> Segments:  # noqa: ARG002
        """Return the end id."""
        return (self.end,)

    def names(self, tokenizer: Tokenizer) -> dict[int, str]:  # noqa: ARG002
        """Return a readable name for each structural id."""
        return {id: name for name, id in self.to_json().items()}
