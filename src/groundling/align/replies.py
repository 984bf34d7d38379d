"""Batched sampling of replies, for rankings, rewards and evaluation.

Replies are sampled without filters, at the temperature at which they are scored later, so that training uses the
sampling distribution.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from groundling.bundle import ChatBundle
from groundling.sample.engine import DecodeConfig, Engine, deterministic_decode
from groundling.sample.request import Request, row_generator
from groundling.sample.sampler import SamplingConfig
from groundling.sample.scheduler import run_all

AT_ONCE = 32
"""Replies decoded at a time."""


@dataclass(frozen=True)
class Reply:
    """A sampled reply."""

    prompt: list[int]
    ids: list[int]
    """Ids of the reply; the last is the end token, if it ended."""
    ended: bool
    text: str
    """Its text, without thoughts."""


Rewards = Callable[[Sequence[Reply]], list[float]]
"""Replies -> their rewards."""


class ReplySampler:
    """Samples replies of a chat model.

    Args:
        bundle: the model, in evaluation mode. If its weights change, make a new sampler.
        max_new_tokens: length limit of a reply.
        temperature: sampling temperature.
        decode: settings of the decoding engine.
    """

    def __init__(
        self,
        bundle: ChatBundle,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        decode: DecodeConfig | None = None,
    ) -> None:
        self._bundle = bundle
        self._engine = Engine(bundle.model, decode, AT_ONCE, n_ids=bundle.n_ids, end_ids=bundle.end_ids)
        self._config = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature)

    def reply(self, prompts: Sequence[list[int]], seed: int, each: int = 1) -> list[list[Reply]]:
        """Sample `each` replies to every prompt.

        A reply depends on the model, its prompt, the seed and its number only, not on the other prompts.
        """
        return [replies for _, replies in self.stream(enumerate(prompts), seed, each)]

    def stream(
        self,
        prompts: Iterable[tuple[int, list[int]]],
        seed: int,
        each: int = 1,
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[tuple[int, list[Reply]]]:
        """Yield the replies to each prompt in order, as soon as all of a prompt's are complete.

        Args:
            prompts: (number, ids); the replies depend on the number.
            seed: seed of all replies.
            each: replies per prompt.
            stop: checked after each decoding step; True ends the stream.
        """
        begun = deque[tuple[int, list[Request]]]()

        def requests() -> Iterator[Request]:
            for number, prompt in prompts:
                generators = (row_generator(seed, number * each + n) for n in range(each))
                group = [self._engine.new_request(prompt, self._config, generator) for generator in generators]
                begun.append((number, group))
                yield from group

        with closing(run_all(self._engine, requests())) as outputs:
            for _ in outputs:
                while begun and all(request.finished for request in begun[0][1]):
                    number, group = begun.popleft()
                    yield number, [self._reply(request.tokens, request.n_prompt) for request in group]
                if stop is not None and stop():
                    return

    def reply_of(self, prompt: list[int], ids: list[int]) -> Reply:
        """A reply from known ids."""
        return self._reply([*prompt, *ids], len(prompt))

    def _reply(self, tokens: list[int], n_prompt: int) -> Reply:
        ids = tokens[n_prompt:]
        ended = bool(ids) and ids[-1] in self._engine.end_ids
        return Reply(tokens[:n_prompt], ids, ended, self._bundle.decode_reply(ids))


def reproducible_sampler(bundle: ChatBundle, *, max_new_tokens: int, temperature: float = 1.0) -> ReplySampler:
    """Sample in bfloat16 on a fixed backend, so that replies depend on the prompts and the seed only."""
    decode = deterministic_decode(bundle.model, DecodeConfig(weights="bfloat16"))
    return ReplySampler(bundle, max_new_tokens=max_new_tokens, temperature=temperature, decode=decode)
