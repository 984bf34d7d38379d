"""Draw the figures of the ladder's pages from real runs.

    python docs/ladder/figures.py          # train s1 to s7 (a minute), write figures.json, draw the SVGs
    python docs/ladder/figures.py --draw   # draw again from figures.json

figures.json holds only what the figures show. With one version of matplotlib, the same file gives the same SVGs.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from figures_data import LETTERS, TEXT, measure
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from groundling.ladder.rungs import RUNGS

HERE = Path(__file__).resolve().parent
DATA, FOLDER = HERE / "figures.json", HERE / "figures"
BLUE, RED, GREY = "#2a6fb0", "#c0392b", "#888888"
KINDS = {"vowels": "aeiou", "consonants": "bcdfghjklmnpqrstvwxyz", "capitals": "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def draw(data: dict[str, Any]) -> None:
    """Write one SVG a page."""
    style = {"svg.hashsalt": "groundling", "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}
    with mpl.rc_context(style):
        for name, picture in PICTURES.items():
            figure = Figure(figsize=(8, 3.4), layout="constrained")
            picture(figure, data)
            metadata = {"Date": None, "Creator": None, "Title": f"The ladder: {name}"}
            figure.savefig(FOLDER / f"{name}.svg", format="svg", metadata=metadata)


def _heat(axes: Any, weights: Any, labels: str = TEXT, title: str = "", most: float | None = 1.0) -> None:
    axes.imshow(weights, cmap="Blues", vmin=0, vmax=most, interpolation="none", aspect="auto")
    shown = [{" ": "␣", "\n": "↵"}.get(letter, letter) for letter in labels]
    axes.set_xticks(range(len(shown)), shown)
    axes.set_yticks(range(len(np.asarray(weights))), shown[: len(np.asarray(weights))])
    axes.tick_params(length=0, labelsize=8 if len(shown) < 10 else 6)
    axes.set_title(title, fontsize=9)


def _curves(axes: Any, data: dict[str, Any], *names: str) -> None:
    """The validation loss of rungs, and the lecture's for the last of them."""
    for name, colour in zip(names, (GREY, BLUE) if len(names) == 2 else (BLUE,), strict=True):
        steps, losses = zip(*data["curves"][name], strict=True)
        axes.plot(steps, losses, ".-", color=colour, label=f"{name}: {losses[-1]:.2f}")
    lecture = RUNGS[names[-1]].lecture_val_loss
    if lecture is not None:
        axes.axhline(lecture, color=RED, linestyle="--", linewidth=1, label=f"the lecture's {names[-1]}: {lecture:.2f}")
    axes.set_ylim(1.9, 3.6)
    axes.set(xlabel="step", ylabel="validation loss (nats per character)")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_trick(figure: Figure, data: dict[str, Any]) -> None:
    left, middle, right = figure.subplots(1, 3)
    _heat(left, data["trick"]["matrix"], title="tril / row sums")
    _heat(middle, data["trick"]["softmax"], title="softmax of zeros, future masked")
    _heat(right, data["s3"]["weights"][0], title="softmax of learned scores (s3)")
    left.set_ylabel("position")
    for axes in (left, middle, right):
        axes.set_xlabel("averages over")


def _draw_s1(figure: Figure, data: dict[str, Any]) -> None:
    learned, counted, curve = figure.subplots(1, 3, width_ratios=(1.15, 1.15, 1))
    _heat(learned, np.sqrt(data["s1"]["learned"]), LETTERS, "P(next | current), trained table", None)
    _heat(counted, np.sqrt(data["s1"]["counted"]), LETTERS, "the same, counted pairs", None)
    learned.set(ylabel="current character", xlabel="next character")
    counted.set(xlabel="next character", yticks=[])
    _curves(curve, data, "s1")
    curve.set_ylim(2.2, 5)


def _draw_s2(figure: Figure, data: dict[str, Any]) -> None:
    places, curve = figure.subplots(1, 2, width_ratios=(1.6, 1))
    colours = dict(zip(KINDS, (RED, BLUE, "#2e8b57"), strict=True))
    for symbol, (x, y) in zip(data["s2"]["symbols"], data["s2"]["places"], strict=True):
        kind = next((kind for kind, members in KINDS.items() if symbol in members), "")
        shown = {" ": "␣", "\n": "↵", "$": r"\$"}.get(symbol, symbol)
        places.text(x, y, shown, color=colours.get(kind, GREY), ha="center", va="center", fontsize=9)
    xs, ys = np.transpose(data["s2"]["places"])
    places.set(xlim=(xs.min() - 0.4, xs.max() + 0.4), ylim=(ys.min() - 0.4, ys.max() + 0.4), xticks=[], yticks=[])
    places.set_title("token embeddings, first two principal components", fontsize=9)
    for row, (kind, colour) in enumerate([*colours.items(), ("others", GREY)]):
        places.text(0.02, 0.96 - 0.06 * row, kind, color=colour, transform=places.transAxes, va="top", fontsize=8)
    _curves(curve, data, "s1", "s2")


def _draw_s3(figure: Figure, data: dict[str, Any]) -> None:
    heat, curve = figure.subplots(1, 2)
    _heat(heat, data["s3"]["weights"][0], title="attention weights of the trained head")
    heat.set(ylabel="query", xlabel="key")
    _curves(curve, data, "s2", "s3")


def _draw_s4(figure: Figure, data: dict[str, Any]) -> None:
    axes = figure.subplot_mosaic("ABE;CDE", width_ratios=(1, 1, 1.7))
    for number, (place, weights) in enumerate(zip("ABCD", data["s4"]["weights"], strict=True)):
        _heat(axes[place], weights, title=f"head {number}")
    _curves(axes["E"], data, "s3", "s4")


def _draw_s5(figure: Figure, data: dict[str, Any]) -> None:
    heat, curve = figure.subplots(1, 2, width_ratios=(1.5, 1))
    features = np.asarray(data["s5"]["features"])
    _heat(heat, features, title=f"hidden features after the ReLU; {data['s5']['zeros']:.0%} are zero", most=None)
    heat.set_yticks(range(len(TEXT)), [letter.replace(" ", "␣") for letter in TEXT])
    heat.set_xticks([0, features.shape[1] - 1], ["1", str(features.shape[1])])
    heat.set(ylabel="position", xlabel="feature")
    _curves(curve, data, "s4", "s5")


def _box(axes: Any, x: float, y: float, width: float, text: str, colour: str) -> None:
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(
        FancyBboxPatch((x - width / 2, y - 0.22), width, 0.44, boxstyle=style, fc=colour, ec="black", lw=0.8)
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=8)


def _block(axes: Any, *, norm: bool) -> None:
    """One block beside the residual stream, from bottom to top."""
    arrow = {"arrowstyle": "->", "lw": 1.1, "color": "black"}
    axes.annotate("", (0, 6.1), (0, -0.3), arrowprops={**arrow, "lw": 2.4, "color": BLUE})
    axes.text(-0.15, 5.8, "x", ha="right", color=BLUE)
    halves = (("communicate", "#fdebd0", "heads"), ("compute", "#d5f5e3", "feed-forward"))
    for start, (name, colour, inside) in zip((0.1, 2.85), halves, strict=True):
        parts = [*(["LayerNorm"] if norm else []), inside, "projection"]
        axes.plot([0, 1.75], [start, start], color="black", lw=1.1)
        bottom, step = start + 0.45, 0.62
        for row, part in enumerate(parts):
            _box(axes, 1.75, bottom + step * row, 2.1, part, "#fadbd8" if part == "LayerNorm" else colour)
        top = start + 0.45 + step * 3
        axes.plot([1.75, 1.75], [start, start + 0.22], color="black", lw=1.1)
        axes.plot([1.75, 1.75], [bottom + step * (len(parts) - 1) + 0.22, top], color="black", lw=1.1)
        axes.annotate("", (0.16, top), (1.75, top), arrowprops=arrow)
        axes.text(
            0, top, "+", ha="center", va="center", fontsize=10, bbox={"boxstyle": "circle,pad=0.15", "fc": "white"}
        )
        axes.text(2.95, start + 1.05, name, va="center", fontsize=8, style="italic")
    axes.set(xlim=(-0.5, 4.6), ylim=(-0.4, 6.2))
    axes.axis("off")


def _draw_s6(figure: Figure, data: dict[str, Any]) -> None:
    block, curve = figure.subplots(1, 2)
    _block(block, norm=False)
    block.set_title("one of three blocks", fontsize=9)
    _curves(curve, data, "s5", "s6")


def _draw_s7(figure: Figure, data: dict[str, Any]) -> None:
    block, spread, curve = figure.subplots(1, 3, width_ratios=(1.3, 0.9, 1))
    _block(block, norm=True)
    names = [f"block {number} {half}" for number in (1, 2, 3) for half in ("heads", "feed-forward")] + ["lm_head"]
    spread.plot(data["s7"]["stream"], range(7), "o-", color=GREY, label="the stream")
    spread.plot(data["s7"]["read"], range(7), "o-", color=BLUE, label="after its norm")
    spread.set_yticks(range(7), names, fontsize=8)
    spread.set_title("standard deviation at each norm", fontsize=8)
    spread.set_xlim(0, 4)
    spread.legend(fontsize=8, frameon=False, loc="lower right", handlelength=1)
    spread.spines[["top", "right"]].set_visible(False)
    _curves(curve, data, "s6", "s7")
    curve.set_ylabel("validation loss")


def _draw_s8(figure: Figure, data: dict[str, Any]) -> None:
    size, whole, dropped, curve = figure.subplots(1, 4, width_ratios=(1.3, 0.8, 0.8, 1.3))
    names, counts = zip(*data["s8"]["parameters"].items(), strict=True)
    size.barh(names, counts, color=[GREY] * 7 + [BLUE], log=True)
    size.invert_yaxis()
    for row, count in enumerate(counts):
        size.text(count * 1.15, row, f"{count:,}", va="center", fontsize=8)
    size.set_xlim(1e3, 1.5e8)
    size.set_title("parameters", fontsize=9)
    size.spines[["top", "right"]].set_visible(False)
    _heat(whole, data["s3"]["weights"][0], title="evaluation", most=1.25)
    _heat(dropped, data["s8"]["weights"], title="training", most=1.25)
    run = data["s8"]["run"]
    curve.plot(run["steps"], run["train"], ".-", color=GREY, label="training")
    curve.plot(run["steps"], run["val"], ".-", color=BLUE, label=f"validation: {run['val'][-1]:.2f}")
    curve.axhline(RUNGS["s8"].lecture_val_loss, color=RED, linestyle="--", linewidth=1, label="the lecture's: 1.48")
    curve.set(xlabel="step", ylabel="loss")
    curve.legend(fontsize=8, frameon=False)
    curve.spines[["top", "right"]].set_visible(False)


def _draw_s9(figure: Figure, data: dict[str, Any]) -> None:
    matrices, same = figure.subplots(1, 2, width_ratios=(1.2, 1))
    for number, (role, colour) in enumerate((("query", "#aed6f1"), ("key", "#f9e79f"), ("value", "#abebc6"))):
        for head in range(6):
            matrices.add_patch(Rectangle((number * 1.25, head * 0.8), 1.0, 0.5, fc=colour, ec="black", lw=0.8))
        matrices.add_patch(Rectangle((5.3, 3.0 - number * 1.4), 2.4, 1.4, fc=colour, ec="black", lw=0.8))
        matrices.text(number * 1.25 + 0.5, 4.65, role, ha="center", fontsize=8)
        matrices.text(6.5, 3.7 - number * 1.4, f"{role}, 6 heads", ha="center", va="center", fontsize=7)
    matrices.annotate("", (5.1, 2.3), (3.8, 2.3), arrowprops={"arrowstyle": "->", "lw": 1.4})
    matrices.text(1.75, -0.55, "s8: 18 products per block", ha="center", fontsize=9)
    matrices.text(6.5, -0.55, "GPT: one, c_attn", ha="center", fontsize=9)
    matrices.set(xlim=(-0.2, 8), ylim=(-0.9, 5.1))
    matrices.axis("off")
    same.plot(data["s9"]["s8"], data["s9"]["production"], ".", color=BLUE, markersize=3)
    same.axline((0, 0), slope=1, color=GREY, lw=0.8)
    same.set(xlabel="logits of s8", ylabel="logits of the production GPT", aspect="equal")
    same.set_title(f"same weights, same text: at most {data['s9']['apart']:.0e} apart", fontsize=9)
    same.spines[["top", "right"]].set_visible(False)


PICTURES: dict[str, Callable[[Figure, dict[str, Any]], None]] = {
    "trick": _draw_trick,
    **{f"s{n}": globals()[f"_draw_s{n}"] for n in range(1, 10)},
}


if __name__ == "__main__":
    if "--draw" not in sys.argv[1:]:
        DATA.write_text(json.dumps(measure(), ensure_ascii=False) + "\n", encoding="utf-8")
    FOLDER.mkdir(exist_ok=True)
    draw(json.loads(DATA.read_text(encoding="utf-8")))
