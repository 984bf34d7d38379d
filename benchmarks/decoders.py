"""The contestants of decode_speed.py that run on PyTorch, each in its own process: python decoders.py '{...}'

All sample from the full distribution at temperature 1. One-time preparation and a few warm-up tokens are not timed.
"""

import dataclasses
import io
import json
import sys
import time
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from train_speed import import_file
from turns import serve

from groundling.bundle import load_bundle
from groundling.bundle.weights import plain_state_dict
from groundling.sample.engine import DecodeConfig, Engine
from groundling.sample.native.build import Compilation
from groundling.sample.request import row_generator
from groundling.sample.sampler import SamplingConfig
from groundling.sample.scheduler import run_all

WARM_UP = 4
"""Untimed tokens per stream."""
BANDWIDTH_S = 0.2
"""Duration of each bandwidth measurement."""

Prompts = list[list[int]]


class Decoder(Protocol):
    """A contestant."""

    def logits(self, ids: list[int]) -> list[float]:
        """Logits of the next token (vocabulary)."""
        ...

    def decode(self, prompts: Prompts, new: int, budget_s: float) -> dict[str, Any]:
        """Generate `new` tokens after each prompt, in one batch; fewer if the time budget runs out.

        Returns:
            "tokens" over all streams, "seconds", and "how": a description.
        """
        ...


class Ours:
    """Groundling's engine, in one precision, with or without compiled code and speculative decoding."""

    def __init__(
        self, bundle: str, weights: str, *, native: str = "auto", speculate: int = 0, draft: str | None = None
    ) -> None:
        self._bundle = load_bundle(bundle)
        self._draft = load_bundle(draft).model if draft else None
        if native == "auto":
            Compilation().wait()
        config: dict[str, Any] = {"weights": weights, "native": native, "speculate": speculate}
        self._config = DecodeConfig(**config)
        self._engine, self._n_slots = self._new_engine(1), 1

    def logits(self, ids: list[int]) -> list[float]:
        """See `Decoder`; log-probabilities, which is what the engine returns."""
        config = SamplingConfig(max_new_tokens=1, logprobs=self._bundle.tokenizer.vocab_size)
        self._engine.try_add(self._engine.new_request(ids, config, row_generator(0, 0)))
        likely = dict(self._engine.step()[0].tokens[0].likely)
        return [likely[id] for id in range(len(likely))]

    def decode(self, prompts: Prompts, new: int, budget_s: float) -> dict[str, Any]:
        """See `Decoder`; also the draft tokens ("guessed") and the accepted ones ("right")."""
        if self._n_slots != len(prompts):
            self._engine, self._n_slots = self._new_engine(len(prompts)), len(prompts)
        self._run(other_than(prompts, self._bundle.tokenizer.vocab_size), min(new, WARM_UP), budget_s)
        before = dataclasses.replace(self._engine.counts)
        seconds = self._run(prompts, new, budget_s)
        counts = self._engine.counts
        tokens, guessed, right = (
            getattr(counts, name) - getattr(before, name) for name in ("generated", "guessed", "right")
        )
        how = "compiled code" if self._engine.is_native else "PyTorch"
        return {"tokens": tokens, "seconds": seconds, "how": how, "guessed": guessed, "right": right}

    def bandwidth(self, length: float) -> dict[str, Any]:
        """The bytes read per token after `length` tokens, and the read bandwidth for as many bytes.

        Counted are the weight matrices in their precision, and the keys and values.
        """
        c = self._bundle.config
        per_weight, per_key = {"float32": (4, 4), "bfloat16": (2, 2), "int8": (1, 2)}[self._config.weights]
        weights = sum(m.weight.numel() for m in self._bundle.model.modules() if isinstance(m, nn.Linear))
        keys = 2 * c.n_layer * c.kv_heads() * c.head_width() * length
        n_bytes = round(weights * per_weight + keys * per_key)
        return {"bytes": n_bytes, "bytes_per_s": read_bandwidth(n_bytes)}

    def _run(self, prompts: Prompts, new: int, budget_s: float) -> float:
        engine, config = self._engine, SamplingConfig(max_new_tokens=new, temperature=1.0)
        start = time.perf_counter()
        requests = [engine.new_request(prompt, config, row_generator(1337, row)) for row, prompt in enumerate(prompts)]
        with closing(run_all(engine, requests)) as outputs:
            for _ in outputs:
                if time.perf_counter() - start >= budget_s:
                    break
            return time.perf_counter() - start

    def _new_engine(self, n_slots: int) -> Engine:
        n_ids = self._bundle.tokenizer.vocab_size
        return Engine(self._bundle.model, self._config, n_slots, n_ids, self._draft)


class NanoGPT:
    """nanoGPT's model and `generate`, from a checkout, with the weights of a bundle.

    `generate` caches nothing, so calling it for one token at a time costs the same and can be stopped. Its GELU is
    exact; ours is GPT-2's tanh approximation.
    """

    def __init__(self, bundle: str, checkout: str) -> None:
        ours = load_bundle(bundle)
        module = import_file(Path(checkout) / "model.py")
        sizes = {f.name: getattr(ours.config, f.name) for f in dataclasses.fields(module.GPTConfig)}
        with redirect_stdout(io.StringIO()):  # it prints its parameter count
            self._model = module.GPT(module.GPTConfig(**sizes)).eval()
        weights = {f"transformer.{k.removeprefix('positions.')}": v for k, v in plain_state_dict(ours.model).items()}
        self._model.load_state_dict({**weights, "lm_head.weight": ours.model.lm_head.weight})

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> list[float]:
        """See `Decoder`."""
        return list(self._model(torch.tensor([ids]))[0][0, -1].tolist())

    def decode(self, prompts: Prompts, new: int, budget_s: float) -> dict[str, Any]:
        """See `Decoder`."""
        idx_BT = torch.tensor(prompts)
        self._model.generate(idx_BT, min(new, WARM_UP))
        made, seconds, start = 0, 0.0, time.perf_counter()
        while made < new and seconds < budget_s:
            idx_BT = self._model.generate(idx_BT, 1)
            made, seconds = made + 1, time.perf_counter() - start
        return {"tokens": made * len(prompts), "seconds": seconds, "how": ""}


class Transformers:
    """`generate` of transformers, with its KV cache, on a folder written by `groundling export hf`."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> list[float]:
        """See `Decoder`."""
        return list(self._model(torch.tensor([ids])).logits[0, -1].tolist())

    def decode(self, prompts: Prompts, new: int, budget_s: float) -> dict[str, Any]:
        """See `Decoder`."""
        idx_BT = torch.tensor(prompts)
        self._generate(idx_BT, min(new, WARM_UP), budget_s)
        start = time.perf_counter()
        longer_BT = self._generate(idx_BT, new, budget_s)
        seconds = time.perf_counter() - start
        return {"tokens": (longer_BT.size(1) - idx_BT.size(1)) * len(prompts), "seconds": seconds, "how": ""}

    def _generate(self, idx_BT: Tensor, new: int, budget_s: float) -> Tensor:
        how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
        lengths = {"min_new_tokens": new, "max_new_tokens": new, "max_time": budget_s}
        longer_BT: Tensor = self._model.generate(idx_BT, attention_mask=torch.ones_like(idx_BT), **how, **lengths)
        return longer_BT


def other_than(prompts: Prompts, vocab_size: int) -> Prompts:
    """Prompts of the same lengths that share no prefix with these, which the engine would reuse."""
    return [[(id + 1) % vocab_size for id in prompt] for prompt in prompts]


def read_bandwidth(n_bytes: int) -> float:
    """Bytes per second at which all threads together read a buffer of this size repeatedly.

    The best of three PyTorch reductions that compute almost nothing. A small model stays in the caches from token to
    token, and so does a buffer of its size.
    """
    x = torch.ones(2 * max(1, n_bytes // 8))
    best = 0.0
    for read in (x.sum, x.amax, x.view(torch.int64).sum):
        until = time.perf_counter() + BANDWIDTH_S
        while time.perf_counter() < until:
            start = time.perf_counter()
            read()
            best = max(best, 4 * len(x) / (time.perf_counter() - start))
    return best


KINDS: dict[str, Callable[..., Decoder]] = {"groundling": Ours, "nanogpt": NanoGPT, "transformers": Transformers}


def main() -> None:
    values = json.loads(sys.argv[1])
    torch.set_num_threads(values.pop("threads"))
    torch.manual_seed(1337)
    decoder = KINDS[values.pop("kind")](**values)
    answers: dict[str, Callable[..., dict[str, Any]]] = {
        "logits": lambda ids: {"logits": decoder.logits(ids)},
        "decode": decoder.decode,
    }
    if isinstance(decoder, Ours):
        answers["bandwidth"] = decoder.bandwidth
    serve(answers)


if __name__ == "__main__":
    main()
