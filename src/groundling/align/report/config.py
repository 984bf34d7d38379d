"""The config of `groundling align-report`."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from groundling.align.data import ChatDataConfig
from groundling.align.preferences.measures import measure_by_name
from groundling.errors import require


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Compare stages on held-out prompts: groundling align-report SFT --reward MODEL --runs DIR ... [--field value]."""

    path: tyro.conf.Positional[str]
    """Fine-tuned model, the baseline of the comparison."""
    base: str | None = None
    """Model before fine-tuning."""
    reward: str = "runs/reward"
    """Reward model."""
    runs: tuple[Path, ...] = ()
    """Run folders of ppo, dpo and grpo; runs of one stage are the seeds of one row."""
    unpenalised: Path | None = None
    """Run at kl_coef 0 with --gold, shown in a row of its own."""
    over_optimised: tuple[Path, ...] = ()
    """More such runs, with any measure; only their training curves are shown."""
    rankings: Path | None = None
    """Rankings of a rater to compare with the measure."""
    gold_noise: float = 0.2
    """Noise of the rater, if simulated."""
    out_dir: Path = Path("runs/report")
    """Folder for index.html, report.json, table.md and the figures."""
    gold: str = "warm"
    """Gold measure to judge by (warm or verse)."""
    prompts: int = 200
    """Number of held-out prompts."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Sampling seeds; run n of a stage is sampled with seed n."""
    best_of: tuple[int, ...] = (4, 16)
    """Values of n for best-of-n sampling with the reward model."""
    max_new_tokens: int = 128
    """Maximum tokens of a reply."""
    context: int | None = None
    """Tokens of context for each model; None: all it has."""
    data: ChatDataConfig = field(default_factory=ChatDataConfig)

    def __post_init__(self) -> None:
        for name in ("prompts", "max_new_tokens"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(
            len(set(self.seeds)) == len(self.seeds) > 0, f"seeds are {self.seeds}; give at least one, all different"
        )
        require(all(n >= 2 for n in self.best_of), f"best_of is {self.best_of}; each n must be at least 2")
        measure_by_name(self.gold)
