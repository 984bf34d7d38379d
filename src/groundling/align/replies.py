"""Replies of a model that chats, many at a time: what is ranked, rewarded and measured.

Drawn by the one decode engine (`sample/engine.py`) at the temperature that they are scored at later, without filters:
the distribution that is sampled is the one that is learned about.
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
"""Replies that are decoded together."""


@dataclass(frozen=True)
class Reply:
    """What a model said to a prompt."""

    prompt: list[int]
    said: list[int]
    """Its ids; the last is the end, if it came to one."""
    ended: bool
    text: str
    """Its words, without thoughts."""


Rewards = Callable[[Sequence[Reply]], list[float]]
"""What replies are worth: any function of what was asked and said."""


class ReplySampler:
    """Lets a model reply.

    Args:
        bundle: the model, in evaluation mode. If its weights change, make a new sampler.
        max_new_tokens: length limit of a reply.
        temperature: of sampling.
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
        """`each` replies to every prompt, as ids that end where the assistant is to speak.

        A reply follows from the model, its prompt, the seed and its number, whatever else is asked for.
        """
        return [replies for _, replies in self.stream(enumerate(prompts), seed, each)]

    def stream(
        self,
        prompts: Iterable[tuple[int, list[int]]],
        seed: int,
        each: int = 1,
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[tuple[int, list[Reply]]]:
        """The replies to numbered prompts, prompt by prompt in their order, as soon as those of one are there.

        Args:
            prompts: each with its number, from which its replies follow.
            seed: of all.
            each: replies to a prompt.
            stop: asked after each step of decoding; where it says so, nothing more comes.
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

    def reply_of(self, prompt: list[int], said: list[int]) -> Reply:
        """A reply whose ids are known."""
        return self._reply([*prompt, *said], len(prompt))

    def _reply(self, tokens: list[int], n_prompt: int) -> Reply:
        said = tokens[n_prompt:]
        ended = bool(said) and said[-1] in self._engine.end_ids
        return Reply(tokens[:n_prompt], said, ended, self._bundle.decode_reply(said))


def reproducible_sampler(bundle: ChatBundle, *, max_new_tokens: int, temperature: float = 1.0) -> ReplySampler:
    """Sample in bfloat16 on a fixed backend, so that replies depend on the prompts and the seed only."""
    decode = deterministic_decode(bundle.model, DecodeConfig(weights="bfloat16"))
    return ReplySampler(bundle, max_new_tokens=max_new_tokens, temperature=temperature, decode=decode)
