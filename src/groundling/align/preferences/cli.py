"""`groundling rankings simulate|export|import|stats`."""

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
        "simulate": (simulate.main, "sample replies and rank them by a simulated rater"),
        "export": (_export, "write all judgements as JSON Lines"),
        "import": (_import, "add the judgements of an export; existing ones are kept"),
        "stats": (_stats, "agreement of raters, position bias, strength of models"),
    }
    return config.run_subcommand(argv, commands, "groundling rankings")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write all judgements as JSON Lines."""

    path: tyro.conf.Positional[Path]
    """Rankings file (SQLite)."""
    out: tyro.conf.Positional[Path]
    """File to write; an existing one is replaced."""


def _export(argv: list[str]) -> int:
    chosen = config.parse(ExportConfig, argv, "groundling rankings export")
    atomic.require_apart(chosen.path, chosen.out)
    with Rankings(chosen.path, must_exist=True) as rankings:
        atomic.make_folder(chosen.out.parent)
        print(f"{chosen.out}: {rankings.export_jsonl(chosen.out)} judgements")
    return 0


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Add the judgements of an export; existing ones are kept."""

    path: tyro.conf.Positional[Path]
    """Rankings file (SQLite); created if missing."""
    file: tyro.conf.Positional[Path]
    """File written by `groundling rankings export`."""


def _import(argv: list[str]) -> int:
    chosen = config.parse(ImportConfig, argv, "groundling rankings import")
    with Rankings(chosen.path) as rankings:
        done = rankings.import_jsonl(chosen.file)
    print(f"{chosen.path}: {done.added} judgements added, {done.present} were there already")
    if done.different:
        print(f"{done.different} of those say something else in {chosen.file}; they were left as they are")
    return 0


@dataclass(frozen=True, kw_only=True)
class StatsConfig:
    """Show agreement of raters, position bias and the strength of models."""

    path: tyro.conf.Positional[Path]
    """Rankings file (SQLite)."""


def _stats(argv: list[str]) -> int:
    chosen = config.parse(StatsConfig, argv, "groundling rankings stats")
    with Rankings(chosen.path, must_exist=True) as rankings:
        counts, judgements = rankings.counts(), list(rankings)
    console = Console(markup=False)  # a rater's name is not markup
    console.print(
        f"{counts.judgements} judgements of {counts.prompts} prompts by {counts.raters} raters; "
        f"{counts.ties} ties, {counts.skips} skips",
        highlight=False,
    )
    bias = position_bias(judgements)
    if bias is not None:
        console.print(
            f"the one shown first was best in {bias.share:.1%} of {bias.n} (95 %: {bias.low:.1%} to {bias.high:.1%}); "
            f"by chance {bias.by_chance:.1%}",
            highlight=False,
        )
    agreement = Table("rater", "rater", "pairs both compared", "same answer", "Cohen's kappa")
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
