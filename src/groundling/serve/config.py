"""Settings of `groundling serve`."""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from groundling.errors import ConfigError, require
from groundling.sample.quantize import Weights

KEY_VARIABLE = "GROUNDLING_API_KEY"


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve models over an OpenAI-compatible HTTP API, with pages for chat, x-ray, comparison and training runs.

    groundling serve RUN_OR_BUNDLE ...: a model is named after its folder, or by NAME=RUN_OR_BUNDLE.
    """

    paths: tyro.conf.Positional[tuple[str, ...]]
    """Bundles, checkpoints or run folders."""
    host: str = "127.0.0.1"
    """Address to listen on. Anything but localhost requires an API key."""
    port: int = 8000
    """Port; 0: any free port."""
    api_key: tuple[str, ...] = ()
    """API keys; prefer --api-key-file or the variable GROUNDLING_API_KEY."""
    api_key_file: Path | None = None
    """File with one API key per line."""
    allowed_hosts: tuple[str, ...] = ()
    """Accepted Host headers, besides localhost and --host."""
    cors_origins: tuple[str, ...] = ()
    """Origins allowed by CORS, for example https://example.org."""
    context: int | None = None
    """Context length of each model in tokens; a shorter one uses less memory. None: the model's."""
    slots: int = 16
    """Sequences decoded at once, memory permitting; further ones wait."""
    max_waiting: int = 64
    """Maximum number of waiting sequences; beyond it, requests get status 429."""
    max_tokens: int = 4096
    """Maximum reply length in tokens."""
    timeout_s: float = 600.0
    """Maximum duration of a request in seconds."""
    receive_timeout_s: float = 10.0
    """Maximum time to receive a request in seconds."""
    send_timeout_s: float = 20.0
    """Maximum time a client may leave output unread, in seconds."""
    drain_s: float = 30.0
    """Time running requests get to finish after SIGTERM, in seconds."""
    max_body_bytes: int = 1_048_576
    """Maximum request size in bytes."""
    max_connections: int = 1000
    """Maximum number of open connections."""
    weights: Weights = "float32"
    """Precision of the weight matrices: float32, bfloat16 or int8."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device."""
    safety: str = "default"
    """Safety stage: default, off, or a TOML file of rules."""
    safety_classifier: Path | None = None
    """Classifier folder written by `groundling safety train`."""
    rankings: Path = Path("runs/rankings.sqlite")
    """Rankings file (SQLite); created with the first answer."""
    prompts: Path | None = None
    """Prompts of the comparison page: JSONL of {"prompt": ...}; None: lines from Tiny Shakespeare."""
    runs: Path = Path("runs")
    """Folder of the training runs to show."""
    log_text: bool = False
    """Log prompts and replies, too."""

    def __post_init__(self) -> None:
        require(bool(self.paths), "no model was given; groundling serve RUN_OR_BUNDLE")
        require(0 <= self.port <= 65535, f"port is {self.port}; it must be from 0 to 65535")
        for name in ("slots", "max_tokens", "max_body_bytes", "max_connections"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(self.max_waiting >= 0, f"max_waiting is {self.max_waiting}; it must be at least 0")
        for name in ("timeout_s", "receive_timeout_s", "send_timeout_s"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; it must be above 0")
        require(self.drain_s >= 0, f"drain_s is {self.drain_s}; it must be at least 0")
        require("*" not in self.cors_origins, "cors_origins cannot be *; name the allowed origins")

    def keys(self) -> tuple[str, ...]:
        """All API keys; empty: no key is required.

        Raises:
            ConfigError: the file cannot be read, or a key is too short.
        """
        keys = [*self.api_key, *os.environ.get(KEY_VARIABLE, "").split()]
        if self.api_key_file is not None:
            try:
                lines = self.api_key_file.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"the keys in {self.api_key_file} cannot be read: {error}") from error
            found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
            require(bool(found), f"{self.api_key_file} holds no key; write one per line")
            keys += found
        for key in keys:
            usable = len(key) >= 8 and key.isascii() and key.isprintable() and " " not in key
            require(usable, "a key must be 8 or more ASCII characters without spaces")
        return tuple(dict.fromkeys(keys))

    def require_safe(self) -> None:
        """Check that other machines need a key.

        Raises:
            ConfigError: the server would listen beyond this machine without a key.
        """
        require(
            self.is_local() or bool(self.keys()),
            f"{self.host} is reachable from other machines, and no key is set; "
            "give --api-key-file, or listen on 127.0.0.1",
        )

    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    def hosts(self) -> frozenset[str]:
        """Accepted Host names; empty: any (clients need a key then)."""
        given = frozenset(host.lower() for host in self.allowed_hosts)
        if self.host in ("0.0.0.0", "::", "") and not given:
            return frozenset()
        return given | {"localhost", "127.0.0.1", "::1", self.host.lower()}


def is_loopback(host: str) -> bool:
    """Whether an address is a loopback address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
