"""What raters are asked: a prompt, replies in an order of chance, and a name under which the answer comes back.

A question is held here until it is answered or too old. Nothing of where the replies come from is told before.
"""

import asyncio
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from groundling.align.judge import named_generator
from groundling.align.judgements import Candidate
from groundling.align.rank import name_and_seeds
from groundling.serve.errors import ApiError
from groundling.text.chat import Message

Messages = tuple[Message, ...]
KEPT_S = 3600.0
MOST_HELD = 1000
MOST_OF_ONE = 16
"""Questions that one rater may leave open; older ones are forgotten."""
TRIES = 20
"""Prompts that are looked at for one question: some do not fit the models, some are answered in one way only."""


class Speaker(NamedTuple):
    """A model that replies."""

    name: str
    max_new_tokens: int


Speak = Callable[[Speaker, Messages, int], Awaitable[str]]
"""(model, conversation, seed) -> what it says next. Raises ApiError 400 where it cannot reply to that."""


@dataclass(eq=False)
class Question:
    """One that was asked."""

    token: str
    rater: str
    messages: Messages
    candidates: tuple[Candidate, ...]
    shown: tuple[int, ...]
    """The candidates' numbers in the order of the screen; follows from the token, which is drawn."""
    until: float
    key: str | None = None
    """Of the answer, once there is one."""

    def texts(self) -> list[str]:
        """The replies in the order of the screen."""
        return [self.candidates[number].text for number in self.shown]


@dataclass
class Questions:
    """All that are open, and some that were answered.

    Args:
        speak: lets a model reply.
        clock: seconds.
    """

    speak: Speak
    clock: Callable[[], float] = time.monotonic
    _held: "OrderedDict[str, Question]" = field(default_factory=OrderedDict)
    _coming: "Counter[tuple[str, Messages]]" = field(default_factory=Counter)
    """Prompts whose replies are being written, by rater."""
    _unfit: dict[Messages, str] = field(default_factory=dict)
    """Prompts that the models cannot reply to, and why."""
    _dull: "Counter[Messages]" = field(default_factory=Counter)
    """How often all replies to a prompt were the same."""

    def get(self, token: str) -> Question | None:
        """The question of this name, if it is still held."""
        self._forget()
        return self._held.get(token)

    async def ask(
        self,
        rater: str,
        n: int,
        prompts: Sequence[Messages],
        speakers: Sequence[Speaker],
        answered: "Counter[Messages]",
    ) -> Question:
        """The next question for a rater: the first of the prompts that he was asked least often.

        Args:
            rater: who is asked.
            n: replies, of the models in turns.
            prompts: what may be asked.
            speakers: models that may reply.
            answered: how often he has answered each.

        Raises:
            ApiError: 409: the models can reply to none of the prompts; whatever the models cannot do.
        """
        refusal = next((self._unfit[messages] for messages in prompts if messages in self._unfit), "no prompts")
        asked = answered + self._open_for(rater) + self._dull
        left = [place for place, messages in enumerate(prompts) if messages not in self._unfit]
        for place in sorted(left, key=lambda place: asked[prompts[place]])[:TRIES]:
            messages = prompts[place]
            turns = [speakers[(place * n + k) % len(speakers)] for k in range(n)]
            try:
                candidates = await self._replies(rater, messages, turns, asked[messages])
            except ApiError as error:
                if error.status != 400:
                    raise
                refusal = error.message
                if len(self._unfit) < MOST_HELD:
                    self._unfit[messages] = error.message
                continue
            if len({candidate.text for candidate in candidates}) > 1:
                return self._hold(rater, messages, candidates)
            refusal = "all replies are the same"
            if len(self._dull) < MOST_HELD:
                self._dull[messages] += 1
        raise ApiError(409, f"there is nothing to choose: {refusal}; give other prompts", "nothing_to_ask")

    async def _replies(
        self, rater: str, messages: Messages, turns: Sequence[Speaker], seed: int
    ) -> tuple[Candidate, ...]:
        """The same for every rater: what they say of them can be compared."""
        _, seeds = name_and_seeds(messages, [speaker.name for speaker in turns], seed)
        self._coming[rater, messages] += 1
        try:
            texts = await _together(
                [self.speak(*each) for each in zip(turns, [messages] * len(turns), seeds, strict=True)]
            )
        finally:
            self._coming[rater, messages] -= 1
            self._coming += Counter()  # without what is zero
        return tuple(Candidate(text, speaker.name, own) for text, speaker, own in zip(texts, turns, seeds, strict=True))

    def _hold(self, rater: str, messages: Messages, candidates: tuple[Candidate, ...]) -> Question:
        token = secrets.token_urlsafe(18)
        order = named_generator("shown", token).permutation(len(candidates))
        shown = tuple(int(number) for number in order)
        question = Question(token, rater, messages, candidates, shown, self.clock() + KEPT_S)
        self._forget()
        own = [held.token for held in self._held.values() if held.rater == rater and held.key is None]
        for old in own[: max(0, len(own) + 1 - MOST_OF_ONE)]:
            del self._held[old]
        while len(self._held) >= MOST_HELD:
            self._held.popitem(last=False)
        self._held[token] = question
        return question

    def _open_for(self, rater: str) -> "Counter[Messages]":
        self._forget()
        found = Counter(q.messages for q in self._held.values() if q.rater == rater and q.key is None)
        found.update({messages: n for (who, messages), n in self._coming.items() if who == rater})
        return found

    def _forget(self) -> None:
        now = self.clock()
        while self._held and next(iter(self._held.values())).until < now:
            self._held.popitem(last=False)


async def _together(work: Sequence[Awaitable[str]]) -> list[str]:
    """All at once; when one fails, none goes on."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
