"""The server's state: models by name, the thread that owns them, readiness."""

import os
import re
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from groundling.bundle import Bundle, ChatBundle, load_bundle
from groundling.bundle.adapter import base_at
from groundling.bundle.context import contexts
from groundling.bundle.layout import CHECKPOINTS, find_bundle, model_checkpoints, require_language_model
from groundling.errors import ConfigError
from groundling.safety.stream import Safety
from groundling.sample.engine import DecodeConfig, Engine, deterministic_decode
from groundling.sample.slots import CacheMemory
from groundling.serve.config import ServeConfig
from groundling.serve.decode.worker import STOP_S, Worker
from groundling.serve.http.errors import ApiError, draining, not_ready
from groundling.serve.http.responses import Gone, unless_gone
from groundling.serve.telemetry import Metrics
from groundling.serve.token_text import TokenText
from groundling.system.runtime import pick_device

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LEAVE_S = 0.3
"""Time to wait for the thread when it is loading a model, which cannot be interrupted."""


class State(Enum):
    """Lifecycle of a server."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass
class Served:
    """A served model."""

    name: str
    path: Path
    bundle: Bundle
    run: Path | None
    """The folder of the training run, if the path is one."""
    worker: Worker
    engine: Engine
    token_text: TokenText
    fingerprint: str
    created: int

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a completion."""
        return self.bundle.end_ids

    @property
    def is_chat_model(self) -> bool:
        """Whether the model has a chat template."""
        return isinstance(self.bundle, ChatBundle)

    def card(self) -> dict[str, Any]:
        """The model object of /v1/models."""
        config = self.bundle.config
        facts = {
            "chat": self.is_chat_model,
            "n_params": sum(parameter.numel() for parameter in self.bundle.model.parameters()),
            "block_size": config.block_size,
            "vocab_size": config.vocab_size,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "tokenizer": self.bundle.tokenizer.kind,
            "run": self.run is not None,
        }
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "groundling",
            "groundling": facts,
        }


class Registry:
    """The served models by name. Names from clients are looked up here and never used as paths."""

    def __init__(self) -> None:
        self._served: dict[str, Served] = {}

    def add(self, served: Served) -> None:
        """Add a model."""
        self._served[served.name] = served

    def names(self) -> list[str]:
        """Names in the order of the command line."""
        return list(self._served)

    def chat_models(self) -> list[str]:
        """Names of the chat models."""
        return [name for name, served in self._served.items() if served.is_chat_model]

    def get(self, name: str) -> Served:
        """The model of this name.

        Raises:
            ApiError: 404: unknown name.
        """
        if name not in self._served:
            raise ApiError(
                404,
                f"there is no model {name[:100]!r}; there are: {', '.join(self._served)}",
                "model_not_found",
                "model",
            )
        return self._served[name]


class ServerState:
    """State that all requests share."""

    def __init__(self, config: ServeConfig) -> None:
        self.config, self.state = config, State.LOADING
        self.models = Registry()
        self.worker = Worker(config.slots, config.max_waiting)
        self.memory = CacheMemory()
        """For keys and values of all models."""
        self.metrics = Metrics(lambda: self.worker.load)
        self.safety: Safety | None = None
        """Filters prompts and replies; None: off."""
        self.n_open = 0
        """Running requests, which draining waits for."""
        self.stopped_while_loading = False
        """Whether the server was stopped while it loaded models."""
        self.failure: Exception | None = None
        """Why the models could not be loaded."""
        self.wanted = named_paths(config.paths)

    def load(self, name: str, path: Path) -> Served:
        """Load a model; called in the decoding thread.

        Raises:
            GroundlingError: it cannot be loaded or served.
        """
        require_language_model(path)
        bundle = load_bundle(path, pick_device(self.config.device), context=self._contexts().get(name))
        return Served(
            name=name,
            path=path,
            bundle=bundle,
            run=path if model_checkpoints(path / CHECKPOINTS) else None,
            worker=self.worker,
            engine=self._engine(bundle),
            token_text=TokenText(bundle.tokenizer),
            fingerprint=f"fp_{base_at(path).sha256[:12]}",
            created=int((find_bundle(path) / "config.json").stat().st_mtime),
        )

    async def stop(self) -> None:
        """Stop the decoding thread."""
        await self.worker.stop(LEAVE_S if self.stopped_while_loading else STOP_S)

    def _contexts(self) -> dict[str, int | None]:
        """Context length of each model by name; None: the model's own."""
        return dict(zip(self.wanted, contexts(list(self.wanted.values()), self.config.context), strict=True))

    def _engine(self, bundle: Bundle) -> Engine:
        """An engine with a fixed backend, so that equal requests get equal responses."""
        decode = deterministic_decode(bundle.model, DecodeConfig(weights=self.config.weights), self.config.slots)
        slots, n_ids = self.config.slots, bundle.n_ids
        return Engine(bundle.model, decode, slots, n_ids, end_ids=bundle.end_ids, memory=self.memory)

    def require_ready(self) -> None:
        """Check that the server is ready.

        Raises:
            ApiError: 503: it is loading or shutting down.
        """
        if self.state is State.LOADING:
            raise not_ready("the models are loading; retry when /ready returns 200")
        if self.state is not State.READY:
            raise draining()

    async def respond_with(self, request: Request, work: Coroutine[Any, Any, bytes]) -> Response:
        """Respond with the JSON that `work` returns; cancel it if the client disconnects. Draining waits for it."""
        with self.counted():
            try:
                return Response(await unless_gone(request.receive, work), media_type="application/json")
            except Gone as gone:
                self.metrics.aborted.labels(gone.reason).inc()
                return Response(status_code=499)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Make draining wait for the block."""
        self.n_open += 1
        try:
            yield
        finally:
            self.n_open -= 1

    async def check_prompt(self, text: str) -> str:
        """Apply the safety stage to a prompt, and return the filtered prompt.

        Raises:
            ApiError: 400: the safety stage blocks it.
        """
        if self.safety is None:
            return text
        delta, findings = await run_in_threadpool(self.safety.check_prompt, text)
        self.metrics.count(findings)
        for finding in findings:
            if finding.action == "block":
                message = f"the safety stage blocks this prompt (rule {finding.rule!r}: {finding.reason}); rephrase it"
                raise ApiError(400, message, "content_filter", "prompt")
        return delta


def named_paths(words: Sequence[str]) -> dict[str, Path]:
    """Model names and paths of `NAME=PATH` or PATH arguments; the default name is the folder's.

    Raises:
        ConfigError: a name is invalid or used twice.
    """
    found: dict[str, Path] = {}
    for word in words:
        if word.rpartition("=")[2] == "":
            raise ConfigError(f"{word!r} names no model; give RUN_OR_BUNDLE or NAME=RUN_OR_BUNDLE")
        name, equals, path = word.partition("=")
        if not equals or Path(word).exists():
            resolved = Path(os.path.realpath(word))
            name, path = (resolved.parent.name if resolved.name == "bundle" else resolved.name), word
        if NAME.fullmatch(name) is None:
            raise ConfigError(f"{name!r} cannot be a model's name (letters, digits, '.', '_', '-'); give NAME={path}")
        if name in found:
            raise ConfigError(f"two models are called {name!r}; give one another name: NAME={path}")
        found[name] = Path(path)
    return found
