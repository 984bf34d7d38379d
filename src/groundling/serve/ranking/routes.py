"""Ranking over HTTP: questions, durable answers, and training of a reward model."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from pydantic import BeforeValidator, Field
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from groundling.align.preferences.judgement import SKIP, Choice, Judgement, choice_of_best, now_utc, tie_of
from groundling.align.preferences.terminal import MAX_SHOWN
from groundling.serve.completions.completion import generate_reply
from groundling.serve.completions.schema import Body, whole
from groundling.serve.http.errors import ApiError, in_time
from groundling.serve.http.responses import as_json
from groundling.serve.ranking.prompts import Prompts
from groundling.serve.ranking.question_queue import Question, QuestionQueue, RankedModel
from groundling.serve.ranking.reward_training import MIN_PAIRS, RewardTraining, require_enough
from groundling.serve.ranking.store import MAYBE_DONE, Store
from groundling.serve.state import ServerState
from groundling.text.chat.messages import Message

Rater = Annotated[str, Field(min_length=1, max_length=100)]
Place = Annotated[int, Field(ge=1, le=MAX_SHOWN), BeforeValidator(whole)]
Groups = Annotated[
    list[Annotated[list[Place], Field(min_length=1, max_length=MAX_SHOWN)]], Field(min_length=1, max_length=MAX_SHOWN)
]


class Best(Body):
    """One reply is better than all others."""

    best: Place


class Answer(Body):
    """A rater's answer. Places count from 1 in the order shown."""

    question: str = Field(min_length=1, max_length=100)
    choice: Literal["tie", "skip"] | Best | Groups
    rater: Rater
    key: str = Field(
        pattern=r"^[A-Za-z0-9._-]{8,100}$", description="8 to 100 letters, digits, dots, underscores or hyphens"
    )


class TrainRequest(Body):
    """The served model to start from; by default the first chat model."""

    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None


def router(server: ServerState) -> APIRouter:
    """Routes of the ranking page.

    Raises:
        DataError: the prompts file cannot be read or is invalid.
    """
    store, prompts = Store(server.config.rankings, counted=server.counted), Prompts(server.config.prompts)
    fetching = CapacityLimiter(1)  # not in the shared thread pool: a download can take long
    training = RewardTraining(server.config.runs, server.config.rankings)

    questions = QuestionQueue()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await training.stop()
        await store.close()

    routes = APIRouter(prefix="/v1/groundling/rankings", tags=["rankings"], lifespan=lifespan)

    async def asked(client: str, rater: str, n: int, prompt: str | None) -> bytes:
        models = _ranked_models(server, client)
        if prompt is None:
            given = await to_thread.run_sync(prompts.get, limiter=fetching)
        else:
            given = [(Message("user", await server.check_prompt(prompt)),)]
        answered = await store.call(lambda cache: cache.answered(rater))
        question = await questions.ask(rater, n, given, models, answered)
        messages = [{"role": message.role, "content": message.content} for message in question.messages]
        replies = [{"place": place, "text": text} for place, text in enumerate(question.texts(), 1)]
        return as_json({"question": question.token, "messages": messages, "replies": replies})

    @routes.get("/next", dependencies=[Depends(_require_own_page(server.config.cors_origins))])
    async def ask(
        request: Request,
        rater: Annotated[str, Query(min_length=1, max_length=100)],
        n: Annotated[int, Query(ge=2, le=MAX_SHOWN)] = 2,
        prompt: Annotated[str | None, Query(min_length=1, max_length=4000)] = None,
    ) -> Response:
        """Get a question: a prompt and replies, without the models' names."""
        server.require_ready()
        asking = asked(request.state.client, rater, n, prompt)
        return await server.respond_with(request, in_time(asking, server.config.timeout_s))

    @routes.post("")
    async def keep(answer: Answer) -> dict[str, Any]:
        """Store an answer; it is on disk when this responds. Idempotent by key."""
        question = questions.get(answer.question)
        until = store.deadline()
        known = await store.call(lambda cache: cache.get(answer.key), until)
        if known is None:
            known = await _keep_new(store, question, answer, until)
        return _response(_same(known, question, answer))

    @routes.get("")
    async def count(rater: Annotated[str | None, Query(min_length=1, max_length=100)] = None) -> dict[str, Any]:
        """Count the answers."""
        until = store.deadline()
        counts, _ = await store.call(lambda cache: cache.counts(rater), until)
        if rater is not None:
            answered = await store.call(lambda cache: cache.answered(rater), until)
            counts["prompts_by_you"] = prompts.n_among(answered)
        facts = {"prompts_from": prompts.source, "to_ask": prompts.n_known, "models": server.models.chat_models()}
        return {**counts, **facts, "least_pairs": MIN_PAIRS}

    @routes.get("/export", response_class=Response, responses={200: {"content": {"application/x-ndjson": {}}}})
    async def export() -> Response:
        """Export all answers as JSON lines, as `groundling rankings export` does."""
        await store.call(lambda cache: cache.counts(None))  # report errors of the file before the first byte
        headers = {"Content-Disposition": 'attachment; filename="rankings.jsonl"', "Cache-Control": "no-store"}
        return _Export(_lines(store), server.counted, headers=headers, media_type="application/x-ndjson")

    _add_training(routes, server, store, training)
    return routes


def _add_training(routes: APIRouter, server: ServerState, store: Store, training: RewardTraining) -> None:
    @routes.post("/train")
    async def train(request: TrainRequest) -> dict[str, Any]:
        """Train a reward model on the answers."""
        server.require_ready()
        served = server.models.get(request.model or _chat_models(server)[0])
        if not served.is_chat_model:
            raise ApiError(
                409, f"{served.name} is a base model, not a chat model; start from a chat model", "not_a_chat_model"
            )
        counts, n_prompts = await store.call(lambda cache: cache.counts(None))
        require_enough(counts["pairs"], n_prompts)
        await training.start(served.name, served.path, counts["useful"])
        return await to_thread.run_sync(training.facts)

    @routes.get("/train")
    async def look() -> dict[str, Any]:
        """Get the progress of the training."""
        return await to_thread.run_sync(training.facts)

    @routes.delete("/train")
    async def stop() -> dict[str, Any]:
        """Stop the training, if one is running."""
        await training.stop()
        return await to_thread.run_sync(training.facts)


def _require_own_page(allowed: Sequence[str]) -> Callable[[Request], Awaitable[None]]:
    """A dependency that refuses other sites' pages even for GET: a question costs decoding time.

    The request of an <img> has no Origin, but browsers send Sec-Fetch-Site.
    """
    origins = {origin.lower().rstrip("/") for origin in allowed}

    async def require(request: Request) -> None:
        is_foreign = request.headers.get("sec-fetch-site", "none").lower() in ("cross-site", "same-site")
        if is_foreign and request.headers.get("origin", "").lower() not in origins:
            message = "a page of another site may not do this; allow its origin with --cors-origins"
            raise ApiError(403, message, "origin_not_allowed")

    return require


def _chat_models(server: ServerState) -> list[str]:
    """Names of the chat models.

    Raises:
        ApiError: 409: no served model is a chat model.
    """
    found = server.models.chat_models()
    if not found:
        raise ApiError(409, "no served model is a chat model; serve one that `groundling sft` made", "no_speaker")
    return found


def _ranked_models(server: ServerState, client: str) -> list[RankedModel]:
    """The chat models, decoding in turns with other clients."""
    reply = partial(generate_reply, server, client=client)
    return [RankedModel(name, partial(reply, name)) for name in _chat_models(server)]


async def _keep_new(store: Store, question: Question | None, answer: Answer, until: float) -> Judgement:
    """Store an answer with a new key, or return the one that was stored under the key meanwhile.

    Raises:
        ApiError: 404, 409: no such question, another rater's, or answered.
    """
    if question is None:
        raise ApiError(404, "this question is unknown or expired; ask for another one", "no_question", "question")
    if question.rater != answer.rater:
        raise ApiError(409, "this question was put to another rater; ask for one of your own", "not_yours", "rater")
    if question.key not in (None, answer.key):
        raise ApiError(409, "this question has been answered; ask for another one", "answered", "question")
    judgement = Judgement(
        key=answer.key,
        messages=question.messages,
        candidates=question.candidates,
        shown=question.shown,
        choice=_to_choice(answer, question.shown),
        rater=answer.rater,
        time=now_utc(),
    )
    question.key = answer.key
    try:
        return await store.call(lambda cache: cache.keep(judgement), until)
    except ApiError as error:
        if error.code != MAYBE_DONE:
            question.key = None
        raise


def _same(known: Judgement, question: Question | None, answer: Answer) -> Judgement:
    """Check that the stored judgement equals the answer.

    Raises:
        ApiError: 409: another answer has this key.
    """
    same = known.rater == answer.rater and known.choice == _to_choice(answer, known.shown)
    if question is not None:
        asked = (question.messages, question.candidates, question.shown)
        same = same and asked == (known.messages, known.candidates, known.shown)
    if not same:
        raise ApiError(409, "another answer was kept under this key; give each answer its own", "key_used", "key")
    return known


def _to_choice(answer: Answer, shown: tuple[int, ...]) -> Choice:
    """Translate places to candidate numbers.

    Raises:
        ApiError: 400: a place is invalid or repeated.
    """
    choice = answer.choice
    if isinstance(choice, str):
        return tie_of(len(shown)) if choice == "tie" else SKIP
    groups = [[choice.best]] if isinstance(choice, Best) else choice
    places = [place for group in groups for place in group]
    if len(set(places)) < len(places) or max(places) > len(shown):
        message = f"choice: {places} must be places from 1 to {len(shown)}, each once at most"
        raise ApiError(400, message, "invalid_value", "choice")
    if isinstance(choice, Best):
        return choice_of_best(shown[choice.best - 1], len(shown))
    ranked = tuple(tuple(sorted(shown[place - 1] for place in group)) for group in groups)
    return choice_of_best(ranked[0][0], len(shown)) if len(ranked) == len(ranked[0]) == 1 else ranked


def _response(kept: Judgement) -> dict[str, Any]:
    """The response for a stored answer, with the models' names."""
    place_of = {number: place for place, number in enumerate(kept.shown, 1)}
    named = {SKIP: "skip", tie_of(len(kept.candidates)): "tie"}
    choice = named.get(kept.choice) or [[place_of[number] for number in group] for group in kept.choice]
    shown = [kept.candidates[number] for number in kept.shown]
    revealed = [{"place": place, "model": each.model, "seed": each.seed} for place, each in enumerate(shown, 1)]
    return {"key": kept.key, "choice": choice, "rater": kept.rater, "time": kept.time, "revealed": revealed}


class _Export(StreamingResponse):
    """A stream that draining waits for until it is sent, not only while the file is read.

    Args:
        lines: to send.
        counted: context manager entered while sending.
        **options: of any response.
    """

    def __init__(
        self, lines: AsyncIterator[str], counted: Callable[[], AbstractContextManager[None]], **options: Any
    ) -> None:
        super().__init__(lines, **options)
        self._counted = counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: send the lines."""
        with self._counted():
            await super().__call__(scope, receive, send)


async def _lines(store: Store) -> AsyncIterator[str]:
    async for judgement in store.judgements():
        yield json.dumps(judgement.to_json(), ensure_ascii=False) + "\n"
