"""Templates of imported models, as data: special tokens and text around each role's text, as in ChatML.

ChatML:   <|im_start|>user \n words <|im_end|> \n <|im_start|>assistant \n words <|im_end|> \n
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from groundling.errors import DataError
from groundling.text.chat.messages import ROLES, Role
from groundling.text.chat.template import ChatTemplate, Segments, Thinking
from groundling.text.tokenizer import require_unicode

MAX_SEGMENTS, MAX_TEXT = 20, 10_000
"""Maximum size of a part; published templates are far below."""


@dataclass(frozen=True, kw_only=True)
class WrappedTurns(ChatTemplate):
    """A template that wraps each role's text in special tokens and text.

    Raises:
        DataError: an opening or a closing does not start with a special id, or a parameter has the wrong type.
    """

    template: ClassVar[str] = "wrapped"

    openings: Mapping[Role, Segments]
    """Precedes each role's text."""
    closings: Mapping[Role, Segments]
    """Follows each role's text."""
    begin: Segments = ()
    default_system: str | None = None
    trim: bool = False
    thinking: Thinking | None = None
    end: int = field(init=False)

    def __post_init__(self) -> None:
        for name, by_role in (("openings", self.openings), ("closings", self.closings)):
            if set(by_role) != set(ROLES):
                raise DataError(f"a chat template has {name} of {', '.join(ROLES)}, and of no other role")
            for role, segments in by_role.items():
                if not segments or not isinstance(segments[0], int):
                    raise DataError(f"the {role}'s part of a chat template's {name} must begin with a special id")
        if isinstance(self.closings["assistant"][0], int):
            object.__setattr__(self, "end", self.closings["assistant"][0])

    def opening(self, role: Role) -> Segments:
        """Return what precedes a role's text."""
        return self.openings[role]

    def closing(self, role: Role) -> Segments:
        """Return what follows a role's text."""
        return self.closings[role]

    def to_json(self) -> dict[str, Any]:
        """Return the template by name and parameters."""
        thinking = None
        if (tags := self.thinking) is not None:
            thinking = {"opening": tags.opening, "closing": tags.closing, "nothing": list(tags.nothing)}
        return {
            "template": self.template,
            "openings": {role: list(self.openings[role]) for role in ROLES},
            "closings": {role: list(self.closings[role]) for role in ROLES},
            "begin": list(self.begin),
            "default_system": self.default_system,
            "trim": self.trim,
            "thinking": thinking,
        }

    @classmethod
    def from_parameters(cls, values: Mapping[str, Any]) -> "WrappedTurns":
        """Build a template from `to_json`.

        Raises:
            DataError: this is not such a template.
        """
        if values.get("template") != cls.template:
            raise DataError(f"no chat template is called {values.get('template')!r}; there are: wrapped")
        names = ("template", "openings", "closings", "begin", "default_system", "trim", "thinking")
        if sorted(values) != sorted(names):
            raise DataError(f"a wrapped chat template has {', '.join(names)}, and nothing else")
        default, trim = values["default_system"], values["trim"]
        if not (default is None or isinstance(default, str)) or type(trim) is not bool:
            raise DataError("the default_system of a chat template must be a text or null, and trim true or false")
        if default is not None:
            require_unicode(default)
        return cls(
            openings=_by_role(values["openings"]),
            closings=_by_role(values["closings"]),
            begin=_segments(values["begin"]),
            default_system=default,
            trim=trim,
            thinking=None if values["thinking"] is None else _thinking(values["thinking"]),
        )


def _by_role(values: Any) -> dict[Role, Segments]:
    if not isinstance(values, dict) or sorted(values) != sorted(ROLES):
        raise DataError(f"openings and closings of a chat template must be those of {', '.join(ROLES)}")
    return {role: _segments(values[role]) for role in ROLES}


def _thinking(values: Any) -> Thinking:
    names = ("opening", "closing", "nothing")
    if not isinstance(values, dict) or sorted(values) != sorted(names):
        raise DataError(f"the thinking of a chat template has {', '.join(names)}, and nothing else")
    opening, closing = _segments([values["opening"], values["closing"]])
    if not isinstance(opening, int) or not isinstance(closing, int) or opening == closing:
        raise DataError("the opening and the closing of a chat template's thinking must be two special ids")
    return Thinking(opening, closing, _segments(values["nothing"]))


def _segments(values: Any) -> Segments:
    if not isinstance(values, list) or len(values) > MAX_SEGMENTS:
        raise DataError(f"a part of a chat template must be a list of at most {MAX_SEGMENTS} ids and texts")
    for value in values:
        is_id = type(value) is int and value >= 0
        if not is_id and not (isinstance(value, str) and 0 < len(value) <= MAX_TEXT):
            raise DataError(f"a part of a chat template must be made of ids and texts, not of {str(value)[:40]!r}")
        if isinstance(value, str):
            require_unicode(value)
    return tuple(values)
