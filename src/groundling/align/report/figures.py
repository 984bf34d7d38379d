"""The figures of a report."""

import math
from collections.abc import Sequence
from pathlib import Path

from groundling.align.report.schema import CalibrationBin, PolicyRounds, Rater, Record, Report
from groundling.system.plotting import save_figure, subplots

Records = Sequence[Record]


def draw_all(folder: Path, report: Report) -> list[tuple[Path, str]]:
    """Draw all figures for which there is data; return their files and captions.

    Raises:
        MissingExtraError: matplotlib is not installed.
        StorageError: a file could not be written.
    """
    records, reward, rater = report.training_records, report.calibration, report.rater
    figures = [(draw_frontier(folder / "frontier.png", report), "Gold measure against KL")]
    if runs := [run for run in report.over_optimisation if run.rounds]:
        figures.append((draw_over_optimisation(folder / "over_optimisation.png", runs),
                        "Reward and gold measure of policies trained without a KL penalty"))  # fmt: skip
    if records.get("sft"):
        figures.append((draw_fine_tuning(folder / "fine_tuning.png", records["sft"][0]),
                        "Fine-tuning: loss on assistant tokens, and replies that end by themselves"))  # fmt: skip
    if rater and rater.preferred:
        figures.append((draw_rater(folder / "rater.png", rater, report.gold),
                        "Gold measure of the ranked replies, and how often the rater prefers the higher"))  # fmt: skip
    if reward and reward.calibration:
        figures.append((draw_calibration(folder / "calibration.png", reward.calibration),
                        "Calibration of the reward model"))  # fmt: skip
    if records.get("dpo"):
        figures.append((draw_dpo(folder / "dpo.png", records["dpo"]),
                        "DPO: training loss, and accuracy on held-out pairs; one line per seed"))  # fmt: skip
    figures += [
        (draw_rounds(folder / f"{name}.png", records[name], report.gold),
         f"{name.upper()}, round by round; one line per seed")
        for name in ("grpo", "ppo") if records.get(name)
    ]  # fmt: skip
    return figures


def draw_fine_tuning(path: Path, records: Records) -> Path:
    """Loss on assistant tokens, and the fraction of replies that end by themselves."""
    figure, (losses, ended) = subplots(1, 2, figsize=(9, 3.6))
    trained = [(each["step"], each["loss"]) for each in records if "loss" in each]
    measured = [(each["step"], each["val_loss"]) for each in records if "val_loss" in each]
    if trained:
        losses.plot(*zip(*trained, strict=True), color="C0", alpha=0.5, label="batches")
    if measured:
        losses.plot(*zip(*measured, strict=True), "o--", color="C0", label="held out")
    losses.set_xlabel("step")
    losses.set_ylabel("loss, nats per assistant token")
    if trained or measured:
        losses.legend(frameon=False)
    losses.grid(alpha=0.2)
    shares = [(f"step {each['step']}", each["replies_ended"]) for each in records if "replies_ended" in each]
    if shares:
        bars = ended.bar(*zip(*shares, strict=True), color="C2", width=0.5)
        ended.bar_label(bars, fmt="{:.0%}")
    ended.set_ylim(0, 1.1)
    ended.set_ylabel("replies that end by themselves")
    save_figure(figure, path)
    return path


def draw_rater(path: Path, rater: Rater, gold: str) -> Path:
    """Distribution of the gold measure, and how often the rater prefers the reply with the higher one, by the gap."""
    figure, (values, preferred) = subplots(1, 2, figsize=(9, 3.6))
    values.hist(rater.golds, bins=41, color="C0")
    values.set_xlabel(f"gold measure of a reply: {gold}")
    values.set_ylabel("replies")
    gaps = [each.gap for each in rater.preferred]
    preferred.plot(gaps, [each.share for each in rater.preferred], "o", color="C1", label="rater")
    if noise := rater.noise:
        along = [max(gaps, default=1.0) * i / 100 for i in range(101)]
        chances = [1 / (1 + math.exp(-gap / noise)) for gap in along]
        preferred.plot(along, chances, color="0.6", label=f"sigmoid(gap / {noise:g})", zorder=0)
    preferred.set_xlabel("gap in gold measure between two replies")
    preferred.set_ylabel("fraction that prefers the higher")
    preferred.set_ylim(0.45, 1.02)
    preferred.legend(frameon=False)
    preferred.grid(alpha=0.2)
    save_figure(figure, path)
    return path


def draw_dpo(path: Path, runs: Sequence[Records]) -> Path:
    """Batch loss of each run, and its accuracy on held-out pairs before and after."""
    figure, (losses, right) = subplots(1, 2, figsize=(9, 3.6))
    for number, records in enumerate(runs):
        trained = [(each["step"], each["loss"]) for each in records if "loss" in each]
        measured = [(each["step"], each["accuracy"]) for each in records if "accuracy" in each]
        if trained:
            losses.plot(*zip(*trained, strict=True), color=f"C{number}", alpha=0.7)
        if measured:
            right.plot(*zip(*measured, strict=True), "o-", color=f"C{number}")
    losses.axhline(math.log(2), color="0.6", linewidth=1, linestyle="--", label="ln 2")
    losses.set_ylabel("loss, nats per pair")
    losses.legend(frameon=False)
    right.set_ylabel("accuracy on held-out pairs")
    for axes in (losses, right):
        axes.set_xlabel("step")
        axes.grid(alpha=0.2)
    save_figure(figure, path)
    return path


def draw_rounds(path: Path, runs: Sequence[Records], gold: str) -> Path:
    """Reward, gold measure and KL of each round."""
    what = (("reward", "reward"), ("gold", f"gold measure: {gold}"), ("kl", "KL, nats per reply"))
    figure, three = subplots(1, 3, figsize=(11, 3.4))
    for axes, (key, label) in zip(three, what, strict=True):
        for number, records in enumerate(runs):
            points = [(each["step"], each[key]) for each in records if key in each]
            if points:
                axes.plot(*zip(*points, strict=True), color=f"C{number}")
        axes.set_xlabel("round")
        axes.locator_params(axis="x", integer=True)
        axes.set_ylabel(label)
        axes.grid(alpha=0.2)
    save_figure(figure, path)
    return path


def draw_frontier(path: Path, report: Report) -> Path:
    """Gold measure against KL: each row, the trajectories of its runs, and the curve of best-of-n."""
    figure, axes = subplots(1, 1, figsize=(8, 5))
    sft = next((row.metrics for row in report.rows if row.name == "SFT"), None)
    start = [(0.0, sft.gold)] if sft else []
    curve = [*start, *((each.kl, each.gold) for each in report.best_of)]
    if len(curve) > 1:
        axes.plot(*zip(*curve, strict=True), "k--", marker=".", label="best of n", linewidth=1)
    trained = [row for row in report.rows if row.name not in ("base", "SFT") and row.seconds is not None]
    for number, row in enumerate(trained):
        for points in row.trajectories:
            axes.plot(*zip(*points, strict=True), color=f"C{number}", alpha=0.3, linewidth=1)
        axes.plot([row.metrics.kl], [row.metrics.gold], "o", color=f"C{number}", label=row.name)
    if sft:
        axes.plot([0], [sft.gold], "ks", label="SFT")
    axes.set_xlabel("KL to the fine-tuned model, nats per reply")
    axes.set_ylabel(f"gold measure: {report.gold}")
    axes.legend(frameon=False)
    axes.grid(alpha=0.2)
    save_figure(figure, path)
    return path


def draw_over_optimisation(path: Path, runs: Sequence[PolicyRounds]) -> Path:
    """Reward and gold measure against KL in runs without a KL penalty (after arXiv:2210.10760, figure 1)."""
    figure, (panels,) = subplots(1, len(runs), figsize=(5.6 * len(runs), 4.2), squeeze=False)
    for axes, run in zip(panels, runs, strict=True):
        nats = [max(0.0, each["kl"]) ** 0.5 for each in run.rounds]
        axes.plot(nats, [each["reward"] for each in run.rounds], color="C3", label="reward model (left)")
        axes.set_xlabel("square root of the KL, nats per reply")
        axes.set_ylabel("reward")
        other = axes.twinx()
        golds = [(x, each["gold"]) for x, each in zip(nats, run.rounds, strict=True) if "gold" in each]
        if golds:
            other.plot(*zip(*golds, strict=True), color="C0", label="gold measure (right)")
        other.set_ylabel(run.gold)
        handles = [*axes.get_lines(), *other.get_lines()]
        names = [handle.get_label() for handle in handles]
        # Above the axes: with two scales, no corner is sure to be empty.
        axes.legend(handles, names, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
        axes.grid(alpha=0.2)
    save_figure(figure, path)
    return path


def draw_calibration(path: Path, bins: Sequence[CalibrationBin]) -> Path:
    """Probability that the reward model expects, and how often the rater agrees."""
    figure, axes = subplots(1, 1, figsize=(5.5, 5))
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="perfect calibration")
    axes.plot([each.expected for each in bins], [each.preferred for each in bins], "o-", label="reward model")
    axes.set_xlabel("expected probability that the first is preferred")
    axes.set_ylabel("fraction preferred")
    axes.legend(frameon=False)
    axes.grid(alpha=0.2)
    save_figure(figure, path)
    return path
