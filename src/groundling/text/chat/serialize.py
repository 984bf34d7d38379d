"""Load chat templates from JSON: a bundle stores a template by name and parameters, never as code."""

from typing import Any

from groundling.errors import DataError
from groundling.text.chat.messages import ROLES
from groundling.text.chat.role_tokens import RoleTokens
from groundling.text.chat.template import ChatTemplate
from groundling.text.chat.wrapped_turns import WrappedTurns


def template_from_json(values: dict[str, Any]) -> ChatTemplate:
    """Build a template from `ChatTemplate.to_json`.

    Raises:
        DataError: this is not a chat template.
    """
    if isinstance(values, dict) and "template" in values:
        return WrappedTurns.from_parameters(values)
    names = ("end", *ROLES)
    if not isinstance(values, dict) or sorted(values) != sorted(names):
        raise DataError(f"a chat template has the ids of {', '.join(names)}, and nothing else")
    return RoleTokens(**values)
