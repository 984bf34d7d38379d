"""The report of decode_speed.py: tables and targets, from the records of the runs."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from groundling.system.hardware import Peak

Record = dict[str, Any]

PEERS = {
    "x nanoGPT": ("float32", ("nanoGPT",)),
    "x transformers": ("float32", ("transformers",)),
    "float32 x llama.cpp f32": ("float32", ("llama.cpp f32",)),
    "bfloat16 x llama.cpp's better 16 bits": ("bfloat16", ("llama.cpp f16", "llama.cpp bf16")),
    "int8 x llama.cpp q8_0": ("int8", ("llama.cpp q8_0",)),
}
"""Heading -> (our precision, the implementations to compare with; the fastest counts)."""


def conclude(record: Record) -> Record:
    """Add the derived figures to a record. The best run counts, because noise only slows runs down."""
    best = max(record["runs"], key=lambda run: run["tokens"] / run["seconds"])
    speed = best["tokens"] / best["seconds"]
    share = None
    if record["bandwidths"]:
        peak = max(each["bytes_per_s"] for each in record["bandwidths"])
        share = Peak(peak).share(record["bandwidths"][-1]["bytes"] * speed)
    return {
        **record,
        "how": best["how"],
        "tokens_per_s": speed,
        "stopped": best["tokens"] < record["new"] * record["batch"],
        "bandwidth_share": share,
        "right_share": best["right"] / best["guessed"] if best.get("guessed") else None,
    }


def print_header(about: Record) -> None:
    """Print the settings and conditions of the measurement."""
    print(f"{about['date']}; {about['environment']}; {about['threads']} threads")
    print(
        f"Best of {about['rounds']} rounds. Random weights, temperature 1; block_size is the smallest multiple of 256 "
        "that fits the job,\nthe same for all. Prompts have one token, or 200 for the time to the first token. "
        f"*: stopped after {about['budget_s']:g} s; the speed is that of the tokens generated so far.\n"
    )
    for key, name, option in (
        ("nanogpt_model_sha256", "nanoGPT", "give a checkout with --nanogpt PATH"),
        ("transformers", "transformers", "install it"),
        ("llama_cpp_python", "llama.cpp", "give a Python with llama-cpp-python: --llama-cpp PYTHON"),
    ):
        if about[key] is None:
            print(f"{name} was not measured: {option}\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def title(record: Record) -> str:
    """The column heading of a job."""
    if record["new"] == 1:
        return f"ms to the first token of {record['prompt']}"
    streams = "1 stream" if record["batch"] == 1 else f"{record['batch']} streams"
    return f"tokens/s, {streams} of {record['new']:,}"


def figure(record: Record) -> str:
    """The table cell of a record: milliseconds to the first token, or tokens per second."""
    if record["tokens_per_s"] == 0:
        return "none*"
    if record["new"] == 1:
        return f"{1e3 / record['tokens_per_s']:.1f}"
    share = "" if record["bandwidth_share"] is None else f" ({record['bandwidth_share']:.0%})"
    return f"{record['tokens_per_s']:,.0f}{'*' if record['stopped'] else ''}{share}"


def show_size(size: str, records: Sequence[Record]) -> None:
    """Print all contestants in all jobs, then our speed relative to each peer's."""
    jobs = list(dict.fromkeys(map(title, records)))
    cells = {(record["name"], title(record)): figure(record) for record in records}
    names = list(dict.fromkeys(record["name"] for record in records))
    one = next(record for record in records if record["batch"] == 1 < record["new"])
    hows = {record["name"]: record["how"] for record in records if title(record) == title(one)}
    print(f"## {size}: {one['parameters']:,} parameters\n")
    print("In brackets: share of the read bandwidth, by the bytes read per token. How: with one stream.\n")
    table(["contestant", *jobs, "how"], [[name, *(cells[name, job] for job in jobs), hows[name]] for name in names])
    rows = [[job, *(f"{x:.2f}" if x else "" for x in ratios(records, job).values())] for job in jobs]
    compared = [place for place in range(1, len(PEERS) + 1) if any(row[place] for row in rows)]
    if compared:
        columns = ["our speed relative to", *(list(PEERS)[place - 1] for place in compared)]
        table(columns, [[row[0], *(row[place] for place in compared)] for row in rows])


def ratios(records: Sequence[Record], job: str) -> dict[str, float | None]:
    """Our speed relative to each peer's; None for a peer that was not measured."""
    speeds = {record["name"]: record["tokens_per_s"] for record in records if title(record) == job}
    found: dict[str, float | None] = {}
    for name, (precision, peers) in PEERS.items():
        theirs = [speeds[peer] for peer in peers if peer in speeds]
        found[name] = speeds[f"Groundling {precision}"] / max(theirs) if theirs and max(theirs) > 0 else None
    return found


def show_trained(guessing: Sequence[Record], losses: dict[str, float], cold_starts: Sequence[float]) -> None:
    """Print speculative decoding, the loss of each precision, and the cold start of a trained model."""
    print("## The trained model\n")
    columns = ["contestant", f"tokens/s, 1 stream of {guessing[0]['new']}", "speed-up", "accepted drafts"]
    plain = guessing[0]["tokens_per_s"]
    table(
        columns,
        [
            [
                record["name"],
                figure(record),
                f"{record['tokens_per_s'] / plain:.2f}",
                "" if record["right_share"] is None else f"{record['right_share']:.0%}",
            ]
            for record in guessing
        ],
    )
    exact = losses["float32"]
    rows = [[weights, f"{loss:.5f}", f"{loss - exact:+.5f}"] for weights, loss in losses.items()]
    table(["precision", "loss on the whole validation split", "difference from float32"], rows)
    print(f"Cold start to the first text: {median(cold_starts):.2f} s (median of {len(cold_starts)})\n")


def judge(records: Sequence[Record], size: str, cold_starts: Sequence[float]) -> list[Record]:
    """Each target with its measured value, and whether it is met; None if it was not measured."""
    bars: list[Record] = []

    def bar(text: str, value: float | None, met: Callable[[float], bool]) -> None:
        bars.append({"bar": text, "value": value, "met": None if value is None else met(value)})

    of_size = [record for record in records if record["size"] == size]
    one = min((r for r in of_size if r["batch"] == 1 < r["new"]), key=lambda record: record["new"])
    for name, ratio in ratios(of_size, title(one)).items():
        where = f"{size}, 1 stream of {one['new']}"
        if "llama.cpp" in name:
            bar(f">= 1.0 {name}, {where}", ratio, lambda x: x >= 1.0)
            bar(f"the goal: >= 1.5 {name}, {where}", ratio, lambda x: x >= 1.5)
        else:
            least = 10 if "nanoGPT" in name else 4
            bar(f">= {least} {name}, {where}", ratio, lambda x, least=least: x >= least)  # type: ignore[misc]
    alone, together = (
        next((r["tokens_per_s"] for r in of_size if is_plain(r, batch, one["new"])), None) for batch in (1, 16)
    )
    gain = together / alone if together and alone else None
    bar(f"16 streams >= 8 x one, float32, {size}", gain, lambda x: x >= 8)
    bar("cold start < 3 s", median(cold_starts) if cold_starts else None, lambda x: x < 3)
    return bars


def is_plain(record: Record, batch: int, new: int) -> bool:
    return (record["name"], record["batch"], record["new"]) == ("Groundling float32", batch, new)
