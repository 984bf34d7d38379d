"""A foreign chat template as one of ours, recognised by what it renders.

Probe conversations are rendered to text; what stands between their words gives the openings and closings of each
role. The candidate is then checked: on more conversations it has to give the very ids that the model's own tokenizer
makes of the rendered text. A template that does anything else is not recognised.
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
"""The words of the probes: no template holds them, nor changes them."""
THINK = re.compile(r"(<[^<>]+>)(\s*)(</[^<>]+>)(\s*)")
"""The block of no thoughts: two tags, and white space."""

Names = Mapping[str, int]
EncodeText = Callable[[str], list[int]]
Probe = tuple[Sequence[Message], bool, bool]
"""Messages, whether the assistant is to speak next, and whether it may think."""


def read_chat(folder: Path, tokenizer: Tokenizer, names: Names, encode: EncodeText) -> ChatTemplate | None:
    """The chat template of a model's folder; None: it has none.

    Args:
        folder: in the layout of `transformers`.
        tokenizer: ours of this folder.
        names: text to id of all tokens beside its vocabulary.
        encode: the model's own encoding of a rendered conversation, which finds those tokens in the text.

    Raises:
        TemplateError: it has one that cannot be read, or is not recognised.
    """
    template = find_template(folder)
    if template is None:
        return None
    reader = _Reader(template, token_names(folder), names)
    try:
        chat = reader.candidate()
        _check(chat, reader, tokenizer, encode)
    except DataError as error:
        raise TemplateError(str(error)) from error
    return chat


class _Reader:
    """What a template renders of the probes."""

    def __init__(self, template: str, tokens: dict[str, str], names: Names) -> None:
        self.names, self._template, self._tokens = names, template, tokens
        pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        self._cut = re.compile(f"({pattern})") if names else None

    def texts(self, probes: Sequence[Probe]) -> list[str]:
        """The text of each probe."""
        variables: list[dict[str, Any]] = []
        for messages, asks, thinking in probes:
            said = [{"role": message.role, "content": message.content} for message in messages]
            # As transformers does it, tools and documents are there, and are none.
            variables.append({"messages": said, "add_generation_prompt": asks, "tools": None, "documents": None})
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
        """The template of ours that renders the probes alike.

        Raises:
            TemplateError: there is none.
        """
        user, reply = Message("user", ASKED), Message("assistant", ANSWERED)
        first, asked, unthinking, answered, longer, told, spaced = self.texts(
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
        ask = _after(asked, first, "the assistant's opening follows the last message")
        nothing = _after(unthinking, asked, "the block of no thoughts follows the assistant's opening")
        history, closing = _around(answered, ANSWERED)
        middle = _around(_around(longer, ANSWERED)[1], NEXT)[0]
        opening = _after(middle, closing, "a reply ends alike wherever it stands")
        begin, default, system = self._system(told, _before(before_user, opening, "the user's opening"), opening)
        if history not in (first + ask, first + ask + nothing):
            raise TemplateError("it lays out a reply otherwise than it asks for one")
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

    def _system(self, told: str, head: str, opening: str) -> tuple[str, str | None, tuple[str, str]]:
        """What stands first, the default system message, and what is around a system message's words."""
        front, rest = _around(told, SYSTEM)
        closing = _before(_around(rest, ASKED)[0], opening, "the user's opening")
        if front.startswith(head):
            return head, None, (front[len(head) :], closing)
        default = _before(_after(head, front, "a default system message is a system message"), closing, "its closing")
        return "", default, (front, closing)

    def _thinking(self, nothing: str) -> Thinking | None:
        if not nothing:
            return None
        tags = THINK.fullmatch(nothing)
        if tags is None or tags[1] not in self.names or tags[3] not in self.names:
            raise TemplateError(f"{nothing[:40]!r}, which turns thinking off, is not a pair of tags of the tokenizer")
        return Thinking(self.names[tags[1]], self.names[tags[3]], self._segments(nothing))

    def _segments(self, text: str) -> Segments:
        parts = self._cut.split(text) if self._cut is not None else [text]
        return tuple(self.names.get(part, part) for part in parts if part)


def _around(text: str, words: str) -> tuple[str, str]:
    """What stands before and after words that a template repeats once."""
    if text.count(words) != 1:
        raise TemplateError("it leaves out a message, repeats or changes it")
    before, _, after = text.partition(words)
    return before, after


def _after(text: str, front: str, law: str) -> str:
    if not text.startswith(front):
        raise TemplateError(f"it breaks the rule that {law}")
    return text[len(front) :]


def _before(text: str, end: str, what: str) -> str:
    if not text.endswith(end):
        raise TemplateError(f"{what} is not the same wherever it stands")
    return text[: len(text) - len(end)]


def _check(chat: ChatTemplate, reader: _Reader, tokenizer: Tokenizer, encode: EncodeText) -> None:
    """Check that conversations become the ids that they are to the model's own tokenizer.

    The last reply of a whole conversation is compared as text: we encode it apart from its header, as it is generated.

    Raises:
        TemplateError: they do not.
        DataError: the tokenizer cannot say them.
    """
    probes = _check_probes()
    special = set(reader.names.values())
    for (messages, asks, thinking), text in zip(probes, reader.texts(probes), strict=True):
        theirs = encode(text)
        if asks:
            is_same = chat.prompt(messages, tokenizer, thinking=thinking) == theirs
        else:
            ours = [*chat.render(messages, tokenizer).ids, *to_ids(chat.closing("assistant")[1:], tokenizer)]
            is_same = _spelled(ours, tokenizer, special) == _spelled(theirs, tokenizer, special)
        if not is_same:
            raise TemplateError(f"it renders {_shown(messages)} differently from other conversations")


def _check_probes() -> list[Probe]:
    """Conversations of every length, with and without a system message; some of their words are odd ones."""
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


def _spelled(ids: Sequence[int], tokenizer: Tokenizer, special: Collection[int]) -> list[int | str]:
    """Special ids, and the text between them."""
    found: list[int | str] = []
    for is_special, group in itertools.groupby(ids, special.__contains__):
        some = list(group)
        found += some if is_special else [tokenizer.decode(some)]
    return found


def _shown(messages: Sequence[Message]) -> str:
    return ", ".join(f"{message.role} {message.content[:30]!r}" for message in messages[-2:])
