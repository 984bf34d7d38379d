"""Measure what the figures of the ladder's pages show: train s1 to s7, and keep the numbers that are drawn."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from groundling.data.corpus import Corpus, DataConfig, prepare
from groundling.ladder import trick
from groundling.ladder.fused import attention_weights
from groundling.ladder.rungs import RUNGS
from groundling.ladder.runs.results import RungResult
from groundling.ladder.s8_scaled import DropoutHead, ScaledModel
from groundling.ladder.s9_production import production_gpt
from groundling.ladder.train import train_rungs

TEXT = "the king"
"""Eight characters: the context of the small rungs."""
LETTERS = "\n abcdefghijklmnopqrstuvwxyz"


def measure() -> dict[str, Any]:
    """Train s1 to s7 as `groundling ladder` does, and return what the figures show, by page."""
    corpus = prepare(DataConfig(), block_size=8)
    results = {result.rung: result for result in train_rungs(list(RUNGS)[:7])}
    with torch.no_grad():
        return {
            "curves": {name: results[name].val_losses for name in sorted(results)},
            "trick": _trick(),
            "s1": _bigrams(results["s1"], corpus),
            "s2": _embeddings(results["s2"], corpus),
            "s3": _attention(results["s3"], corpus),
            "s4": _attention(results["s4"], corpus),
            "s5": _features(results["s5"], corpus),
            "s7": _norms(results["s7"], corpus),
            "s8": _scale(results, corpus),
            "s9": _same_logits(corpus),
        }


def _rounded(values: Any, digits: int = 3) -> Any:
    return np.round(np.asarray(values, dtype=np.float64), digits).tolist()


def _ids(corpus: Corpus, text: str = TEXT) -> torch.Tensor:
    return torch.tensor([corpus.tokenizer.encode(text)])


def _trick() -> dict[str, Any]:
    x_BTC = torch.eye(len(TEXT))[None]  # the mean of unit vectors is the row of weights
    return {"matrix": _rounded(trick.mean_by_matrix(x_BTC)[0]), "softmax": _rounded(trick.mean_by_softmax(x_BTC)[0])}


def _bigrams(result: RungResult, corpus: Corpus) -> dict[str, Any]:
    ids, V = np.asarray(corpus.train.ids, dtype=np.int64), corpus.tokenizer.vocab_size
    counts = np.bincount(ids[:-1] * V + ids[1:], minlength=V * V).reshape(V, V)
    shown = np.ix_(*[corpus.tokenizer.encode(LETTERS)] * 2)
    learned = result.model(torch.arange(V)[None])[0].softmax(-1).numpy()
    return {"learned": _rounded(learned[shown]), "counted": _rounded((counts / counts.sum(1, keepdims=True))[shown])}


def _embeddings(result: RungResult, corpus: Corpus) -> dict[str, Any]:
    table: Any = result.model.token_embedding
    centred = table.weight - table.weight.mean(0)
    left, scale, _ = torch.linalg.svd(centred, full_matrices=False)
    symbols = [corpus.tokenizer.decode([i]) for i in range(corpus.tokenizer.vocab_size)]
    return {"symbols": symbols, "places": _rounded(left[:, :2] * scale[:2])}


def _attention(result: RungResult, corpus: Corpus) -> dict[str, Any]:
    model: Any = result.model
    idx_BT = _ids(corpus)
    x_BTC = model.token_embedding(idx_BT) + model.position_embedding.weight[: len(TEXT)]
    heads = getattr(model.body, "heads", [model.body])
    return {"weights": [_rounded(attention_weights(h, h.query(x_BTC), h.key(x_BTC))[0]) for h in heads]}


def _inputs_of(model: Any, modules: list[Any], idx_BT: torch.Tensor) -> list[torch.Tensor]:
    """What goes into some modules of a model during one forward pass."""
    seen: dict[Any, torch.Tensor] = {}
    hooks = [m.register_forward_pre_hook(lambda module, args: seen.update({module: args[0]})) for m in modules]
    model(idx_BT)
    for hook in hooks:
        hook.remove()
    return [seen[module] for module in modules]


def _windows(corpus: Corpus, n: int = 256, block_size: int = 8) -> torch.Tensor:
    return torch.from_numpy(np.asarray(corpus.val.ids[: n * block_size], dtype=np.int64)).view(n, block_size)


def _features(result: RungResult, corpus: Corpus) -> dict[str, Any]:
    model: Any = result.model
    feed_forward = model.body[1]
    ((text_BTC,), (many_BTC,)) = (_inputs_of(model, [feed_forward], idx) for idx in (_ids(corpus), _windows(corpus)))
    return {
        "features": _rounded(feed_forward(text_BTC)[0], 2),
        "zeros": _rounded((feed_forward(many_BTC) == 0).float().mean()),
    }


def _norms(result: RungResult, corpus: Corpus) -> dict[str, Any]:
    model: Any = result.model
    halves = [half for block in model.body.blocks for half in (block.communicate, block.compute)]
    norms = [*(half.norm for half in halves), model.body.norm]
    streams = _inputs_of(model, norms, _windows(corpus))
    spread = [float(x_BTC.std(dim=-1).mean()) for x_BTC in streams]
    read = [float(norm(x_BTC).std(dim=-1).mean()) for norm, x_BTC in zip(norms, streams, strict=True)]
    return {"stream": _rounded(spread), "read": _rounded(read)}


def recorded_run() -> dict[str, list[float]]:
    """Steps, training losses and validation losses of the full run of s8, from the table of its page."""
    page = Path(__file__).with_name("s8.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d,]+) \| [\d.]+ \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    steps, train, val = zip(*((int(step.replace(",", "")), float(a), float(b)) for step, a, b in rows), strict=True)
    return {"steps": [*steps], "train": [*train], "val": [*val]}


def _scale(results: dict[str, RungResult], corpus: Corpus) -> dict[str, Any]:
    parameters = {name: results[name].parameters for name in sorted(results)}
    parameters["s8"] = sum(parameter.numel() for parameter in ScaledModel(corpus.tokenizer.vocab_size).parameters())
    model: Any = results["s3"].model
    head = DropoutHead(32, 32, 8, dropout=0.2)
    head.load_state_dict(model.body.state_dict())
    x_BTC = model.token_embedding(_ids(corpus)) + model.position_embedding.weight[: len(TEXT)]
    torch.manual_seed(1)
    dropped = _rounded(attention_weights(head.train(), head.query(x_BTC), head.key(x_BTC))[0])
    return {"parameters": parameters, "weights": dropped, "run": recorded_run()}


def _same_logits(corpus: Corpus) -> dict[str, Any]:
    torch.manual_seed(1337)
    s8 = ScaledModel(corpus.tokenizer.vocab_size).eval()
    idx_BT = torch.from_numpy(np.asarray(corpus.val.ids[:256], dtype=np.int64))[None]
    ours, theirs = s8(idx_BT).flatten(), production_gpt(s8).eval()(idx_BT).flatten()
    shown = torch.randperm(len(ours))[:250]
    apart = float(f"{(ours - theirs).abs().max():.0e}")
    return {"s8": _rounded(ours[shown]), "production": _rounded(theirs[shown]), "apart": apart}
