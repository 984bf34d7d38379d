"""Questions for raters: a prompt, replies in random order, and a token for the answer.

A question is kept until it is answered or expires. The models behind its replies are not revealed before.
"""

import asyncio
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from groundling.align.preferences.judgement import Candidate, messages_to_json, short_hash
from groundling.align.preferences.simulated_rater import named_generator
from groundling.align.preferences.terminal import name_and_seeds
from groundling.serve.http.errors import ApiError
from groundling.text.chat.messages import Message

Messages = tuple[Message, ...]
KEPT_S = 3600.0
MAX_HELD = 1000
MAX_OF_ONE = 16
"""Open questions per rater; older ones are dropped."""
LOOKS = 20
"""Prompts to try for one question: some do not fit the models."""
TRIES = 3
"""Attempts to generate replies for one question: sometimes all are the same."""

ReplyFn = Callable[[Messages, int], Awaitable[str | None]]
"""(conversation, seed) -> reply; None: the safety stage blocks it. Raises ApiError 400 if the model cannot reply."""


class RankedModel(NamedTuple):
    """A model, and how to generate its reply."""

    name: str
    reply: ReplyFn


@dataclass(eq=False)
class Question:
    """A question put to a rater."""

    token: str
    rater: str
    messages: Messages
    candidates: tuple[Candidate, ...]
    shown: tuple[int, ...]
    """The candidates' numbers in the order shown; derived from the random token."""
    until: float
    key: str | None = None
    """Key of the answer; None: not answered."""

    def texts(self) -> list[str]:
        """The replies in the order shown."""
        return [self.candidates[number].text for number in self.shown]


@dataclass
class QuestionQueue:
    """Open questions, and recent answered ones.

    Args:
        clock: time in seconds.
    """

    clock: Callable[[], float] = time.monotonic
    _held: "OrderedDict[str, Question]" = field(default_factory=OrderedDict)
    _coming: "Counter[tuple[str, Messages]]" = field(default_factory=Counter)
    """Prompts whose replies are being generated, by rater."""
    _unfit: dict[Messages, str] = field(default_factory=dict)
    """Prompts that the models cannot reply to, and why."""
    _dull: "Counter[Messages]" = field(default_factory=Counter)
    """How often all replies to a prompt were the same or blocked."""

    def get(self, token: str) -> Question | None:
        """The question of this token, if it is still kept."""
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
        """The next question for a rater: the first prompt among those asked least often.

        Args:
            rater: name of the rater.
            n: number of replies.
            prompts: to choose from.
            models: that may reply.
            answered: how often the rater has answered each prompt.

        Raises:
            ApiError: 409: no prompt has replies to choose between; or an error of a model.
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
            left.append(messages)  # other samples may differ
        raise ApiError(409, f"there is nothing to choose: {refusal}; give other prompts", "nothing_to_ask")

    async def _replies(
        self, rater: str, messages: Messages, models: Sequence[RankedModel], n_before: int
    ) -> tuple[Candidate, ...] | None:
        """Replies to a prompt, equal for all raters so that judgements can be compared. None: one is blocked."""
        _, seeds = name_and_seeds(messages, [model.name for model in models], n_before)
        self._coming[rater, messages] += 1
        try:
            texts = await _together([model.reply(messages, seed) for model, seed in zip(models, seeds, strict=True)])
        finally:
            self._coming[rater, messages] -= 1
            self._coming += Counter()  # drop zero counts
        candidates = [
            Candidate(text, model.name, seed)
            for text, model, seed in zip(texts, models, seeds, strict=True)
            if text is not None
        ]
        return tuple(candidates) if len(candidates) == len(models) else None

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
    """Choose the models that reply to a prompt: equally often, and in all pairs over many prompts.

    Depends only on the prompt and on how often it was asked before, so it is equal for all raters.
    """
    order = named_generator("turns", short_hash(messages_to_json(messages)), n_before).permutation(len(models))
    return [models[order[place % len(models)]] for place in range(n)]


def _keep_newest(notes: dict[Messages, Any]) -> None:
    while len(notes) > MAX_HELD:
        del notes[next(iter(notes))]


async def _together(work: Sequence[Awaitable[str | None]]) -> list[str | None]:
    """Await all; if one fails, cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
