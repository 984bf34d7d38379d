"""report.json keeps its form, and reads nothing but the typed report."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import pytest

from groundling.align.report import page
from groundling.align.report.collect import read_reward_accuracy
from groundling.align.report.evaluate import ReplyMetrics
from groundling.align.report.schema import BestOf, Example, PolicyRounds, Rater, Report, RewardAccuracy, Row, to_dict

STORED = Path(__file__).with_name("report.json")
"""Written before the report was typed, and shortened."""


def row_from(values: dict[str, Any]) -> Row:
    metrics = ReplyMetrics(**{each.name: values[each.name] for each in fields(ReplyMetrics)})
    trajectories = [[(kl, gold) for kl, gold in way] for way in values.get("way", [])]
    return Row(values["name"], metrics, values.get("seconds"), trajectories)


@pytest.fixture
def report() -> Report:
    values = json.loads(STORED.read_text("utf-8"))
    typed = {
        "rows": [row_from(row) for row in values["rows"]],
        "best_of": [BestOf(**each) for each in values["best_of"]],
        "without_kl": row_from(values["without_kl"]),
        "over_optimisation": [PolicyRounds(**each) for each in values["over_optimisation"]],
        "calibration": msgspec.convert(values["calibration"], RewardAccuracy),
        "rater": msgspec.convert(values["rater"], Rater),
        "replies": [Example(each.pop("prompt"), each) for each in values["replies"]],
    }
    values["training_records"] = values.pop("courses")
    return Report(**{**values, **typed})


def test_a_report_has_the_keys_and_values_of_a_stored_one(report: Report) -> None:
    assert json.dumps(to_dict(report), indent=2, ensure_ascii=False) + "\n" == STORED.read_text("utf-8")


def test_a_row_of_the_table(report: Report) -> None:
    assert page.cells(report.rows[2]) == [
        *("GRPO", "+0.189", "53.1% (12.5% to 81.4%)", "38%, 69%", "-0.00"),
        *("-1.56", "45.3", "6.2%", "0.96, 1.00", "0 s"),
    ]
    assert len(page.cells(report.rows[0])) == len(page.COLUMNS)
    assert page.cells(report.rows[0])[4] == page.cells(report.rows[0])[-1] == "", "neither KL nor training time"


def test_the_accuracy_of_a_reward_model_is_read_from_its_run(tmp_path: Path) -> None:
    assert read_reward_accuracy(tmp_path) is None
    summary = {"stage": "reward", "wall_s": 2, "accuracy": 0.75, "pairs": 8.0, "calibration": [], "failed": False}
    (tmp_path / "summary.json").write_text(json.dumps(summary), "utf-8")
    assert read_reward_accuracy(tmp_path) == RewardAccuracy(accuracy=0.75, pairs=8.0, calibration=[], wall_s=2)
