"""The data of a report, and its form in report.json."""

from dataclasses import asdict, dataclass, field
from typing import Any

from groundling.align.report.evaluate import ReplyMetrics

Record = dict[str, Any]
"""A line of a run's metrics.jsonl."""


@dataclass(frozen=True)
class Row:
    """A model, or a way to sample from one, and its results."""

    name: str
    metrics: ReplyMetrics
    seconds: float | None = None
    """Training time, averaged over runs."""
    trajectories: list[list[tuple[float, float]]] = field(default_factory=list)
    """KL in nats and gold measure in each round of each run."""


@dataclass(frozen=True)
class BestOf:
    """Best-of-n sampling from the fine-tuned model."""

    n: int
    kl: float
    """Upper bound in nats per reply."""
    gold: float
    proxy: float
    """Mean reward."""


@dataclass(frozen=True)
class PolicyRounds:
    """Rounds of a policy's training."""

    gold: str
    """Gold measure of the run."""
    rounds: list[Record]


@dataclass(frozen=True)
class CalibrationBin:
    """Pairs for which the reward model expects similar probabilities."""

    expected: float
    """Mean expected probability that the first reply is preferred."""
    preferred: float
    """How often it was."""
    pairs: float


@dataclass(frozen=True)
class RewardAccuracy:
    """A reward model on held-out pairs; None: not measured."""

    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    ceiling: float | None = None
    """Best possible accuracy under the rater's noise."""
    of_the_margin: float | None = None
    """Accuracy as a fraction of the way from chance to the ceiling."""
    pairs: float | None = None
    calibration: list[CalibrationBin] | None = None
    wall_s: float | None = None
    """Training time."""


@dataclass(frozen=True)
class PreferenceBin:
    """Pairs of replies with similar gaps in the gold measure."""

    gap: float
    share: float
    """How often the rater prefers the reply with the higher measure."""
    pairs: int


@dataclass(frozen=True)
class Rater:
    """Rankings beside the gold measure."""

    golds: list[float]
    """Gold measure of each reply."""
    preferred: list[PreferenceBin]
    noise: float | None
    """Of a simulated rater."""


@dataclass(frozen=True)
class Example:
    """Replies to one held-out prompt."""

    prompt: str
    replies: dict[str, str]
    """By name of the row."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Results of `groundling align-report`."""

    gold: str
    """Gold measure that the replies are judged by."""
    prompts: int
    seeds: list[int]
    environment: dict[str, Any]
    rows: list[Row]
    best_of: list[BestOf]
    without_kl: Row | None
    """A policy trained without a KL penalty."""
    over_optimisation: list[PolicyRounds]
    calibration: RewardAccuracy | None
    rater: Rater | None
    training_records: dict[str, list[list[Record]]]
    """Training records by stage and run."""
    replies: list[Example]
    wall_s: float


def to_dict(report: Report) -> dict[str, Any]:
    """The content of report.json."""
    calibration, without_kl = report.calibration, report.without_kl
    measured = {} if calibration is None else asdict(calibration)
    return {
        "gold": report.gold,
        "prompts": report.prompts,
        "seeds": report.seeds,
        "environment": report.environment,
        "rows": [
            {"name": row.name, **asdict(row.metrics), "seconds": row.seconds, "way": row.trajectories}
            for row in report.rows
        ],
        "best_of": [asdict(each) for each in report.best_of],
        "without_kl": None if without_kl is None else {"name": without_kl.name, **asdict(without_kl.metrics)},
        "over_optimisation": [asdict(run) for run in report.over_optimisation],
        "calibration": calibration and {key: value for key, value in measured.items() if value is not None},
        "rater": report.rater and asdict(report.rater),
        "courses": report.training_records,
        "replies": [{"prompt": example.prompt, **example.replies} for example in report.replies],
        "wall_s": report.wall_s,
    }
