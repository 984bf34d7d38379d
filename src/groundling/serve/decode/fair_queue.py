"""The queue of waiting samples: clients take turns, and each client's samples keep their order."""

from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterable

from groundling.sample.engine import Engine
from groundling.serve.decode.stream import SampleRequest, TokenStream

Waiting = tuple[TokenStream, SampleRequest]


class FairQueue:
    """Samples that wait for a slot. Not thread-safe."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, deque[Waiting]] = OrderedDict()
        """In the order of their turns."""

    def __bool__(self) -> bool:
        return bool(self._clients)

    def extend(self, client: str, samples: Iterable[Waiting]) -> None:
        """Append samples of a client."""
        self._clients.setdefault(client, deque()).extend(samples)

    def first(self, blocked: Container[Engine]) -> Waiting | None:
        """The next sample, skipping those of `blocked` engines; None: there is none."""
        for samples in self._clients.values():
            for stream, sample in samples:
                if stream.engine not in blocked:
                    return stream, sample
        return None

    def remove(self, waiting: Waiting) -> None:
        """Remove a sample that got a slot; its client moves to the end of the order."""
        client = waiting[0].client
        samples = self._clients[client]
        samples.remove(waiting)
        if samples:
            self._clients.move_to_end(client)
        else:
            del self._clients[client]

    def pop_if(self, is_over: Callable[[TokenStream, SampleRequest], bool]) -> list[Waiting]:
        """Remove and return the samples for which `is_over` holds; the order of the clients stays."""
        over: list[Waiting] = []
        for client, samples in list(self._clients.items()):
            left = deque[Waiting]()
            for waiting in samples:  # test each once: it may be cancelled at any moment
                (over if is_over(*waiting) else left).append(waiting)
            self._clients[client] = left
            if not left:
                del self._clients[client]
        return over
