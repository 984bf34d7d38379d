"""Run requests through an engine, first come, first served.

The server schedules by itself (`serve/decode/worker.py`): fair between clients, for several engines.
"""

from collections.abc import Generator, Iterable

from groundling.sample.engine import Engine, StepOutput
from groundling.sample.request import Request


def run_all(engine: Engine, requests: Iterable[Request]) -> Generator[StepOutput, None, None]:
    """Decode requests in order, as many at once as fit, and yield the outputs of each step.

    The next request is taken from the iterable when a slot may be free for it. One that is finished before it has a
    slot yields one output without tokens. Closing the iterator, or an exception, stops all requests that are running.

    Args:
        engine: has no other requests in the meantime.
        requests: from `engine.new_request`; may be a generator that depends on the outputs so far.

    Raises:
        CheckpointError: the model's logits are not finite.
        NoMemoryError: memory for a request is short, and no other is running.
        ConfigError: the system refused the memory.
    """
    source = iter(requests)
    waiting = next(source, None)
    try:
        while waiting is not None or engine.is_busy:
            while waiting is not None and engine.try_add(waiting):
                if waiting.finished:
                    yield StepOutput(waiting, [])
                waiting = next(source, None)
            yield from engine.step()
    finally:
        engine.stop_all()
