"""`groundling safety`: train a classifier on labelled texts, and evaluate rules and classifiers."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from groundling.config import parse, run_subcommand
from groundling.errors import ConfigError, require
from groundling.safety.classifier import load_safety
from groundling.safety.training import Confusion, Labelled, read_labelled, split, train


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a classifier: groundling safety train DATA.jsonl --out FOLDER.

    Each line of the data is {"text": ..., "label": "unsafe" or "ok", or true or false}. One text in five is held out.
    """

    data: tyro.conf.Positional[Path]
    """JSONL file of labelled texts."""
    out: Path
    """Output folder for the classifier."""
    seed: int = 0
    """Seed of the cross-validation folds that choose the threshold."""


@dataclass(frozen=True, kw_only=True)
class TestConfig:
    """Evaluate the safety stage on labelled texts: groundling safety test DATA.jsonl."""

    data: tyro.conf.Positional[Path]
    """JSONL file of labelled texts, as for `safety train`."""
    rules: str = "default"
    """Rules: default, off, or a TOML file."""
    classifier: Path | None = None
    """Classifier to evaluate with the rules."""
    json: bool = False
    """Print one line of JSON."""


def main(argv: list[str]) -> int:
    """Run the verb; return the exit code."""
    commands = {
        "train": (_train, "train a classifier on labelled texts and evaluate it"),
        "test": (_test, "evaluate rules and a classifier on labelled texts"),
    }
    return run_subcommand(argv, commands, "groundling safety")


def _train(argv: list[str]) -> int:
    config = parse(TrainConfig, argv, "groundling safety train")
    require(not config.out.exists(), f"{config.out} already exists and was not changed; choose another name")
    training, held_out = split(read_labelled(config.data))
    classifier = train(training, config.seed)
    classifier.save(config.out)
    print(f"trained on {_summary(training)}; threshold {classifier.threshold:.3f}; saved to {config.out}")
    predicted = [classifier.is_unsafe(one.text) for one in held_out]
    _show(f"held out: {_summary(held_out)}", Confusion.of(predicted, [one.unsafe for one in held_out]))
    return 0


def _summary(labelled: Sequence[Labelled]) -> str:
    n_unsafe = sum(one.unsafe for one in labelled)
    return f"{len(labelled)} texts, {n_unsafe} of them unsafe"


def _test(argv: list[str]) -> int:
    config = parse(TestConfig, argv, "groundling safety test")
    safety = load_safety(config.rules, config.classifier)
    if safety is None:
        raise ConfigError("there is nothing to evaluate; give --rules or --classifier")
    labelled = read_labelled(config.data)
    by_rule: dict[str, Counter[bool]] = {}
    predicted = []
    for one in labelled:
        reply_filter = safety.reply()
        reply_filter.push(one.text)
        reply_filter.finish()
        predicted.append(bool(reply_filter.findings))
        for name in {finding.rule for finding in reply_filter.findings}:
            by_rule.setdefault(name, Counter())[one.unsafe] += 1
    confusion = Confusion.of(predicted, [one.unsafe for one in labelled])
    if config.json:
        rules = {name: {"right": found[True], "wrong": found[False]} for name, found in by_rule.items()}
        print(json.dumps({"texts": len(labelled), **confusion.to_json(), "rules": rules}))
        return 0
    _show(_summary(labelled), confusion)
    for name, found in sorted(by_rule.items()):
        print(f"  {name}: {found[True]} correct, {found[False]} wrong")
    return 0


def _show(what: str, found: Confusion) -> None:
    facts: dict[str, Any] = found.to_json()
    print(what)
    print(f"  precision {facts['precision']:.3f}, recall {facts['recall']:.3f}, F1 {facts['f1']:.3f}")
    print(
        f"  flagged: {found.hits} correct, {found.false_alarms} wrong; passed: {found.passes} correct, "
        f"{found.misses} wrong"
    )
