"""All of the server's state: its models by name, the thread that owns them, and whether it is ready."""

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

from groundling.bundle import Bundle, load_bundle
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
"""A model that is being loaded cannot be broken off."""


class State(Enum):
    """Where a server stands."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass
class Served:
    """One model under one name."""

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
        """Ids that end a text."""
        return self.bundle.end_ids

    def card(self) -> dict[str, Any]:
        """What /v1/models tells."""
        config = self.bundle.config
        facts = {
            "chat": self.bundle.chat is not None,
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
    """The models, by the names that clients may say: a name is looked up, and never a path."""

    def __init__(self) -> None:
        self._served: dict[str, Served] = {}

    def add(self, served: Served) -> None:
        """Serve one more."""
        self._served[served.name] = served

    def names(self) -> list[str]:
        """In the order of the command line."""
        return list(self._served)

    def chatting(self) -> list[str]:
        """Those that answer."""
        return [name for name, served in self._served.items() if served.bundle.chat is not None]

    def get(self, name: str) -> Served:
        """The model of this name.

        Raises:
            ApiError: 404: there is none.
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
    """What all requests share."""

    def __init__(self, config: ServeConfig) -> None:
        self.config, self.state = config, State.LOADING
        self.models = Registry()
        self.worker = Worker(config.slots, config.max_waiting)
        self.memory = CacheMemory()
        """For keys and values of all models."""
        self.metrics = Metrics(lambda: self.worker.load)
        self.safety: Safety | None = None
        """What looks at prompts and replies; None: nothing does."""
        self.n_open = 0
        """Requests that are being answered, and that a server waits for when it drains."""
        self.leaves_loading = False
        """Whether it was told to end while models were loaded, for which nobody waits then."""
        self.failure: Exception | None = None
        """Why the models could not be loaded."""
        self.wanted = named_paths(config.paths)

    def load(self, name: str, path: Path) -> Served:
        """Read a model and make it ready; in the model thread.

        Raises:
            GroundlingError: it cannot be.
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
        """End the model thread."""
        await self.worker.stop(LEAVE_S if self.leaves_loading else STOP_S)

    def _contexts(self) -> dict[str, int | None]:
        """Of each model, by name."""
        return dict(zip(self.wanted, contexts(list(self.wanted.values()), self.config.context), strict=True))

    def _engine(self, bundle: Bundle) -> Engine:
        """By compiled code from the first token on, if there can be any: who asks twice gets the same."""
        decode = deterministic_decode(bundle.model, DecodeConfig(weights=self.config.weights), self.config.slots)
        slots, n_ids = self.config.slots, bundle.n_ids
        return Engine(bundle.model, decode, slots, n_ids, end_ids=bundle.end_ids, memory=self.memory)

    def require_ready(self) -> None:
        """Check that requests can be taken.

        Raises:
            ApiError: 503: not yet, or no longer.
        """
        if self.state is State.LOADING:
            raise not_ready("the models are being loaded; ask /ready when that is done")
        if self.state is not State.READY:
            raise draining()

    async def attended(self, request: Request, work: Coroutine[Any, Any, bytes]) -> Response:
        """The JSON that some work comes to, done as long as somebody waits for it; a server that drains waits too."""
        with self.counted():
            try:
                return Response(await unless_gone(request.receive, work), media_type="application/json")
            except Gone as gone:
                self.metrics.aborted.labels(gone.reason).inc()
                return Response(status_code=499)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """While something is done that a server that drains waits for."""
        self.n_open += 1
        try:
            yield
        finally:
            self.n_open -= 1

    async def check_prompt(self, text: str) -> str:
        """A prompt as a model may see it.

        Raises:
            ApiError: 400: the safety stage blocks it.
        """
        if self.safety is None:
            return text
        delta, findings = await run_in_threadpool(self.safety.check_prompt, text)
        self.metrics.count(findings)
        for finding in findings:
            if finding.action == "block":
                message = (
                    f"the safety stage blocks this prompt (rule {finding.rule!r}: {finding.reason}); ask otherwise"
                )
                raise ApiError(400, message, "content_filter", "prompt")
        return delta


def named_paths(words: Sequence[str]) -> dict[str, Path]:
    """The models' names and places: `NAME=PATH`, or a path that is named after its folder.

    Raises:
        ConfigError: a name cannot be one, or names two.
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
