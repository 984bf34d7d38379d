"""`/v1/groundling/xray`: run a text through a model, and return attention and logits as one JSON object.

Large arrays are base64: attention as one byte per weight (255 is 1), the lower triangle row by row; logits of the last
position as little-endian 32-bit floats for all ids, so that the page can apply temperature, top-k and top-p itself.

Concurrency is limited: each request takes megabytes, and time of the decoding thread.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from fastapi import APIRouter, Request
from pydantic import Field, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from torch import Tensor

from groundling.bundle import Bundle, ChatBundle
from groundling.bundle.layout import CHECKPOINTS, model_checkpoints, val_loss_of
from groundling.errors import CheckpointError, DataError
from groundling.model.gpt import GPT
from groundling.model.inspect import ForwardTrace, HeadScores, score_heads, trace_forward
from groundling.sample.generate import encode_prompt
from groundling.serve.checkpoints import CheckpointCache, run_to_end
from groundling.serve.completions.conversation import conversation, encoding_error
from groundling.serve.completions.schema import Body, ChatMessage, Text
from groundling.serve.http.errors import ApiError
from groundling.serve.http.responses import as_json
from groundling.serve.state import Served, ServerState
from groundling.storage.manifest import read_manifest

T = TypeVar("T")
AT_ONCE = 2
"""Concurrent requests."""
MAX_WAITING = 6
"""Queued requests."""
MAX_TOKENS = 256
MAX_BYTES = 1_500_000
"""Maximum bytes of attention, before base64."""
N_NEXT = 60
"""Number of next tokens returned with their text."""


class XrayRequest(Body):
    """A text to analyze: a prompt, or the messages of a conversation."""

    model: str = Field(min_length=1, max_length=200)
    checkpoint: (
        Annotated[str, Field(pattern=r"^(best|last|[0-9]{1,12})$", description='"best", "last", or a step')] | None
    ) = None
    """Checkpoint of a run: "best", "last", or a step."""
    prompt: Text | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1, max_length=1000)

    @model_validator(mode="after")
    def _check(self) -> "XrayRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


def router(server: ServerState) -> APIRouter:
    """Return the routes of the X-ray."""
    routes = APIRouter(prefix="/v1/groundling", tags=["groundling"])
    limit, checkpoint_cache, inspector = _ConcurrencyLimit(), CheckpointCache(), _Inspector()

    @routes.get("/checkpoints")
    async def checkpoints(model: str) -> dict[str, Any]:
        """List the checkpoints of a served run."""
        server.require_ready()
        served = server.models.get(model)
        found = await run_in_threadpool(_checkpoints, served)
        return {"model": model, "checkpoints": found}

    async def analyze(body: XrayRequest, served: Served) -> bytes:
        async with limit.place():
            bundle = await checkpoint_cache.get(served, body.checkpoint)
            ids = await run_in_threadpool(_ids, body, bundle)
            _check_size(ids, bundle, "messages" if body.prompt is None else "prompt")
            found = await run_to_end(server.worker.call(lambda: inspector.look(bundle, ids)))
            return await run_in_threadpool(_response, served.name, body.checkpoint, bundle, ids, *found)

    @routes.post("/xray", response_class=Response, responses={200: {"content": {"application/json": {}}}})
    async def xray(body: XrayRequest, request: Request) -> Response:
        """Analyze a text: attention, and predictions at each layer."""
        server.require_ready()
        served = server.models.get(body.model)
        return await server.respond_with(request, analyze(body, served))

    return routes


class _ConcurrencyLimit:
    """A semaphore with a bounded queue."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(AT_ONCE)
        self._n_held = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a slot for the duration of the block.

        Raises:
            ApiError: 429: the queue is full.
        """
        if self._n_held >= AT_ONCE + MAX_WAITING:
            message = f"{self._n_held} texts are being analyzed or waiting, and there is no room for more; try later"
            raise ApiError(429, message, "queue_full", retry_after_s=1)
        self._n_held += 1
        try:
            async with self._places:
                yield
        finally:
            self._n_held -= 1


class _Inspector:
    """Inspects models in the model thread; caches the head scores, which do not depend on the text."""

    def __init__(self) -> None:
        self._scores: WeakKeyDictionary[GPT, HeadScores | None] = WeakKeyDictionary()

    def look(self, bundle: Bundle, ids: Sequence[int]) -> tuple[ForwardTrace, HeadScores | None]:
        """Return the internals for a text, and the scores of the heads."""
        model = bundle.model
        if model not in self._scores:
            self._scores[model] = score_heads(model, bundle.tokenizer.vocab_size)
        return trace_forward(model, ids, bundle.n_ids), self._scores[model]


def _checkpoints(served: Served) -> list[dict[str, Any]]:
    if served.run is None:
        return []
    found = []
    for step, folder in model_checkpoints(Path(served.run) / CHECKPOINTS).items():
        with suppress(CheckpointError):  # a run in progress removes old ones
            found.append({"checkpoint": str(step), "step": step, "val_loss": val_loss_of(read_manifest(folder))})
    return found


def _ids(body: XrayRequest, bundle: Bundle) -> list[int]:
    tokenizer = bundle.tokenizer
    if body.prompt is not None:
        try:
            return encode_prompt(tokenizer, body.prompt)
        except DataError as error:
            raise ApiError(400, f"prompt: {error}", "invalid_value", "prompt") from error
    if not isinstance(bundle, ChatBundle):
        message = f"{body.model} is a base model, not a chat model; give a prompt"
        raise ApiError(400, message, "not_a_chat_model", "messages")
    assert body.messages is not None
    messages = conversation(body.messages)
    try:
        if messages[-1].role == "assistant":  # include a final reply, without its end token
            return bundle.chat.render(messages, tokenizer).ids[:-1]
        return bundle.encode_chat(messages)
    except DataError as error:
        raise encoding_error(messages, tokenizer, error) from error


def _check_size(ids: Sequence[int], bundle: Bundle, param: str) -> None:
    c, n = bundle.config, len(ids)
    most = min(MAX_TOKENS, c.block_size)
    if n > most:
        message = f"the text has {n} tokens, and the X-ray shows at most {most}; shorten it"
        raise ApiError(400, message, "context_length_exceeded", param)
    if c.n_layer * c.n_head * n * (n + 1) // 2 > MAX_BYTES:
        message = f"{c.n_layer * c.n_head} heads over {n} tokens are more than a page can show; shorten the text"
        raise ApiError(400, message, "context_length_exceeded", param)


def _response(
    name: str, checkpoint: str | None, bundle: Bundle, ids: list[int], seen: ForwardTrace, scores: HeadScores | None
) -> bytes:
    next_ids = seen.logits_V.topk(min(N_NEXT, len(seen.logits_V))).indices.tolist()
    named = {*ids, *next_ids, *seen.likely_LTK.flatten().tolist()}
    found = {
        "model": name,
        "checkpoint": checkpoint,
        "n_layer": bundle.config.n_layer,
        "n_head": bundle.config.n_head,
        "tokens": ids,
        "pieces": {str(id): _piece(bundle, id) for id in sorted(named)},
        "structure": [_is_structure(bundle, id) for id in ids],
        "attention": [[_packed(head_TS) for head_TS in layer_HTS] for layer_HTS in seen.attention_LHTS],
        "norms": {
            "stream": _rounded(seen.stream_norms_LT),
            "attention": _rounded(seen.attention_norms_LT),
            "mlp": _rounded(seen.mlp_norms_LT),
        },
        "lens": {
            "ids": seen.likely_LTK.tolist(),
            "probabilities": _rounded(seen.likely_logprobs_LTK.exp()),
            "of_what_follows": _rounded(seen.following_LT),
        },
        "next": {
            "ids": next_ids,
            "logits": base64.b64encode(seen.logits_V.numpy().astype("<f4").tobytes()).decode(),
        },
        "scores": None
        if scores is None
        else {
            "previous": _rounded(scores.previous_LH),
            "induction": _rounded(scores.induction_LH),
            "first": _rounded(scores.first_LH),
        },
    }
    return as_json(found)


def _is_structure(bundle: Bundle, id: int) -> bool:
    """Whether an id is not text: a role token, another special token, or padding."""
    is_special = id >= bundle.tokenizer.vocab_size or id in bundle.tokenizer.special.values()
    return is_special or (bundle.chat is not None and id in bundle.chat.special_ids())


def _piece(bundle: Bundle, id: int) -> str:
    if id < bundle.tokenizer.vocab_size:
        return bundle.tokenizer.piece(id)
    names = {} if bundle.chat is None else bundle.chat.names(bundle.tokenizer)
    return f"<{names.get(id, id)}>"


def _packed(head_TS: Tensor) -> str:
    """Encode the lower triangle of a head's attention, one byte per weight."""
    rows, columns = torch.tril_indices(*head_TS.shape)
    quantised = (head_TS[rows, columns] * 255).round().to(torch.uint8)
    return base64.b64encode(quantised.numpy().tobytes()).decode()


def _rounded(values: Tensor) -> Any:
    return torch.round(values.double(), decimals=5).tolist()
