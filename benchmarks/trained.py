"""The part of decode_speed.py that needs a trained model: the loss of each precision, and the cold start."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

from groundling.bundle import load_bundle
from groundling.data.corpus import DataConfig, prepare
from groundling.evals.loss import whole_split_loss
from groundling.sample.quantize import Weights, with_rounded_weights

log = logging.getLogger("groundling.benchmarks")

NEW = 500
"""New tokens when measuring speculative decoding; the default of `groundling sample`."""
COLD_STARTS = 3


def losses(path: Path, text: str | None) -> dict[str, float]:
    """The loss on the whole validation split, by precision of the matrices.

    Args:
        path: the trained model.
        text: its training text; None: Tiny Shakespeare.
    """
    bundle = load_bundle(path)
    block_size = bundle.config.block_size
    corpus = prepare(DataConfig(path=text), block_size, bundle.tokenizer)
    found = {}
    for weights in get_args(Weights):
        log.info(f"the validation loss in {weights}")
        found[weights] = whole_split_loss(with_rounded_weights(bundle.model, weights), corpus.val.ids, block_size)
    return found


def cold_starts(bundle: Path, prompt: str) -> list[float]:
    """Seconds from starting `groundling sample` until the first generated text."""
    log.info("cold starts")
    return [_cold_start(bundle, prompt) for _ in range(COLD_STARTS)]


def _cold_start(bundle: Path, prompt: str) -> float:
    argv = [sys.executable, "-m", "groundling", "sample", str(bundle), "--prompt", prompt]
    start = time.perf_counter()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        n_seen = 0
        while n_seen <= len(prompt.encode()):
            piece = os.read(process.stdout.fileno(), 4096)
            if not piece:
                raise SystemExit(f"groundling sample ended with code {process.wait()} before it printed any text")
            n_seen += len(piece)
        seconds = time.perf_counter() - start
        process.communicate()
    return seconds
