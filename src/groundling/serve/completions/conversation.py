"""The messages of a request as a conversation, and what is wrong with them, by their places."""

from collections.abc import Sequence

from groundling.errors import DataError
from groundling.serve.completions.schema import ChatMessage
from groundling.serve.http.errors import ApiError
from groundling.text.chat.messages import Message, wrong_turn
from groundling.text.tokenizer import Tokenizer

TURNS = "after at most one system message, user and assistant take turns"


def conversation(given: Sequence[ChatMessage]) -> list[Message]:
    """Messages in turns. A developer's message is a system's.

    Raises:
        ApiError: 400: one is out of turn.
    """
    messages = [Message("system" if each.role == "developer" else each.role, each.text()) for each in given]
    wrong = wrong_turn(messages)
    if wrong is None:
        return messages
    place, said = f"messages.{wrong.number}", "is missing; a user's message has to follow the system's"
    if wrong.role is not None:
        came, place = given[wrong.number].role, f"{place}.role"
        said = f'is "{came}"; it has to be "{wrong.expected}": {TURNS}'
    raise ApiError(400, f"{place} {said}", "invalid_value", place)


def encoding_error(messages: Sequence[Message], tokenizer: Tokenizer, error: DataError) -> ApiError:
    """What to answer where a tokenizer has failed: the first message that it has no ids for."""
    for number, message in enumerate(messages):
        try:
            tokenizer.encode(message.content)
        except DataError as found:
            place = f"messages.{number}.content"
            return ApiError(400, f"{place}: {found}", "invalid_value", place)
    return ApiError(400, str(error), "invalid_value", "messages")
