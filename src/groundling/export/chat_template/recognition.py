"""Convert a foreign chat template to one of ours by rendering probe conversations.

The text around the probes' content gives the openings and closings of each role. The candidate is then verified: on
further conversations it must give the same ids as the model's own tokenizer gives for the rendered text. Any other
template is not recognised.
"""

import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from groundling.errors import DataError
from groundling.export.chat_template.rendering import TemplateError, find_template, render, token_names
from groundling.text.chat.messages import ROLES, Message, Role
from groundling.text.chat.template import ChatTemplate, Segments, Thinking, to_ids
from groundling.text.chat.wrapped_turns import WrappedTurns
from groundling.text.tokenizer import Tokenizer, require_unicode

SYSTEM, ASKED, ANSWERED, NEXT = "Wqsys", "Wquser", "Wqreply", "Wqnext"
"""Content of the probes: words that no template contains or changes."""
THINK = re.compile(r"(<[^<>]+>)(\s*)(</[^<>]+>)(\s*)")
"""Empty reasoning: two tags, and white space."""

Names = Mapping[str, int]
EncodeText = Callable[[str], list[int]]
Probe = tuple[Sequence[Message], bool, bool]
"""Messages, whether to add the generation prompt, and whether the model may reason."""


def read_chat(folder: Path, tokenizer: Tokenizer, names: Names, encode: EncodeText) -> ChatTemplate | None:
    """Return the chat template of a model's folder; None: it has none.

    Args:
        folder: in the layout of `transformers`.
        tokenizer: the imported tokenizer.
        names: text to id of the special tokens.
        encode: encodes a rendered conversation as the model's own tokenizer does, matching special tokens.

    Raises:
        TemplateError: the template cannot be read, or is not recognised.
    """
    template = find_template(folder)
    if template is None:
        return None
    recognizer = _Recognizer(template, token_names(folder), names)
    try:
        chat = recognizer.candidate()
        _check(chat, recognizer, tokenizer, encode)
    except DataError as error:
        raise TemplateError(str(error)) from error
    return chat


class _Recognizer:
    """Renders probes, and derives a template of ours from their text."""

    def __init__(self, template: str, tokens: dict[str, str], names: Names) -> None:
        self.names, self._template, self._tokens = names, template, tokens
        pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        self._cut = re.compile(f"({pattern})") if names else None

    def texts(self, probes: Sequence[Probe]) -> list[str]:
        """Render each probe."""
        variables: list[dict[str, Any]] = []
        for messages, add_generation_prompt, thinking in probes:
            plain = [{"role": message.role, "content": message.content} for message in messages]
            # As in transformers, tools and documents are defined as None.
            variables.append(
                {"messages": plain, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
            )
            if not thinking:
                variables[-1]["enable_thinking"] = False
        found = []
        for answer in render(self._template, self._tokens, variables):
            if isinstance(answer, TemplateError):
                raise answer
            require_unicode(answer)
            found.append(answer)
        return found

    def candidate(self) -> WrappedTurns:
        """Return the template of ours that renders the probes to the same text.

        Raises:
            TemplateError: there is none.
        """
        user, reply = Message("user", ASKED), Message("assistant", ANSWERED)
        first, opened, unthinking, answered, longer, with_system, spaced = self.texts(
            [
                ([user], False, True),
                ([user], True, True),
                ([user], True, False),
                ([user, reply], False, True),
                ([user, reply, Message("user", NEXT)], False, True),
                ([Message("system", SYSTEM), user], False, True),
                ([Message("user", f" \n{ASKED}\n ")], False, True),
            ]
        )
        before_user, after_user = _around(first, ASKED)
        ask = _after(opened, first, "the assistant's opening follows the last message")
        nothing = _after(unthinking, opened, "empty reasoning follows the assistant's opening")
        history, closing = _around(answered, ANSWERED)
        middle = _around(_around(longer, ANSWERED)[1], NEXT)[0]
        opening = _after(middle, closing, "every reply has the same closing")
        begin, default, system = self._system(with_system, _before(before_user, opening, "the user's opening"), opening)
        if history not in (first + ask, first + ask + nothing):
            raise TemplateError("it renders a reply differently from the generation prompt")
        pieces = {"system": system, "user": (opening, after_user), "assistant": (ask, closing)}
        roles: list[Role] = list(ROLES)
        return WrappedTurns(
            openings={role: self._segments(pieces[role][0]) for role in roles},
            closings={role: self._segments(pieces[role][1]) for role in roles},
            begin=self._segments(begin),
            default_system=default,
            trim=f" \n{ASKED}" not in spaced,
            thinking=self._thinking(nothing),
        )

    def _system(self, text: str, head: str, opening: str) -> tuple[str, str | None, tuple[str, str]]:
        """Return the beginning, the default system message, and the opening and closing of a system message.

        Args:
            text: rendering of a system and a user message.
            head: what precedes the user's opening without a system message.
            opening: the user's opening.
        """
        front, rest = _around(text, SYSTEM)
        closing = _before(_around(rest, ASKED)[0], opening, "the user's opening")
        if front.startswith(head):
            return head, None, (front[len(head) :], closing)
        default = _before(
            _after(head, front, "the default system message is rendered as any system message"), closing, "its closing"
        )
        return "", default, (front, closing)

    def _thinking(self, nothing: str) -> Thinking | None:
        if not nothing:
            return None
        tags = THINK.fullmatch(nothing)
        if tags is None or tags[1] not in self.names or tags[3] not in self.names:
            raise TemplateError(f"{nothing[:40]!r}, which turns thinking off, is not a pair of special tokens")
        return Thinking(self.names[tags[1]], self.names[tags[3]], self._segments(nothing))

    def _segments(self, text: str) -> Segments:
        parts = self._cut.split(text) if self._cut is not None else [text]
        return tuple(self.names.get(part, part) for part in parts if part)


def _around(text: str, words: str) -> tuple[str, str]:
    """Return what precedes and follows content, which must occur once."""
    if text.count(words) != 1:
        raise TemplateError("it omits, repeats or changes a message")
    before, _, after = text.partition(words)
    return before, after


def _after(text: str, front: str, rule: str) -> str:
    """Return what follows `front` in a text."""
    if not text.startswith(front):
        raise TemplateError(f"it breaks the rule that {rule}")
    return text[len(front) :]


def _before(text: str, end: str, what: str) -> str:
    """Return what precedes `end` in a text."""
    if not text.endswith(end):
        raise TemplateError(f"{what} is not always the same")
    return text[: len(text) - len(end)]


def _check(chat: ChatTemplate, recognizer: _Recognizer, tokenizer: Tokenizer, encode: EncodeText) -> None:
    """Check that conversations get the same ids as from the model's own tokenizer.

    The last reply of a complete conversation is compared as text, because we encode it apart from its opening, as it is
    generated.

    Raises:
        TemplateError: they do not.
        DataError: the tokenizer cannot encode them.
    """
    probes = _check_probes()
    special = set(recognizer.names.values())
    for (messages, add_generation_prompt, thinking), text in zip(probes, recognizer.texts(probes), strict=True):
        theirs = encode(text)
        if add_generation_prompt:
            is_same = chat.prompt(messages, tokenizer, thinking=thinking) == theirs
        else:
            ours = [*chat.render(messages, tokenizer).ids, *to_ids(chat.closing("assistant")[1:], tokenizer)]
            is_same = _as_text(ours, tokenizer, special) == _as_text(theirs, tokenizer, special)
        if not is_same:
            raise TemplateError(f"it renders {_shown(messages)} differently from other conversations")


def _check_probes() -> list[Probe]:
    """Conversations of all lengths, with and without a system message, and with unusual content."""
    users = ("Hello!", "\n\nWhy?\tSo  ", "1 + 1 = 2, été 日本 🙂\n", "", "a\r\nb\0{{ c }}", "word " * 1000)
    replies = ("Yes. ", "It's 12345.\n\n- a\n- b", " No", "\n\nSo", "", "<b>&amp;</b>")
    turns = [
        turn
        for pair in zip(users, replies, strict=True)
        for turn in (Message("user", pair[0]), Message("assistant", pair[1]))
    ]
    starts: list[list[Message]] = [[], [Message("system", "You are brief.\n")], [Message("system", "")]]
    return [
        ([*start, *turns[:n]], n % 2 == 1, thinking)
        for start in starts
        for n in range(1, len(turns) + 1)
        for thinking in (True, False)
        if n % 2 == 1 or thinking
    ]


def _as_text(ids: Sequence[int], tokenizer: Tokenizer, special: Collection[int]) -> list[int | str]:
    """Decode ids to special ids and the text between them."""
    found: list[int | str] = []
    for is_special, group in itertools.groupby(ids, special.__contains__):
        some = list(group)
        found += some if is_special else [tokenizer.decode(some)]
    return found


def _shown(messages: Sequence[Message]) -> str:
    return ", ".join(f"{message.role} {message.content[:30]!r}" for message in messages[-2:])
