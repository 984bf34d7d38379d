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
    """Serve models over HTTP, as OpenAI's clients know it, with pages to chat, look inside, rank, and watch training.

    groundling serve RUN_OR_BUNDLE, and more: each is called by the name of its folder, or NAME=RUN_OR_BUNDLE.
    """

    paths: tyro.conf.Positional[tuple[str, ...]]
    """Bundles, checkpoints or folders of runs."""
    host: str = "127.0.0.1"
    """Where to listen. Others than this machine are only let in by a key."""
    port: int = 8000
    """0: any that is free."""
    api_key: tuple[str, ...] = ()
    """Keys that let a client in; better by --api-key-file, or in the variable GROUNDLING_API_KEY."""
    api_key_file: Path | None = None
    """A file with a key a line."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that the server may be called by, besides localhost and --host."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the API, like https://example.org; none by default."""
    context: int | None = None
    """Tokens of context that each model uses; less takes less memory. None: all that it has."""
    slots: int = 16
    """Texts that are written at once, if there is memory for so many; the others wait."""
    max_waiting: int = 64
    """Texts that may wait besides; more are told to come again (429)."""
    max_tokens: int = 4096
    """The most tokens of one reply."""
    timeout_s: float = 600.0
    """The longest that a request may take."""
    receive_timeout_s: float = 10.0
    """The longest that a client may take to send a request."""
    send_timeout_s: float = 20.0
    """The longest that a client may leave what it gets unread."""
    drain_s: float = 30.0
    """How long texts that are being written may go on after SIGTERM."""
    max_body_bytes: int = 1_048_576
    """The largest request."""
    max_connections: int = 1000
    """Connections at once."""
    weights: Weights = "float32"
    """Precision of the matrices: float32, bfloat16 or int8."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    safety: str = "default"
    """The safety stage: default, off, or a TOML file of rules."""
    safety_classifier: Path | None = None
    """A classifier that `groundling safety train` made."""
    rankings: Path = Path("runs/rankings.sqlite")
    """The file where rankings go; made, with its folder, when the first one comes."""
    prompts: Path | None = None
    """Prompts to rank replies to: JSON lines, {"prompt": ...}; by default what is said in Tiny Shakespeare's plays."""
    runs: Path = Path("runs")
    """The folder whose training runs are shown."""
    log_text: bool = False
    """Write prompts and replies to the log, too."""

    def __post_init__(self) -> None:
        require(bool(self.paths), "no model was given; groundling serve RUN_OR_BUNDLE")
        require(0 <= self.port <= 65535, f"port is {self.port}; it must be from 0 to 65535")
        for name in ("slots", "max_tokens", "max_body_bytes", "max_connections"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(self.max_waiting >= 0, f"max_waiting is {self.max_waiting}; it must be at least 0")
        for name in ("timeout_s", "receive_timeout_s", "send_timeout_s"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; it must be above 0")
        require(self.drain_s >= 0, f"drain_s is {self.drain_s}; it must be at least 0")
        require("*" not in self.cors_origins, "cors_origins cannot be *; name the origins whose pages may call")

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
            require(bool(found), f"{self.api_key_file} holds no key; write one a line")
            keys += found
        for key in keys:
            usable = len(key) >= 8 and key.isascii() and key.isprintable() and " " not in key
            require(usable, "a key has to be 8 or more ASCII characters without spaces")
        return tuple(dict.fromkeys(keys))

    def require_safe(self) -> None:
        """Check that other machines need a key.

        Raises:
            ConfigError: the server would listen beyond this machine without a key.
        """
        require(
            self.is_local() or bool(self.keys()),
            f"{self.host} lets other machines in, and no key is set; give --api-key-file, or listen on 127.0.0.1",
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
