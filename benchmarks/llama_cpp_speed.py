"""llama.cpp as a contestant of decode_speed.py, which runs this file with a Python that has llama-cpp-python.

It calls the C functions directly, without the per-token overhead of the class `Llama`. Each job runs in every way a
user might try: one thread or all, sampling with NumPy or with llama.cpp's sampler; the fastest counts. Keys and values
are float16, and flash attention is left at its default.
"""

import ctypes
import json
import sys
import time
from typing import Any

import llama_cpp as llama
import numpy as np
from turns import serve

WARM_UP = 4
PRECISIONS = {"f16": "LLAMA_FTYPE_MOSTLY_F16", "bf16": "LLAMA_FTYPE_MOSTLY_BF16", "q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0"}


def quantize(source: str, target: str, precision: str) -> None:
    """Convert a GGUF file to another precision with llama.cpp's quantizer."""
    params = llama.llama_model_quantize_default_params()
    params.ftype = getattr(llama, PRECISIONS[precision])
    if llama.llama_model_quantize(source.encode(), target.encode(), params) != 0:
        raise SystemExit(f"llama.cpp could not write {target}")


class Context:
    """A llama.cpp context for several streams, and one reused batch of tokens."""

    def __init__(self, model: Any, n_streams: int, length: int) -> None:
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_seq_max = n_streams * -(-length // 256) * 256, n_streams
        params.n_batch = max(params.n_batch, n_streams * length)
        self._context = llama.llama_init_from_model(model, params)
        assert self._context, "llama.cpp could not create a context"
        self._n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self._n_streams, self._most = n_streams, n_streams * length
        self._batch = llama.llama_batch_init(self._most, 0, 1)
        shape = (self._most,)
        self._ids, self._places, self._counts, self._scored = (
            np.ctypeslib.as_array(getattr(self._batch, name), shape) for name in ("token", "pos", "n_seq_id", "logits")
        )
        self._sampler = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        llama.llama_sampler_chain_add(self._sampler, llama.llama_sampler_init_dist(1337))  # temperature 1
        self._random = np.random.default_rng(1337)

    def close(self) -> None:
        llama.llama_sampler_free(self._sampler)
        llama.llama_batch_free(self._batch)
        llama.llama_free(self._context)

    def start(self, prompts: list[list[int]], n_threads: int) -> None:
        """Clear the cache and read prompts of equal length; compute logits at their last positions."""
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        llama.llama_set_n_threads(self._context, n_threads, n_threads)
        length = len(prompts[0])
        n = length * len(prompts)
        self._ids[:n] = np.concatenate(prompts)
        self._places[:n] = np.tile(np.arange(length), len(prompts))
        self._scored[:n] = np.tile(np.arange(length) == length - 1, len(prompts))
        self._fill(n, [stream for stream in range(len(prompts)) for _ in range(length)])
        self._rows = [length * (stream + 1) - 1 for stream in range(len(prompts))]
        self._place = length

    def append(self, ids: list[int]) -> None:
        """Read the next token of each stream."""
        if self._rows != list(range(self._n_streams)):
            self._rows = list(range(self._n_streams))
            self._set_streams(self._rows)
        self._ids[: len(ids)] = ids
        self._places[: len(ids)] = self._place
        self._scored[: len(ids)] = 1
        self._place += 1
        self._decode(len(ids))

    def scores(self) -> np.ndarray:
        """Logits of each stream's last position (streams, vocabulary)."""
        rows = llama.llama_get_logits(self._context)
        return np.ctypeslib.as_array(rows, (self._n_streams, self._n_vocab))

    def draw(self, own_sampler: bool) -> list[int]:
        """Sample the next token of each stream."""
        if own_sampler:
            return [llama.llama_sampler_sample(self._sampler, self._context, row) for row in self._rows]
        scores = self.scores()
        sums = np.exp(scores - scores.max(1, keepdims=True)).cumsum(1)
        points = self._random.random(self._n_streams) * sums[:, -1]
        return [int(row.searchsorted(point)) for row, point in zip(sums, points)]  # noqa: B905

    def _fill(self, n: int, streams: list[int]) -> None:
        self._counts[:n] = 1
        self._set_streams(streams)
        self._decode(n)

    def _set_streams(self, streams: list[int]) -> None:
        for row, stream in enumerate(streams):
            self._batch.seq_id[row][0] = stream

    def _decode(self, n: int) -> None:
        self._batch.n_tokens = n
        code = llama.llama_decode(self._context, self._batch)
        assert code == 0, f"llama_decode ended with {code}"


class LlamaCpp:
    """A GGUF file as a contestant."""

    def __init__(self, path: str, threads: int) -> None:
        self._model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        assert self._model, f"llama.cpp cannot load {path}"
        self._threads = threads

    def logits(self, ids: list[int]) -> dict[str, Any]:
        """Logits of the next token (vocabulary)."""
        context = Context(self._model, 1, len(ids))
        context.start([ids], self._threads)
        scores = context.scores()[0].tolist()
        context.close()
        return {"logits": scores}

    def decode(self, prompts: list[list[int]], new: int, budget_s: float) -> dict[str, Any]:
        """As in decoders.py; "how" names the fastest way. Several streams always use all threads."""
        context = Context(self._model, len(prompts), len(prompts[0]) + new)
        runs = []
        for threads in {1, self._threads} if len(prompts) == 1 else {self._threads}:
            for own_sampler in (False, True):
                self._run(context, prompts, min(new, WARM_UP), budget_s, threads, own_sampler)
                tokens, seconds = self._run(context, prompts, new, budget_s, threads, own_sampler)
                how = f"threads {threads}, {'its sampler' if own_sampler else 'NumPy'}"
                runs.append({"tokens": tokens, "seconds": seconds, "how": how})
        context.close()
        return max(runs, key=lambda run: run["tokens"] / run["seconds"])

    @staticmethod
    def _run(
        context: Context, prompts: list[list[int]], new: int, budget_s: float, threads: int, own_sampler: bool
    ) -> tuple[int, float]:
        start = time.perf_counter()
        context.start(prompts, threads)
        ids = context.draw(own_sampler)
        made = 1
        while made < new and time.perf_counter() - start < budget_s:
            context.append(ids)
            ids = context.draw(own_sampler)
            made += 1
        return made * len(prompts), time.perf_counter() - start


@llama.llama_log_callback
def quiet(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    """Print only the errors of llama.cpp."""
    if level == 4:
        print(text.decode(errors="replace"), end="", file=sys.stderr)


def main() -> None:
    if sys.argv[1] == "--version":
        print(llama.__version__)
        return
    llama.llama_log_set(quiet, ctypes.c_void_p(0))
    llama.llama_backend_init()
    values = json.loads(sys.argv[1])
    if "target" in values:
        quantize(**values)
        return
    contestant = LlamaCpp(**values)
    serve({"logits": contestant.logits, "decode": contestant.decode})


if __name__ == "__main__":
    main()
