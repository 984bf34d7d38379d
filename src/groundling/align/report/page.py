"""The report for people: a Markdown table, figures, and one self-contained HTML page."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from groundling.align.report.figures import draw_all
from groundling.align.report.schema import Report, RewardAccuracy, Row
from groundling.storage import atomic

COLUMNS = (
    "",
    "gold",
    "wins against SFT",
    "by seed",
    "KL, nats",
    "reward",
    "length",
    "ended",
    "distinct 1, 2",
    "trained in",
)

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 Georgia, serif; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
img { max-width: 100%; height: auto; background: #fff; }
blockquote { margin: 1.5rem 0 .3rem; font-style: italic; }
.replies td { text-align: left; vertical-align: top; white-space: pre-line; }
small { opacity: .75; }
"""


def line(row: Row) -> str:
    """A row for the terminal."""
    metrics = row.metrics
    kl = "" if metrics.kl is None else f", {metrics.kl:.1f} nats"
    return (
        f"{row.name:<16} gold {metrics.gold:+.3f}, wins {metrics.win_rate:.1%} "
        f"({metrics.win_low:.1%} to {metrics.win_high:.1%}){kl}, {metrics.length:.0f} tokens"
        + ("" if row.seconds is None else f", trained in {row.seconds:.0f} s")
    )


def cells(row: Row) -> list[str]:
    """A row of the table; see `COLUMNS`."""
    metrics = row.metrics
    return [
        row.name,
        f"{metrics.gold:+.3f}",
        f"{metrics.win_rate:.1%} ({metrics.win_low:.1%} to {metrics.win_high:.1%})",
        ", ".join(f"{value:.0%}" for value in metrics.win_seeds),
        "" if metrics.kl is None else f"{metrics.kl:.2f}",
        f"{metrics.proxy:+.2f}",
        f"{metrics.length:.1f}",
        f"{metrics.ended:.1%}",
        f"{metrics.distinct_1:.2f}, {metrics.distinct_2:.2f}",
        "" if row.seconds is None else f"{row.seconds:.0f} s",
    ]


def write(folder: Path, report: Report) -> None:
    """Write table.md, the figures, and index.html, which includes both.

    Raises:
        MissingExtraError: matplotlib is not installed.
        StorageError: a file could not be written.
    """
    rows = [*report.rows, *([report.without_kl] if report.without_kl else [])]
    table = [cells(row) for row in rows]
    atomic.write_text(folder / "table.md", _markdown(table))
    atomic.write_text(folder / "index.html", _page(report, table, draw_all(folder, report)))


def _markdown(table: Sequence[Sequence[str]]) -> str:
    lines = [COLUMNS, ["---"] + ["---:"] * (len(COLUMNS) - 1), *table]
    return "".join("| " + " | ".join(each) + " |\n" for each in lines)


def _page(report: Report, table: Sequence[Sequence[str]], figures: Sequence[tuple[Path, str]]) -> str:
    def cells_of(tag: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>Comparison of the stages</title><style>{STYLE}</style><h1>Comparison of the stages</h1>",
        f"<p>{report.prompts} held-out prompts, {len(report.seeds)} seeds, judged by the gold measure "
        f"<em>{html.escape(report.gold)}</em>. A reply wins if its measure is higher than that of a reply of the "
        "fine-tuned model. Intervals are 95 %, by resampling seeds and prompts.</p>",
        f"<div class='wide'><table>{cells_of('th', COLUMNS)}",
        *(cells_of("td", row) for row in table),
        "</table></div>",
    ]
    parts += _accuracy(report.calibration)
    for path, caption in figures:
        png = base64.b64encode(path.read_bytes()).decode("ascii")
        text = html.escape(caption)
        parts.append(
            f"<figure><img alt='{text}' src='data:image/png;base64,{png}'><figcaption>{text}.</figcaption></figure>"
        )
    parts.append("<h2>Example replies</h2>")
    for example in report.replies:
        body = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>"
            for name, text in example.replies.items()
        )
        parts.append(f"<blockquote>{html.escape(example.prompt)}</blockquote><table class='replies'>{body}</table>")
    machine = ", ".join(f"{name} {value}" for name, value in report.environment.items() if isinstance(value, str))
    parts.append(f"<p><small>{html.escape(machine)}; made in {report.wall_s:.0f} s.</small></p></html>\n")
    return "\n".join(parts)


def _accuracy(reward: RewardAccuracy | None) -> list[str]:
    if reward is None or reward.accuracy is None:
        return []
    ceiling = "" if reward.ceiling is None else f"; the rater's noise limits it to {reward.ceiling:.1%}"
    return [
        f"<p>Accuracy of the reward model on {reward.pairs:,.0f} held-out pairs: {reward.accuracy:.1%} "
        f"({reward.accuracy_low:.1%} to {reward.accuracy_high:.1%}){ceiling}.</p>"
    ]
