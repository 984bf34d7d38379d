"""`groundling rankings simulate|export|import|stats`: simulate judgements, export, import and summarise them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from groundling import config
from groundling.align.preferences import simulate
from groundling.align.preferences.agreement import bradley_terry, kappas, position_bias
from groundling.align.preferences.store import Rankings
from groundling.storage import atomic


def main(argv: Sequence[str]) -> int:
    """Run `groundling rankings simulate|export|import|stats`."""
    commands = {
        "simulate": (simulate.main, "rank generated replies with a simulated rater"),
        "export": (_export, "write all answers as JSONL"),
        "import": (_import, "add the answers of a JSONL file; existing answers are kept"),
        "stats": (_stats, "show rater agreement, position bias and model strength"),
    }
    return config.run_subcommand(argv, commands, "groundling rankings")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write all answers as JSONL."""

    path: tyro.conf.Positional[Path]
    """Rankings file (SQLite)."""
    out: tyro.conf.Positional[Path]
    """Output file; replaced if it exists."""


def _export(argv: list[str]) -> int:
    chosen = config.parse(ExportConfig, argv, "groundling rankings export")
    atomic.require_apart(chosen.path, chosen.out)
    with Rankings(chosen.path, must_exist=True) as rankings:
        atomic.make_folder(chosen.out.parent)
        print(f"{chosen.out}: {rankings.export_jsonl(chosen.out)} judgements")
    return 0


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Add the answers of a JSONL file; existing answers are kept."""

    path: tyro.conf.Positional[Path]
    """Rankings file (SQLite); created if missing."""
    file: tyro.conf.Positional[Path]
    """JSONL file written by `groundling rankings export`."""


def _import(argv: list[str]) -> int:
    chosen = config.parse(ImportConfig, argv, "groundling rankings import")
    with Rankings(chosen.path) as rankings:
        done = rankings.import_jsonl(chosen.file)
    print(f"{chosen.path}: {done.added} judgements added, {done.present} already present")
    if done.different:
        print(f"{done.different} of those differ in {chosen.file}; the existing ones were kept")
    return 0


@dataclass(frozen=True, kw_only=True)
class StatsConfig:
    """Show rater agreement, position bias and the relative strength of models."""

    path: tyro.conf.Positional[Path]
    """Rankings file (SQLite)."""


def _stats(argv: list[str]) -> int:
    chosen = config.parse(StatsConfig, argv, "groundling rankings stats")
    with Rankings(chosen.path, must_exist=True) as rankings:
        counts, judgements = rankings.counts(), list(rankings)
    console = Console(markup=False)  # names of raters are not markup
    console.print(
        f"{counts.judgements} judgements of {counts.prompts} prompts by {counts.raters} raters; "
        f"{counts.ties} ties, {counts.skips} skips",
        highlight=False,
    )
    bias = position_bias(judgements)
    if bias is not None:
        console.print(
            f"the reply shown first was chosen in {bias.share:.1%} of {bias.n} "
            f"(95 %: {bias.low:.1%} to {bias.high:.1%}); by chance {bias.by_chance:.1%}",
            highlight=False,
        )
    agreement = Table("rater", "rater", "shared pairs", "agreement", "Cohen's kappa")
    for pair in kappas(judgements):
        agreement.add_row(*pair.raters, str(pair.n_pairs), _or_dash(pair.agreement, "{:.1%}"), _or_dash(pair.kappa))
    if agreement.row_count:
        console.print(agreement)
    models = Table("model", "comparisons", "score (log-odds)", "95 %")
    for score in bradley_terry(comparison for judgement in judgements for comparison in judgement.comparisons()):
        interval = f"{score.low:+.2f} to {score.high:+.2f}"
        models.add_row(score.model, str(score.n_comparisons), f"{score.score:+.2f}", interval)
    if models.row_count:
        console.print(models)
    return 0


def _or_dash(value: float | None, form: str = "{:.2f}") -> str:
    return "-" if value is None else form.format(value)
