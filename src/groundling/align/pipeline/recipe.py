"""`groundling chatgpt`: its config, the settings of each step, and the steps in order."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro

from groundling.align import dpo, sft
from groundling.align.data import ChatDataConfig
from groundling.align.dpo import DpoConfig
from groundling.align.pipeline.step import RANK, PipelineStep
from groundling.align.preferences import simulate
from groundling.align.preferences.measures import measure_by_name
from groundling.align.preferences.simulate import SimulateConfig
from groundling.align.report import build as report
from groundling.align.report.config import ReportConfig
from groundling.align.reward import train as reward
from groundling.align.reward.train import RewardConfig
from groundling.align.rl import grpo, ppo
from groundling.align.rl.grpo import GrpoConfig
from groundling.align.rl.ppo import PpoConfig
from groundling.align.sft import SftConfig
from groundling.errors import require
from groundling.train.optim.optimizers import OptimConfig

BETAS = (0.9, 0.95)
UNSET = "unset"
"""Placeholder for paths in a recipe; `steps` sets them."""


def adamw(lr: float, weight_decay: float = 0.0) -> OptimConfig:
    """AdamW as the alignment stages use it."""
    return OptimConfig(lr=lr, weight_decay=weight_decay, betas=BETAS)


@dataclass(frozen=True, kw_only=True)
class ChatgptConfig:
    """Run all stages of a small ChatGPT: groundling chatgpt BUNDLE [--field value ...]."""

    path: tyro.conf.Positional[str]
    """Pretrained model."""
    out_dir: Path = Path("runs/chatgpt")
    """Parent of the stages' run folders. Finished stages are kept."""
    data: ChatDataConfig = field(default_factory=lambda: ChatDataConfig(max_prompt=60, max_reply=60))
    """Conversations for all stages."""
    max_new_tokens: int = 48
    """Maximum tokens of a reply."""
    context: int | None = None
    """Tokens of context of all models; None: that of the pretrained model."""
    gold: str = "warm"
    """Measure that the simulated rater follows and the report judges by (warm or verse). No stage trains on it."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """One run of each of DPO, GRPO and PPO per seed."""
    smoke: bool = False
    """Smoke test: a few steps of each stage, too few to learn from."""

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        measure_by_name(self.gold)
        require(
            len(set(self.seeds)) == len(self.seeds) > 0, f"seeds are {self.seeds}; give at least one, all different"
        )
        require(min(self.seeds) >= 0, f"seeds are {self.seeds}; they must be at least 0")


@dataclass(frozen=True, kw_only=True)
class ChatgptRecipe:
    """Settings of each step except paths, data, seeds and reply lengths. docs/log.md records how they were tuned."""

    sft: SftConfig = field(default_factory=lambda: SftConfig(path=UNSET))
    rankings: SimulateConfig = field(
        default_factory=lambda: SimulateConfig(path=UNSET, prompts=5000, candidates=36, temperature=0.7)
    )
    reward: RewardConfig = field(
        default_factory=lambda: RewardConfig(path=UNSET, epochs=1.0, batch_size=4, optim=adamw(1e-3, weight_decay=1.0))
    )
    dpo: DpoConfig = field(
        default_factory=lambda: DpoConfig(path=UNSET, rankings=Path(UNSET), epochs=1.0, optim=adamw(2e-4), beta=0.2)
    )
    grpo: GrpoConfig = field(
        default_factory=lambda: GrpoConfig(path=UNSET, kl_coef=0.1, optim=adamw(4e-4), steps=20, stop_kl=7.5)
    )
    ppo: PpoConfig = field(
        default_factory=lambda: PpoConfig(path=UNSET, kl_coef=0.15, optim=adamw(3e-4), steps=20, stop_kl=8.5)
    )
    without_kl: GrpoConfig = field(
        default_factory=lambda: GrpoConfig(path=UNSET, kl_coef=0.0, optim=adamw(1e-3), steps=24, no_end=0.0)
    )
    """GRPO without a KL penalty, to show over-optimisation."""
    verse_rankings: SimulateConfig = field(
        default_factory=lambda: SimulateConfig(path=UNSET, gold="verse", prompts=600, candidates=8)
    )
    verse_reward: RewardConfig = field(
        default_factory=lambda: RewardConfig(
            path=UNSET, gold="verse", n_layer=1, epochs=2.0, batch_size=8, optim=adamw(1e-3, weight_decay=0.05)
        )
    )
    """A reward model that is easy to over-optimise.

    Lines of ten syllables are longer than most. With one block it can only sum values of tokens, so it learns to reward
    length, without a limit.
    """
    report: ReportConfig = field(default_factory=lambda: ReportConfig(path=UNSET))


def smoke_recipe() -> ChatgptRecipe:
    """A few training steps of each stage."""
    full = ChatgptRecipe()
    few = SimulateConfig(path=UNSET, prompts=24, candidates=4)
    return ChatgptRecipe(
        sft=replace(full.sft, epochs=0.02),
        rankings=few,
        dpo=replace(full.dpo, epochs=0.1),
        grpo=replace(full.grpo, steps=2, replies=16),
        ppo=replace(full.ppo, steps=2, replies=16),
        without_kl=replace(full.without_kl, steps=2, replies=16),
        verse_rankings=replace(few, gold="verse"),
        report=replace(full.report, prompts=8, best_of=(2,)),
    )


def steps(config: ChatgptConfig) -> list[PipelineStep[Any]]:
    """All steps in order."""
    return list(_steps(config, smoke_recipe() if config.smoke else ChatgptRecipe()))


def _steps(config: ChatgptConfig, recipe: ChatgptRecipe) -> Iterator[PipelineStep[Any]]:
    base, out, gold, data, cut = config.path, config.out_dir, config.gold, config.data, config.max_new_tokens
    policy, rankings, judge = out / "sft", out / "rankings.sqlite", out / "reward"
    verse_rankings, verse_judge = out / "verse.sqlite", out / "reward-verse"
    without_kl, over_optimised = out / "without-kl", out / "over-optimised"
    path = str(policy)

    sft_config = replace(recipe.sft, path=base, out_dir=policy, data=data, context=config.context)
    yield PipelineStep("sft", sft.sft, sft_config, policy, inputs=(Path(base),))
    simulate_config = replace(recipe.rankings, path=path, gold=gold, data=data, max_new_tokens=cut)
    yield _rankings(replace(simulate_config, rankings=rankings))
    yield _reward(replace(recipe.reward, path=path, gold=gold, rankings=rankings, out_dir=judge))

    dpo_config = replace(recipe.dpo, path=path, rankings=rankings)
    grpo_config = replace(recipe.grpo, path=path, reward=str(judge), gold=gold, data=data, max_new_tokens=cut)
    ppo_config = replace(recipe.ppo, path=path, reward=str(judge), gold=gold, data=data, max_new_tokens=cut)
    runs: dict[str, list[Path]] = {"dpo": [], "grpo": [], "ppo": []}
    for seed in config.seeds:
        folders = {name: out / f"{name}-{seed}" for name in runs}
        for name, folder in folders.items():
            runs[name].append(folder)
        each_dpo = replace(dpo_config, seed=seed, out_dir=folders["dpo"])
        yield PipelineStep("dpo", dpo.dpo, each_dpo, folders["dpo"], inputs=(policy, rankings))
        yield _grpo(replace(grpo_config, seed=seed, out_dir=folders["grpo"]))
        each_ppo = replace(ppo_config, seed=seed, out_dir=folders["ppo"])
        yield PipelineStep("ppo", ppo.ppo, each_ppo, folders["ppo"], inputs=(policy, judge))

    free = replace(recipe.without_kl, path=path, data=data, max_new_tokens=cut)
    yield _grpo(replace(free, reward=str(judge), gold=gold, out_dir=without_kl))
    simulate_config = replace(recipe.verse_rankings, path=path, data=data, max_new_tokens=cut)
    yield _rankings(replace(simulate_config, rankings=verse_rankings))
    yield _reward(replace(recipe.verse_reward, path=path, rankings=verse_rankings, out_dir=verse_judge))
    yield _grpo(replace(free, reward=str(verse_judge), gold="verse", out_dir=over_optimised))

    compared = tuple(folder for folders in runs.values() for folder in folders)
    report_config = replace(
        recipe.report,
        path=path,
        base=base,
        reward=str(judge),
        runs=compared,
        unpenalised=without_kl,
        over_optimised=(over_optimised,),
        rankings=rankings,
        out_dir=out / "report",
        gold=gold,
        seeds=config.seeds,
        max_new_tokens=cut,
        data=data,
    )
    inputs = (policy, Path(base), judge, rankings, *compared, without_kl, over_optimised)
    yield PipelineStep("align-report", report.align_report, report_config, report_config.out_dir, inputs)


def _rankings(config: SimulateConfig) -> PipelineStep[SimulateConfig]:
    return PipelineStep(RANK, simulate.simulate, config, config.rankings, inputs=(Path(config.path),))


def _reward(config: RewardConfig) -> PipelineStep[RewardConfig]:
    return PipelineStep("reward", reward.reward, config, config.out_dir, inputs=(Path(config.path), config.rankings))


def _grpo(config: GrpoConfig) -> PipelineStep[GrpoConfig]:
    return PipelineStep("grpo", grpo.grpo, config, config.out_dir, inputs=(Path(config.path), Path(config.reward)))
