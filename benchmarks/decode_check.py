"""`decode_speed.py --check`: check that compiled decoding is faster than PyTorch on this machine."""

from collections.abc import Callable, Sequence
from typing import Any

import decode_report

from groundling.sample.native.build import Compilation

Record = dict[str, Any]
TORCH = "Groundling float32, PyTorch only"


def check(sizes: Sequence[str], measure: Callable[[str], Sequence[Record]]) -> int:
    """Measure and print each size; return 1 if compilation fails or PyTorch is as fast in any job, else 0."""
    compilation = Compilation()
    if compilation.wait() is None:
        print(f"NOT AHEAD: {compilation.reason}")
        return 1
    behind = []
    for size in sizes:
        records = measure(size)
        decode_report.show_size(size, records)
        behind += [f"{size}, {found}" for found in slower(records)]
    for found in behind:
        print(f"NOT AHEAD: {found}")
    print("compiled code is behind PyTorch" if behind else "compiled code is ahead of PyTorch in all jobs")
    return 1 if behind else 0


def slower(records: Sequence[Record]) -> list[str]:
    """One line for each job in which compiled code is not faster than PyTorch."""
    torch_speeds = {decode_report.title(r): r["tokens_per_s"] for r in records if r["name"] == TORCH}
    found = []
    for record in records:
        title, torch_speed = decode_report.title(record), torch_speeds[decode_report.title(record)]
        if record["name"] == TORCH:
            continue
        if torch_speed == 0 or record["tokens_per_s"] == 0:
            found.append(f"{record['name']}, {title}: no token within the time; give a larger --budget")
        elif record["tokens_per_s"] <= torch_speed:
            ratio = record["tokens_per_s"] / torch_speed
            found.append(f"{record['name']}, {title}: {ratio:.2f} times PyTorch's speed")
    return found
