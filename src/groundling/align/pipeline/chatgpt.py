"""`groundling chatgpt`: every stage of a small ChatGPT one after another, from a pretrained model to the report.

Each is a verb of its own, and is shown as one before it runs: what is done here can be done by hand. A stage that has
finished is not run again, and an interrupted one goes on where it was.
"""

import dataclasses
import logging
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from groundling.align import dpo, sft
from groundling.align.chat_vocab import with_chat
from groundling.align.data import ChatDataConfig, prompt_room, read_asked
from groundling.align.pipeline.step import RANK, Stage, has_rankings
from groundling.align.pipeline.time_estimate import N_DIALOGUES, Clock, measure, name_of
from groundling.align.preferences import simulate
from groundling.align.preferences.measures import measure_by_name
from groundling.align.report import build as report
from groundling.align.reward import train as reward
from groundling.align.rl import grpo, ppo
from groundling.bundle import load_bundle
from groundling.bundle.context import contexts
from groundling.bundle.layout import find_bundle, read_chat, read_config, require_speaker
from groundling.config import parse
from groundling.data.examples.encoding import least_ids
from groundling.errors import ConfigError, require
from groundling.storage import atomic
from groundling.system.runtime import RuntimeConfig
from groundling.text.chat.role_tokens import RoleTokens
from groundling.text.serialize import load_tokenizer
from groundling.train.estimate import describe_seconds

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ChatgptConfig:
    """All stages of a small ChatGPT: groundling chatgpt BUNDLE [--field value ...]."""

    path: tyro.conf.Positional[str]
    """A pretrained model."""
    out_dir: Path = Path("runs/chatgpt")
    """Its stages' folders go here. What has finished there is kept."""
    data: ChatDataConfig = field(default_factory=lambda: ChatDataConfig(max_prompt=60, max_reply=60))
    """What all stages talk about."""
    max_new_tokens: int = 48
    """After which a reply is cut."""
    context: int | None = None
    """Tokens of context that the models of all stages have; None: as many as the pretrained one."""
    gold: str = "warm"
    """The measure that the simulated rater follows (warm or verse). No stage sees it, but the report."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of the policies: each method learns once with each."""
    smoke: bool = False
    """A few steps of each stage, to see that all run; what they learn is nothing."""

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        measure_by_name(self.gold)
        require(
            len(set(self.seeds)) == len(self.seeds) > 0, f"seeds are {self.seeds}; give at least one, and none twice"
        )
        require(min(self.seeds) >= 0, f"seeds are {self.seeds}; they must be at least 0")


def main(argv: Sequence[str]) -> int:
    """The verb `chatgpt`."""
    return chatgpt(parse(ChatgptConfig, argv, "groundling chatgpt"))


def chatgpt(config: ChatgptConfig) -> int:
    """Run what has not finished; return the exit code of the last stage that ran.

    Raises:
        GroundlingError: one of its kinds, in one line.
    """
    folder = find_bundle(config.path)
    require_speaker(config.path)
    own, tokenizer = read_config(folder), load_tokenizer(folder)
    chat = read_chat(folder, own) or RoleTokens.after(tokenizer.vocab_size)
    (context,) = contexts([config.path], config.context)
    prompt_room(context or own.block_size, config.max_new_tokens, least_ids(chat, tokenizer))
    _require_same_recipe(config)
    started = time.perf_counter()
    all_stages = stages(config)
    missing = what_is_missing(all_stages)
    clock = _clock(config, missing)
    for stage in missing:
        if _is_stale(stage, missing):
            stage.forget()
    for stage in all_stages:
        if stage not in missing:
            log.info(f"\n{stage.line()}: done before")
            continue
        log.info(f"\n$ {stage.line()}")
        begun = time.perf_counter()
        if code := stage.run([*stage.argv, *stage.way_on()]):
            return code
        if clock is not None:
            clock.end(time.perf_counter() - begun)
            log.info(f"{stage.verb} done in {time.perf_counter() - begun:.0f} s; {_left(clock)}")
    log.info(f"\nall stages in {time.perf_counter() - started:.0f} s; talk with one: "
        f"groundling chat {shlex.quote(str(config.out_dir / f'ppo-{config.seeds[0]}'))}")  # fmt: skip
    return 0


def _clock(config: ChatgptConfig, missing: Sequence[Stage]) -> Clock | None:
    """An estimate for all stages, which is printed; None where they are too short to need one."""
    if config.smoke:
        return None
    bundle = with_chat(load_bundle(config.path, context=config.context))
    scale = 1.0
    if config.data.path is not None:
        scale = len(read_asked(config.data).train) / N_DIALOGUES
    clock = Clock([name_of(stage.verb, stage.output()) for stage in missing], measure(bundle, RuntimeConfig()), scale)
    stages_left = f"{len(missing)} {'stage' if len(missing) == 1 else 'stages'}"
    log.info(f"{stages_left}; {_left(clock)} on this machine, by a short trial of training and decoding")
    return clock


def _left(clock: Clock) -> str:
    return f"about {describe_seconds(clock.seconds_left)} left for all"


def what_is_missing(all_stages: Sequence[Stage]) -> list[Stage]:
    """Those that have not finished, and those that finished with what these will make anew.

    Raises:
        ConfigError: there are rankings of a model that is to be made anew.
    """
    missing: list[Stage] = []
    for stage in all_stages:
        is_stale = _is_stale(stage, missing)
        if stage.is_done() and not is_stale:
            continue
        if stage.verb == RANK and is_stale and has_rankings(Path(stage.output())):
            raise ConfigError(f"{stage.output()} has rankings of an earlier model's replies; move it elsewhere")
        missing.append(stage)
    return missing


def _is_stale(stage: Stage, missing: Sequence[Stage]) -> bool:
    """Whether it reads what one of these is to make."""
    return any(stage.needs(other.output()) for other in missing)


def _require_same_recipe(config: ChatgptConfig) -> None:
    """Check that what lies in the folder was made in the same way; and leave a note of how, for the next time.

    Raises:
        ConfigError: it was not.
    """
    file = config.out_dir / "chatgpt.json"
    recipe = {"path": config.path, "gold": config.gold, "smoke": config.smoke}
    recipe |= {"data": _data_flags(config), "max_new_tokens": config.max_new_tokens}
    recipe |= {} if config.context is None else {"context": config.context}
    try:
        earlier = atomic.read_json(file)
    except (OSError, ValueError):
        earlier = recipe
    require(
        earlier == recipe,
        f"{config.out_dir} holds stages made with {earlier}, and now it is {recipe}; choose another --out-dir",
    )
    atomic.make_folder(config.out_dir)
    atomic.write_json(file, recipe)


def stages(config: ChatgptConfig) -> list[Stage]:
    """The recipe (docs/log.md says how its numbers were found)."""
    out = config.out_dir
    fine_tuned, rankings, judge = str(out / "sft"), str(out / "rankings.sqlite"), str(out / "reward")
    short, cut = _data_flags(config), ["--max-new-tokens", str(config.max_new_tokens)]
    few, window = config.smoke, [] if config.context is None else ["--context", str(config.context)]
    rounds = ["--steps", "2", "--replies", "16"] if few else []
    found: list[Stage] = [
        Stage("sft", sft.main,
         [config.path, "--out-dir", fine_tuned, *short, *window, *(["--epochs", "0.02"] if few else [])]),
        Stage(RANK, simulate.main,
         [fine_tuned, "--rankings", rankings, "--gold", config.gold, *short, *cut,
          *(["--prompts", "24", "--candidates", "4"] if few else SIMULATED_DATA)]),
        Stage("reward", reward.main,
         [fine_tuned, "--rankings", rankings, "--gold", config.gold, "--out-dir", judge, *REWARD]),
    ]  # fmt: skip
    for seed in config.seeds:
        seeded = ["--seed", str(seed)]
        dpo_argv = [fine_tuned, "--rankings", rankings, *seeded, *DPO, *(["--epochs", "0.1"] if few else [])]
        found.append(Stage("dpo", dpo.main, [*dpo_argv, "--out-dir", str(out / f"dpo-{seed}")]))
        by_rewards = [fine_tuned, "--reward", judge, "--gold", config.gold, *seeded, *short, *cut]
        found.append(Stage("grpo", grpo.main, [*by_rewards, *GRPO, *rounds, "--out-dir", str(out / f"grpo-{seed}")]))
        found.append(Stage("ppo", ppo.main, [*by_rewards, *PPO, *rounds, "--out-dir", str(out / f"ppo-{seed}")]))
    free = [fine_tuned, "--reward", judge, "--gold", config.gold, *short, *cut, *FREE, *rounds]
    found.append(Stage("grpo", grpo.main, [*free, "--out-dir", str(out / "without-kl")]))
    found += _over_optimised(config, [*short, *cut], rounds)
    runs = [str(out / f"{name}-{seed}") for name in ("dpo", "grpo", "ppo") for seed in config.seeds]
    compared = ["--base", config.path, "--reward", judge, "--gold", config.gold]
    compared += ["--rankings", rankings, "--unpenalised", str(out / "without-kl")]
    compared += ["--over-optimised", str(out / "over-optimised")]
    seeds = ["--seeds", *map(str, config.seeds), *(["--prompts", "8", "--best-of", "2"] if few else [])]
    report_argv = [fine_tuned, *compared, *short, *cut, *seeds, "--out-dir", str(out / "report"), "--runs", *runs]
    found.append(Stage("align-report", report.main, report_argv))
    return found


def _data_flags(config: ChatgptConfig) -> list[str]:
    data = dataclasses.asdict(config.data)
    given = {name: value for name, value in data.items() if value is not None and value != _DATA[name]}
    return [text for name, value in given.items() for text in (f"--data.{name.replace('_', '-')}", str(value))]


_DATA = dataclasses.asdict(ChatDataConfig())


def _over_optimised(config: ChatgptConfig, short: Sequence[str], rounds: Sequence[str]) -> list[Stage]:
    """How a reward goes on rising while the measure falls: a small judge of verse, and nothing that holds back.

    Lines of ten syllables are longer than most, so a judge of one block, which adds up what it thinks of each token,
    learns that long is good, and not where to stop.
    """
    out, few, gold = config.out_dir, config.smoke, ["--gold", "verse"]
    fine_tuned, rankings, judge = str(out / "sft"), str(out / "verse.sqlite"), str(out / "reward-verse")
    size = ["--prompts", "24", "--candidates", "4"] if few else ["--prompts", "600", "--candidates", "8"]
    free = [*gold, *short, *FREE, *rounds]
    return [
        Stage(RANK, simulate.main, [fine_tuned, "--rankings", rankings, *gold, *short, *size]),
        Stage("reward", reward.main,
              [fine_tuned, "--rankings", rankings, *gold, "--out-dir", judge, *SMALL_REWARD]),
        Stage("grpo", grpo.main, [fine_tuned, "--reward", judge, *free, "--out-dir", str(out / "over-optimised")]),
    ]  # fmt: skip


SIMULATED_DATA = ["--prompts", "5000", "--candidates", "36", "--temperature", "0.7"]
REWARD = ["--epochs", "1", "--batch-size", "4", "--optim.lr", "1e-3", "--optim.weight-decay", "1"]
DPO = ["--epochs", "1", "--optim.lr", "2e-4", "--beta", "0.2"]
GRPO = ["--kl-coef", "0.1", "--optim.lr", "4e-4", "--steps", "20", "--stop-kl", "7.5"]
PPO = ["--kl-coef", "0.15", "--optim.lr", "3e-4", "--steps", "20", "--stop-kl", "8.5"]
FREE = ["--kl-coef", "0", "--optim.lr", "1e-3", "--steps", "24", "--no-end", "0"]
SMALL_REWARD = ["--n-layer", "1", "--epochs", "2", "--batch-size", "8", "--optim.lr", "1e-3"]
