"""A recipe and those of its teachers, and the command of each training process."""

import sys
from dataclasses import dataclass
from pathlib import Path

from groundling.config import parse
from groundling.errors import ConfigError
from groundling.train.settings import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process: a recipe with a seed, its teachers if any, and its run folder."""

    preset: str
    recipe: PretrainConfig
    seed: int
    run: Path
    teachers: tuple[Path, ...] = ()

    def command(self) -> list[str]:
        """The command line: the recipe with one evaluation, at the end."""
        words = ["pretrain", self.preset, f"--seed={self.seed}", f"--out-dir={self.run}", "--overwrite"]
        words += [f"--eval-every={self.recipe.steps}", f"--save-every={self.recipe.steps}"]
        words += ["--patience=None", "--sample-every=None", "--no-estimate-train-loss"]
        words += ["--teacher.models", *map(str, self.teachers)] if self.teachers else []
        return [sys.executable, "-m", "groundling", *words]


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """A recipe and those of its teachers, by preset."""

    preset: str
    by_preset: dict[str, PretrainConfig]

    @classmethod
    def of(cls, preset: str) -> "Recipes":
        """Read a recipe and its teachers' recipes.

        Raises:
            ConfigError: they cannot be read, or do not fit together.
        """
        preset = _file_name(preset)
        by_preset = {preset: _read(preset)}
        for name in dict.fromkeys(map(_file_name, by_preset[preset].teacher.recipes)):
            by_preset[name] = _read(name)
            if by_preset[name].teacher.recipes:
                raise ConfigError(f"{name}, a teacher of {preset}, has teacher.recipes of its own; it can have none")
            if by_preset[name].data != by_preset[preset].data:
                raise ConfigError(
                    f"{name}, a teacher of {preset}, has other settings of data; a teacher must be trained on "
                    "the training split of its student, and on nothing of its validation split"
                )
        for name, recipe in by_preset.items():
            if recipe.teacher.models:
                raise ConfigError(f"{name} has teacher.models, whose cost is not known here; name teacher.recipes")
            if recipe.init_from is not None:
                raise ConfigError(f"{name} has init_from, whose cost is not known here; leave it out")
        return cls(preset=preset, by_preset=by_preset)

    @property
    def teachers(self) -> list[str]:
        """The preset of each teacher."""
        return [_file_name(name) for name in self.by_preset[self.preset].teacher.recipes]

    @property
    def default_seeds(self) -> tuple[int, ...]:
        """Three seeds; one if there are teachers, with which a run takes an hour."""
        return (1337,) if self.teachers else (1337, 1338, 1339)

    def jobs(self, seed: int, out_dir: Path) -> list[Job]:
        """The jobs of a seed, teachers first. Teachers have seeds of their own, different for each seed."""
        jobs = [
            Job(
                preset=preset,
                recipe=self.by_preset[preset],
                seed=1000 * seed + number,
                run=out_dir / f"seed-{seed}-teacher-{number}",
            )
            for number, preset in enumerate(self.teachers, start=1)
        ]
        teachers = tuple(job.run for job in jobs)
        recipe, run = self.by_preset[self.preset], out_dir / f"seed-{seed}"
        return [*jobs, Job(preset=self.preset, recipe=recipe, seed=seed, run=run, teachers=teachers)]


def _file_name(preset: str) -> str:
    """The file name of a preset, as `pretrain` takes it."""
    return preset if preset.endswith(".toml") else f"{preset}.toml"


def _read(preset: str) -> PretrainConfig:
    return parse(PretrainConfig, [preset], "groundling pretrain")
