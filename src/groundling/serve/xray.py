"""`/v1/groundling/xray`: a text through a model of ours, and all that went on inside, as one JSON object.

Numbers that are many go as base64: attention as one byte for each weight (255 is 1), row after row of the lower
triangle; logits of the last position as 32-bit floats, little-endian, of all ids, so that a page can show what
temperature, top-k and top-p do to them without asking again.
"""

import base64
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import APIRouter
from pydantic import Field, model_validator
from starlette.concurrency import run_in_threadpool
from torch import Tensor

from groundling.bundle import Bundle, finished_checkpoints, load_bundle
from groundling.errors import CheckpointError, DataError
from groundling.manifest import read_manifest
from groundling.sample.attention import HeadScores, Look, look, score_heads
from groundling.sample.generate import prompt_ids
from groundling.serve.errors import ApiError
from groundling.serve.registry import Served, Theatre
from groundling.serve.schema import Body, ChatMessage, Text
from groundling.text.chat import Message, check_messages

MOST_TOKENS = 256
MOST_BYTES = 1_500_000
"""Of attention, before base64."""
KEPT = 4
"""Checkpoints that stay in memory."""
N_LIKELY = 5
"""Tokens that the lens tells at each place."""
N_NEXT = 60
"""Next tokens whose text is told."""


class XrayRequest(Body):
    """A text to be looked through: a prompt, or the messages of a conversation."""

    model: str = Field(min_length=1, max_length=200)
    checkpoint: Annotated[str, Field(pattern=r"^(best|last|[0-9]{1,12})$")] | None = None
    """Of a run: "best", "last", or a step."""
    prompt: Text | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1, max_length=1000)

    @model_validator(mode="after")
    def _check(self) -> "XrayRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


def router(theatre: Theatre) -> APIRouter:
    """The routes of the X-ray."""
    routes = APIRouter(prefix="/v1/groundling", tags=["groundling"])
    shelf = _Shelf()

    @routes.get("/checkpoints")
    async def checkpoints(model: str) -> dict[str, Any]:
        """The checkpoints of a run that is served, by step."""
        theatre.require_ready()
        served = theatre.models.get(model)
        found = await run_in_threadpool(_checkpoints, served)
        return {"model": model, "checkpoints": found}

    @routes.post("/xray")
    async def xray(body: XrayRequest) -> dict[str, Any]:
        """What goes on inside a model while it reads a text."""
        theatre.require_ready()
        served = theatre.models.get(body.model)
        bundle = await shelf.get(served, body.checkpoint)
        ids = _ids(body, bundle)
        _check_size(ids, bundle)
        n_ids = bundle.tokenizer.vocab_size if bundle.chat is None else bundle.chat.n_sayable()
        seen = await theatre.worker.call(lambda: look(bundle.model, ids, n_ids))
        scores = await theatre.worker.call(lambda: score_heads(bundle.model, bundle.tokenizer.vocab_size))
        return await run_in_threadpool(_answer, served.name, body.checkpoint, bundle, ids, seen, scores)

    return routes


class _Shelf:
    """Checkpoints that were asked for of late; the others are loaded again."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], Bundle] = OrderedDict()

    async def get(self, served: Served, checkpoint: str | None) -> Bundle:
        if checkpoint is None:
            return served.bundle
        if served.run is None:
            raise ApiError(404, f"{served.name} is not a run, and has no checkpoints", "no_checkpoint", "checkpoint")
        key = (served.name, checkpoint)
        if key not in self._kept:
            try:
                self._kept[key] = await run_in_threadpool(load_bundle, served.run, checkpoint=checkpoint)
            except CheckpointError as error:
                raise ApiError(404, str(error), "no_checkpoint", "checkpoint") from error
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]


def _checkpoints(served: Served) -> list[dict[str, Any]]:
    if served.run is None:
        return []
    steps = finished_checkpoints(Path(served.run) / "checkpoints")
    losses = {step: read_manifest(folder).get("val_loss") for step, folder in steps.items()}
    return [{"checkpoint": str(step), "step": step, "val_loss": losses[step]} for step in steps]


def _ids(body: XrayRequest, bundle: Bundle) -> list[int]:
    try:
        if body.prompt is not None:
            return prompt_ids(bundle.tokenizer, body.prompt)
        if bundle.chat is None:
            raise ApiError(
                400, f"{body.model} was never taught to answer; give a prompt", "not_a_chat_model", "messages"
            )
        assert body.messages is not None
        roles = {"developer": "system"}
        messages = [Message(roles.get(m.role, m.role), m.text()) for m in body.messages]  # type: ignore[arg-type]
        check_messages(messages, "messages")
        if messages[-1].role == "assistant":  # what was said already is looked through, up to its last word
            return bundle.chat.render(messages, bundle.tokenizer).ids[:-1]
        return bundle.chat.prompt(messages, bundle.tokenizer)
    except DataError as error:
        param = "prompt" if body.messages is None else "messages"
        raise ApiError(400, str(error), "invalid_value", param) from error


def _check_size(ids: Sequence[int], bundle: Bundle) -> None:
    c, n = bundle.config, len(ids)
    most = min(MOST_TOKENS, c.block_size)
    if n > most:
        raise ApiError(400, f"the text has {n} tokens, and {most} can be looked through", "context_length_exceeded")
    if c.n_layer * c.n_head * n * (n + 1) // 2 > MOST_BYTES:
        message = f"{c.n_layer * c.n_head} heads over {n} tokens are more than a page can show; shorten the text"
        raise ApiError(400, message, "context_length_exceeded")


def _answer(
    name: str, checkpoint: str | None, bundle: Bundle, ids: list[int], seen: Look, scores: HeadScores | None
) -> dict[str, Any]:
    lens_LTV = seen.lens_LTV.log_softmax(-1)
    best = lens_LTV.topk(min(N_LIKELY, lens_LTV.size(-1)), dim=-1)
    following = torch.tensor(ids[1:], dtype=torch.long)
    known = following.clamp(max=lens_LTV.size(-1) - 1)
    truth_LT = lens_LTV[:, :-1].exp().gather(-1, known.expand(lens_LTV.size(0), -1)[..., None])[..., 0]
    truth_LT = truth_LT * (following < lens_LTV.size(-1))
    next_ids = seen.lens_LTV[-1, -1].topk(min(N_NEXT, lens_LTV.size(-1))).indices.tolist()
    named = {*ids, *next_ids, *best.indices.flatten().tolist()}
    return {
        "model": name,
        "checkpoint": checkpoint,
        "n_layer": bundle.config.n_layer,
        "n_head": bundle.config.n_head,
        "tokens": ids,
        "pieces": {str(id): _piece(bundle, id) for id in sorted(named)},
        "structure": [id >= bundle.tokenizer.vocab_size for id in ids],
        "attention": [[_packed(head_TS) for head_TS in layer_HTS] for layer_HTS in seen.attention_LHTS],
        "norms": {
            "stream": _rounded(seen.stream_norms_LT),
            "attention": _rounded(seen.attention_norms_LT),
            "mlp": _rounded(seen.mlp_norms_LT),
        },
        "lens": {
            "ids": best.indices.tolist(),
            "probabilities": _rounded(best.values.exp()),
            "of_what_follows": _rounded(truth_LT),
        },
        "next": {
            "ids": next_ids,
            "logits": base64.b64encode(seen.lens_LTV[-1, -1].float().cpu().numpy().astype("<f4").tobytes()).decode(),
        },
        "scores": None
        if scores is None
        else {
            "previous": _rounded(scores.previous_LH),
            "induction": _rounded(scores.induction_LH),
            "first": _rounded(scores.first_LH),
        },
    }


def _piece(bundle: Bundle, id: int) -> str:
    if id < bundle.tokenizer.vocab_size:
        return bundle.tokenizer.piece(id)
    names = {} if bundle.chat is None else {number: name for name, number in bundle.chat.to_json().items()}
    return f"<{names.get(id, id)}>"


def _packed(head_TS: Tensor) -> str:
    """The lower triangle of a head's attention, a byte for each weight."""
    rows, columns = torch.tril_indices(*head_TS.shape)
    quantised = (head_TS[rows, columns] * 255).round().to(torch.uint8)
    return base64.b64encode(quantised.cpu().numpy().tobytes()).decode()


def _rounded(values: Tensor) -> Any:
    return torch.round(values.double(), decimals=5).tolist()
