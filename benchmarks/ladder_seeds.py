"""The ladder over several seeds, compared with the lecture: python benchmarks/ladder_seeds.py [--seeds 3] [--json OUT]

Prints a table: for each rung the losses of all seeds, their largest distance from the lecture's loss, and the seconds.
Exits with 1 if a distance exceeds 0.06.
"""

import argparse
import json
import sys
from pathlib import Path

from groundling.ladder.rungs import RUNGS
from groundling.ladder.runs.begin import SMALL
from groundling.ladder.train import train_rung
from groundling.system import hardware

MAX_DISTANCE = 0.06


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=None, help="steps of each rung; default: the lecture's")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: there is no folder {options.json.parent}; make it first")
    rows = []
    for name in SMALL:
        results = [train_rung(name, steps=options.steps, seed=1337 + seed) for seed in range(options.seeds)]
        rows.append({"rung": name, "lecture": RUNGS[name].lecture_val_loss, "results": [r.record() for r in results]})
        print(name, *(f"{r.val_loss:.3f}" for r in results), file=sys.stderr, flush=True)
    worst_of_all = 0.0
    print("| rung | lecture | val_loss, each seed | random batches, each seed | worst distance | seconds |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        whole = [result["val_loss"] for result in row["results"]]
        random = [result["val_loss_random_batches"] for result in row["results"]]
        lecture = row["lecture"]
        worst = None if lecture is None else max(abs(loss - lecture) for loss in whole)
        worst_of_all = max(worst_of_all, worst or 0.0)
        seconds = sum(result["seconds"] for result in row["results"]) / len(whole)
        print(
            f"| {row['rung']} | {lecture or ''} | {', '.join(f'{x:.3f}' for x in whole)} "
            f"| {', '.join(f'{x:.3f}' for x in random)} | {'' if worst is None else f'{worst:.3f}'} | {seconds:.1f} |"
        )
    print(f"\nworst distance {worst_of_all:.3f}, limit {MAX_DISTANCE}; {hardware.environment()}")
    if options.json:
        options.json.write_text(json.dumps({"environment": hardware.environment(), "rungs": rows}, indent=2))
    return int(worst_of_all > MAX_DISTANCE)


if __name__ == "__main__":
    raise SystemExit(main())
