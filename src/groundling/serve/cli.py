"""`groundling serve`: models over HTTP, with web pages."""

import socket

from groundling.config import parse
from groundling.errors import ConfigError
from groundling.serve.config import ServeConfig
from groundling.system.optional import optional_import


def main(argv: list[str]) -> int:
    """Run the verb; return the exit code."""
    config = parse(ServeConfig, argv, "groundling serve")
    config.require_safe()
    for package in ("fastapi", "prometheus_client", "pydantic", "starlette"):
        optional_import(package, "serve")
    uvicorn = optional_import("uvicorn", "serve")
    from groundling.safety.classifier import load_safety
    from groundling.serve.app import create_app
    from groundling.serve.http.protocol import protocol_for
    from groundling.serve.server import FLUSH_S, Server
    from groundling.serve.state import ServerState
    from groundling.system.logs import EventLog, log_as_json

    log = EventLog()
    log_as_json(log, "uvicorn", "groundling")
    server = ServerState(config)
    server.safety = load_safety(config.safety, config.safety_classifier)
    settings = uvicorn.Config(
        create_app(server, log),
        http=protocol_for(config.receive_timeout_s, config.send_timeout_s, config.max_connections),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=FLUSH_S,
        timeout_keep_alive=30,
    )
    listening = listen(config)
    port = listening.getsockname()[1]
    # /health answers from here on; /ready answers when the models are loaded.
    log.write("listening", host=config.host, port=port)

    def print_address() -> None:
        host = f"[{config.host}]" if ":" in config.host else config.host
        names = ", ".join(server.wanted)
        print(f"Groundling is at http://{host}:{port}/ with {names}; Ctrl-C ends it", flush=True)

    Server(settings, server, print_address).run(sockets=[listening])
    if server.failure is not None:
        raise server.failure
    return 0


def listen(config: ServeConfig) -> socket.socket:
    """Open the listening socket.

    Raises:
        ConfigError: the address is in use or invalid.
    """
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(f"cannot listen on {config.host} port {config.port}: {error.strerror or error}") from error
