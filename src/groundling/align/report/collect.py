"""Figures for the report from run folders and rankings."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from groundling.align.preferences.measures import measure_by_name
from groundling.align.preferences.simulated_rater import SAME
from groundling.align.preferences.store import Rankings
from groundling.align.report.config import ReportConfig
from groundling.align.report.schema import PolicyRounds, PreferenceBin, Rater, Record, RewardAccuracy
from groundling.errors import CheckpointError
from groundling.system.metrics import read_records
from groundling.train import run_folder


def read_stage_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a finished stage.

    Raises:
        CheckpointError: the folder has none that can be read.
    """
    summary = run_folder.read_summary(folder)
    if {"stage", "wall_s"} <= summary.keys() and summary["stage"] not in ("pretrain", "ladder"):
        return summary
    file = folder / run_folder.SUMMARY
    raise CheckpointError(f"{folder} is not a finished run of a stage (no readable {file}); run the stage first")


def training_seconds(folder: Path) -> float | None:
    """Training time of a stage; None for a bundle that is not in a run folder."""
    try:
        return float(read_stage_summary(folder)["wall_s"])
    except CheckpointError:
        return None


def read_rounds(folder: Path) -> list[Record]:
    """Records of a policy's rounds."""
    return [record for record in read_records(folder / "metrics.jsonl") if "kl" in record]


def read_training_records(folders: Sequence[Path]) -> dict[str, list[list[Record]]]:
    """Training records by stage and run."""
    records_by_stage: dict[str, list[list[Record]]] = {}
    for folder in folders:
        if records := read_records(folder / "metrics.jsonl"):
            records_by_stage.setdefault(str(read_stage_summary(folder)["stage"]), []).append(records)
    return records_by_stage


def read_policy_rounds(folder: Path) -> PolicyRounds:
    """The rounds of a policy that was trained with --gold.

    Raises:
        CheckpointError: the folder holds no such run.
    """
    try:
        gold = read_stage_summary(folder)["config"]["gold"]
    except KeyError as error:
        raise CheckpointError(f"{folder} does not say which measure it was run with ({error})") from error
    return PolicyRounds(gold, read_rounds(folder))


def read_reward_accuracy(folder: Path) -> RewardAccuracy | None:
    """The final evaluation of a reward model; None without a readable summary."""
    try:
        return msgspec.convert(read_stage_summary(folder), RewardAccuracy)
    except (CheckpointError, msgspec.ValidationError):
        return None


def compare_rater(config: ReportConfig, max_judgements: int = 300, n_bins: int = 12) -> Rater:
    """Compare rankings with the gold measure: how often the rater prefers the reply with the higher measure, by gap."""
    assert config.rankings is not None
    measure = lru_cache(maxsize=None)(measure_by_name(config.gold))
    with Rankings(config.rankings, must_exist=True) as rankings:
        judgements = list(islice(rankings, max_judgements))
    golds = [measure(candidate.text) for judgement in judgements for candidate in judgement.candidates]
    gaps = [
        measure(comparison.better.text) - measure(comparison.worse.text)
        for judgement in judgements
        for comparison in judgement.comparisons()
        if not comparison.tie
    ]
    widest = max(map(abs, gaps), default=0.0)
    bins: list[list[float]] = [[] for _ in range(n_bins)]
    for gap in gaps:
        if abs(gap) > SAME:
            bins[min(int(abs(gap) / widest * n_bins), n_bins - 1)].append(gap)
    preferred = [
        PreferenceBin(sum(map(abs, each)) / len(each), sum(gap > 0 for gap in each) / len(each), len(each))
        for each in bins
        if each
    ]
    raters = {judgement.rater for judgement in judgements}
    simulated = bool(raters) and all(rater.startswith("simulated-") for rater in raters)
    return Rater(golds, preferred, config.gold_noise if simulated else None)
