"""The report as people see it: a table, pictures, and one HTML page that needs nothing else."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groundling.align.report.evaluate import Verdict
from groundling.align.report.figures import draw_all
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


def line(name: str, verdict: Verdict, seconds: float | None) -> str:
    """One row for the terminal."""
    kl = "" if verdict.kl is None else f", {verdict.kl:.1f} nats"
    return (
        f"{name:<16} gold {verdict.gold:+.3f}, wins {verdict.win_rate:.1%} "
        f"({verdict.win_low:.1%} to {verdict.win_high:.1%}){kl}, {verdict.length:.0f} tokens"
        + ("" if seconds is None else f", trained in {seconds:.0f} s")
    )


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table, as text."""
    return [
        row["name"],
        f"{row['gold']:+.3f}",
        f"{row['win_rate']:.1%} ({row['win_low']:.1%} to {row['win_high']:.1%})",
        ", ".join(f"{value:.0%}" for value in row["win_seeds"]),
        "" if row["kl"] is None else f"{row['kl']:.2f}",
        f"{row['proxy']:+.2f}",
        f"{row['length']:.1f}",
        f"{row['ended']:.1%}",
        f"{row['distinct_1']:.2f}, {row['distinct_2']:.2f}",
        "" if row.get("seconds") is None else f"{row['seconds']:.0f} s",
    ]


def write(folder: Path, figures: dict[str, Any]) -> None:
    """Write table.md, the pictures, and index.html with all of it.

    Raises:
        MissingExtraError: matplotlib is not installed.
        StorageError: a file could not be written.
    """
    rows = [*figures["rows"], *([figures["without_kl"]] if figures["without_kl"] else [])]
    table = [cells(row) for row in rows]
    atomic.write_text(folder / "table.md", _markdown(table))
    atomic.write_text(folder / "index.html", _page(figures, table, draw_all(folder, figures)))


def _markdown(table: Sequence[Sequence[str]]) -> str:
    lines = [COLUMNS, ["---"] + ["---:"] * (len(COLUMNS) - 1), *table]
    return "".join("| " + " | ".join(each) + " |\n" for each in lines)


def _page(figures: dict[str, Any], table: Sequence[Sequence[str]], pictures: Sequence[tuple[Path, str]]) -> str:
    def cells_of(tag: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>What each stage was good for</title><style>{STYLE}</style><h1>What each stage was good for</h1>",
        f"<p>{figures['prompts']} held-out prompts, {len(figures['seeds'])} seeds, judged by the measure "
        f"<em>{html.escape(figures['gold'])}</em>. A win is a reply that it puts above one of the fine-tuned model; "
        "intervals are of 95 %, by resampling seeds and prompts.</p>",
        f"<div class='wide'><table>{cells_of('th', COLUMNS)}",
        *(cells_of("td", row) for row in table),
        "</table></div>",
    ]
    reward = figures["calibration"]
    if reward and "accuracy" in reward:
        ceiling = f", where the rater's noise allows {reward['ceiling']:.1%}" if "ceiling" in reward else ""
        parts.append(
            f"<p>The reward model tells the better of two held-out replies in {reward['accuracy']:.1%} of "
            f"{reward['pairs']:,.0f} pairs ({reward['accuracy_low']:.1%} to {reward['accuracy_high']:.1%})"
            f"{ceiling}.</p>"
        )
    for path, caption in pictures:
        picture = base64.b64encode(path.read_bytes()).decode("ascii")
        text = html.escape(caption)
        parts.append(
            f"<figure><img alt='{text}' src='data:image/png;base64,{picture}'><figcaption>{text}.</figcaption></figure>"
        )
    parts.append("<h2>What they say</h2>")
    for each in figures["replies"]:
        said = [(name, text) for name, text in each.items() if name != "prompt"]
        body = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>" for name, text in said)
        parts.append(f"<blockquote>{html.escape(each['prompt'])}</blockquote><table class='replies'>{body}</table>")
    machine = ", ".join(f"{name} {value}" for name, value in figures["environment"].items() if isinstance(value, str))
    parts.append(f"<p><small>{html.escape(machine)}; made in {figures['wall_s']:.0f} s.</small></p></html>\n")
    return "\n".join(parts)
