"""`groundling chatgpt`: every stage of a small ChatGPT one after another, from a pretrained model to the report.

Each is a verb of its own, and is shown as one before it runs: what is done here can be done by hand. A stage that has
finished is not run again, so that an interrupted pipeline goes on at the stage that it was in.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from groundling import atomicio
from groundling.align import dpo, grpo, ppo, report, reward, sft, simulate
from groundling.align.rankings import Rankings
from groundling.bundle import find_bundle
from groundling.config import parse
from groundling.errors import ConfigError, require
from groundling.log import say
from groundling.train.watch import ASKED_TO_STOP

Stage = tuple[str, Callable[[Sequence[str]], int], list[str]]
"""A verb, what runs it, and its arguments."""


@dataclass(frozen=True, kw_only=True)
class ChatgptConfig:
    """All stages of a small ChatGPT: groundling chatgpt BUNDLE [--field value ...]."""

    path: tyro.conf.Positional[str]
    """A pretrained model."""
    out_dir: Path = Path("runs/chatgpt")
    """Its stages' folders go here. What has finished there is kept."""
    gold: str = "warm"
    """The measure that the simulated rater follows (warm or verse). No stage sees it, but the report."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of the policies: each method learns once with each."""
    smoke: bool = False
    """A few steps of each stage, to see that all run; what they learn is nothing."""

    def __post_init__(self) -> None:
        require(
            len(set(self.seeds)) == len(self.seeds) > 0, f"seeds are {self.seeds}; give at least one, and none twice"
        )


def main(argv: Sequence[str]) -> int:
    """The verb `chatgpt`."""
    return chatgpt(parse(ChatgptConfig, argv, "groundling chatgpt"))


def chatgpt(config: ChatgptConfig) -> int:
    """Run what has not finished; return the exit code of the last stage that ran.

    Raises:
        GroundlingError: one of its kinds, in one line.
    """
    find_bundle(Path(config.path))
    _require_same_recipe(config)
    started = time.perf_counter()
    anew = False
    for verb, run, argv in stages(config):
        if not anew and _is_done(verb, argv):
            say(f"\ngroundling {verb} {' '.join(argv)}: done before")
            continue
        if verb == "rankings simulate" and _has_rankings(argv):
            raise ConfigError(
                f"{_value(argv, '--rankings')} has rankings of an earlier model's replies; move it elsewhere"
            )
        say(f"\n$ groundling {verb} {' '.join(argv)}")
        learns = verb not in ("rankings simulate", "align-report")
        code = run([*argv, "--overwrite"] if learns else argv)  # what an interrupted stage left goes
        if code:
            return code
        # All that follows these was made of what they were before.
        anew = anew or verb in ("sft", "rankings simulate", "reward")
    say(f"\nall stages in {time.perf_counter() - started:.0f} s; talk with one: "
        f"groundling chat {config.out_dir / f'ppo-{config.seeds[0]}'}")  # fmt: skip
    return 0


def _require_same_recipe(config: ChatgptConfig) -> None:
    """Check that what lies in the folder was made in the same way; and leave a note of how, for the next time.

    Raises:
        ConfigError: it was not.
    """
    file = config.out_dir / "chatgpt.json"
    recipe = {"path": config.path, "gold": config.gold, "smoke": config.smoke}
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = recipe
    require(
        earlier == recipe,
        f"{config.out_dir} holds stages made with {earlier}, and now it is {recipe}; choose another --out-dir",
    )
    atomicio.make_folder(config.out_dir)
    atomicio.write_json(file, recipe)


def stages(config: ChatgptConfig) -> list[Stage]:
    """The recipe (docs/log.md says how its numbers were found)."""
    out = config.out_dir
    fine_tuned, rankings, judge = str(out / "sft"), str(out / "rankings.sqlite"), str(out / "reward")
    short = ["--data.max-prompt", "60", "--data.max-reply", "60"]
    cut = ["--max-new-tokens", "48"]
    few = config.smoke
    rounds = ["--steps", "2", "--replies", "16"] if few else []
    found: list[Stage] = [
        ("sft", sft.main, [config.path, "--out-dir", fine_tuned, *short, *(["--epochs", "0.02"] if few else [])]),
        ("rankings simulate", simulate.main,
         [fine_tuned, "--rankings", rankings, "--gold", config.gold, *short, *cut,
          *(["--prompts", "24", "--candidates", "4"] if few else ["--prompts", "5000", "--candidates", "16"])]),
        ("reward", reward.main,
         [fine_tuned, "--rankings", rankings, "--gold", config.gold, "--out-dir", judge, *REWARD]),
    ]  # fmt: skip
    for seed in config.seeds:
        seeded = ["--seed", str(seed)]
        dpo_argv = [fine_tuned, "--rankings", rankings, *seeded, *DPO, *(["--epochs", "0.1"] if few else [])]
        found.append(("dpo", dpo.main, [*dpo_argv, "--out-dir", str(out / f"dpo-{seed}")]))
        by_rewards = [fine_tuned, "--reward", judge, "--gold", config.gold, *seeded, *short, *cut]
        found.append(("grpo", grpo.main, [*by_rewards, *GRPO, *rounds, "--out-dir", str(out / f"grpo-{seed}")]))
        found.append(("ppo", ppo.main, [*by_rewards, *PPO, *rounds, "--out-dir", str(out / f"ppo-{seed}")]))
    free = [fine_tuned, "--reward", judge, "--gold", config.gold, *short, *cut, *FREE, *rounds]
    found.append(("grpo", grpo.main, [*free, "--out-dir", str(out / "without-kl")]))
    runs = [str(out / f"{name}-{seed}") for name in ("dpo", "grpo", "ppo") for seed in config.seeds]
    compared = ["--base", config.path, "--reward", judge, "--gold", config.gold]
    compared += ["--rankings", rankings, "--unpenalised", str(out / "without-kl")]
    seeds = ["--seeds", *map(str, config.seeds), *(["--prompts", "8", "--best-of", "2"] if few else [])]
    report_argv = [fine_tuned, *compared, *short, *cut, *seeds, "--out-dir", str(out / "report"), "--runs", *runs]
    found.append(("align-report", report.main, report_argv))
    return found


REWARD = ["--epochs", "3", "--batch-size", "8", "--optim.lr", "1e-3"]
DPO = ["--epochs", "1", "--optim.lr", "2e-4"]
GRPO = ["--kl-coef", "0.1", "--optim.lr", "3e-4", "--steps", "20"]
PPO = ["--kl-coef", "0.15", "--optim.lr", "3e-4", "--steps", "20", "--stop-kl", "9"]
FREE = ["--kl-coef", "0", "--optim.lr", "1e-3", "--steps", "50", "--no-end", "0"]


def _value(argv: Sequence[str], flag: str) -> str:
    return argv[list(argv).index(flag) + 1]


def _has_rankings(argv: Sequence[str]) -> bool:
    file = Path(_value(argv, "--rankings"))
    if not file.is_file():
        return False
    with Rankings(file, must_exist=True) as rankings:
        return any(True for _ in rankings)


def _is_done(verb: str, argv: Sequence[str]) -> bool:
    """Whether a stage has left its result; the report is always made anew."""
    if verb == "align-report":
        return False
    if verb == "rankings simulate":
        return _has_rankings(argv)
    file = Path(_value(argv, "--out-dir")) / "summary.json"
    try:
        return bool(json.loads(file.read_text(encoding="utf-8"))["ended"] != ASKED_TO_STOP)
    except (OSError, ValueError, KeyError):
        return False
