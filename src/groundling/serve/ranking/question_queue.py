"""What raters are asked: a prompt, replies in an order of chance, and a name under which the answer comes back.

A question is held here until it is answered or too old. Nothing of where the replies come from is told before.
"""

import asyncio
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from groundling.align.preferences.judgement import Candidate, messages_to_json, name_of
from groundling.align.preferences.simulated_rater import named_generator
from groundling.align.preferences.terminal import name_and_seeds
from groundling.serve.http.errors import ApiError
from groundling.text.chat.messages import Message

Messages = tuple[Message, ...]
KEPT_S = 3600.0
MAX_HELD = 1000
MAX_OF_ONE = 16
"""Questions that one rater may leave open; older ones are forgotten."""
LOOKS = 20
"""Prompts that are looked at for one question: some do not fit the models."""
TRIES = 3
"""How often replies are written for one question: sometimes there is nothing to choose between them."""

ReplyFn = Callable[[Messages, int], Awaitable[str | None]]
"""(conversation, seed) -> what is said next; None: it may not be shown. Raises ApiError 400 where there is no reply to
that."""


class RankedModel(NamedTuple):
    """A model that replies."""

    name: str
    reply: ReplyFn


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
class QuestionQueue:
    """All that are open, and some that were answered.

    Args:
        clock: seconds.
    """

    clock: Callable[[], float] = time.monotonic
    _held: "OrderedDict[str, Question]" = field(default_factory=OrderedDict)
    _coming: "Counter[tuple[str, Messages]]" = field(default_factory=Counter)
    """Prompts whose replies are being written, by rater."""
    _unfit: dict[Messages, str] = field(default_factory=dict)
    """Prompts that the models cannot reply to, and why."""
    _dull: "Counter[Messages]" = field(default_factory=Counter)
    """How often there was nothing to choose between the replies to a prompt."""

    def get(self, token: str) -> Question | None:
        """The question of this name, if it is still held."""
        self._forget()
        return self._held.get(token)

    async def ask(
        self,
        rater: str,
        n: int,
        prompts: Sequence[Messages],
        models: Sequence[RankedModel],
        answered: "Counter[Messages]",
    ) -> Question:
        """The next question for a rater: the first of the prompts that he was asked least often.

        Args:
            rater: who is asked.
            n: replies.
            prompts: what may be asked.
            speakers: models that may reply.
            answered: how often he has answered each.

        Raises:
            ApiError: 409: the models can reply to none of the prompts; whatever the models cannot do.
        """
        refusal = next((self._unfit[messages] for messages in prompts if messages in self._unfit), "no prompts")
        asked = answered + self._open_for(rater) + self._dull
        left = sorted((messages for messages in prompts if messages not in self._unfit), key=lambda m: asked[m])[:LOOKS]
        n_tries = 0
        while left and n_tries < TRIES:
            messages = left.pop(0)
            n_before = asked[messages]
            try:
                candidates = await self._replies(rater, messages, turns(messages, n, models, n_before), n_before)
            except ApiError as error:
                if error.status != 400:
                    raise
                refusal = self._unfit[messages] = error.message
                _keep_newest(self._unfit)
                continue
            if candidates is not None and len({candidate.text for candidate in candidates}) > 1:
                return self._hold(rater, messages, candidates)
            refusal = "the safety stage blocks a reply" if candidates is None else "all replies are the same"
            n_tries += 1
            asked[messages] += 1
            self._dull[messages] += 1
            _keep_newest(self._dull)
            left.append(messages)  # other draws may differ
        raise ApiError(409, f"there is nothing to choose: {refusal}; give other prompts", "nothing_to_ask")

    async def _replies(
        self, rater: str, messages: Messages, players: Sequence[RankedModel], n_before: int
    ) -> tuple[Candidate, ...] | None:
        """The same for every rater: what they say of them can be compared. None: one of them may not be shown."""
        _, seeds = name_and_seeds(messages, [speaker.name for speaker in players], n_before)
        self._coming[rater, messages] += 1
        try:
            texts = await _together(
                [speaker.reply(messages, seed) for speaker, seed in zip(players, seeds, strict=True)]
            )
        finally:
            self._coming[rater, messages] -= 1
            self._coming += Counter()  # without what is zero
        said = [
            Candidate(text, speaker.name, seed)
            for text, speaker, seed in zip(texts, players, seeds, strict=True)
            if text is not None
        ]
        return tuple(said) if len(said) == len(players) else None

    def _hold(self, rater: str, messages: Messages, candidates: tuple[Candidate, ...]) -> Question:
        token = secrets.token_urlsafe(18)
        order = named_generator("shown", token).permutation(len(candidates))
        shown = tuple(int(number) for number in order)
        question = Question(token, rater, messages, candidates, shown, self.clock() + KEPT_S)
        self._forget()
        own = [held.token for held in self._held.values() if held.rater == rater and held.key is None]
        for old in own[: max(0, len(own) + 1 - MAX_OF_ONE)]:
            del self._held[old]
        while len(self._held) >= MAX_HELD:
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


def turns(messages: Messages, n: int, models: Sequence[RankedModel], n_before: int) -> list[RankedModel]:
    """Who replies to a prompt: each as often as another, and all pairs of them over many prompts.

    It follows from the prompt, and from how often it was asked before: it is the same for every rater.
    """
    order = named_generator("turns", name_of(messages_to_json(messages)), n_before).permutation(len(models))
    return [models[order[place % len(models)]] for place in range(n)]


def _keep_newest(notes: dict[Messages, Any]) -> None:
    while len(notes) > MAX_HELD:
        del notes[next(iter(notes))]


async def _together(work: Sequence[Awaitable[str | None]]) -> list[str | None]:
    """All at once; when one fails, none goes on."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
