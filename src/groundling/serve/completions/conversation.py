"""Check the messages of a request."""

from collections.abc import Sequence

from groundling.errors import DataError
from groundling.serve.completions.schema import ChatMessage
from groundling.serve.http.errors import ApiError
from groundling.text.chat.messages import Message, wrong_turn
from groundling.text.tokenizer import Tokenizer

TURNS = "after at most one system message, user and assistant take turns"


def conversation(given: Sequence[ChatMessage]) -> list[Message]:
    """The messages as a conversation; the developer role becomes the system role.

    Raises:
        ApiError: 400: a message is out of turn.
    """
    messages = [Message("system" if each.role == "developer" else each.role, each.text()) for each in given]
    wrong = wrong_turn(messages)
    if wrong is None:
        return messages
    place, problem = f"messages.{wrong.number}", "is missing; a user message must follow the system message"
    if wrong.role is not None:
        came, place = given[wrong.number].role, f"{place}.role"
        problem = f'is "{came}"; it must be "{wrong.expected}": {TURNS}'
    raise ApiError(400, f"{place} {problem}", "invalid_value", place)


def encoding_error(messages: Sequence[Message], tokenizer: Tokenizer, error: DataError) -> ApiError:
    """The error for a conversation that cannot be encoded; names the first message at fault."""
    for number, message in enumerate(messages):
        try:
            tokenizer.encode(message.content)
        except DataError as found:
            place = f"messages.{number}.content"
            return ApiError(400, f"{place}: {found}", "invalid_value", place)
    return ApiError(400, str(error), "invalid_value", "messages")
