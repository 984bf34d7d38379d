"""`groundling align-report`: what each stage was good for, on prompts that no stage has seen.

Every way to reply is drawn anew for the held-out prompts with several seeds, and judged by the gold measure beside
the fine-tuned model's replies. Best-of-n is the baseline: n replies of that model, of which the reward model picks one.
"""

import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import tyro

from groundling.align.chat_vocab import reads_the_same, require_chat, with_chat
from groundling.align.data import ChatDataConfig, fit_prompt, prompt_room, read_asked
from groundling.align.logprobs import Policy, exchanges_of
from groundling.align.preferences.measures import measure_by_name
from groundling.align.preferences.simulated_rater import SAME
from groundling.align.preferences.store import Rankings
from groundling.align.replies import Reply, ReplySampler
from groundling.align.report import page
from groundling.align.report.evaluate import Verdict, best_of_kl, best_of_n, evaluate_replies
from groundling.align.reward.model import load_reward_model, scores_of
from groundling.align.rl.rollout import scored_by
from groundling.align.rl.rounds import nats_a_reply
from groundling.bundle import Bundle, load_bundle
from groundling.bundle.context import contexts
from groundling.config import parse
from groundling.data.examples.encoding import least_ids
from groundling.errors import CheckpointError, ConfigError, require
from groundling.sample.engine import DecodeConfig, deterministic_decode
from groundling.storage import atomic
from groundling.system.hardware import environment
from groundling.system.metrics import read_records
from groundling.system.progress import Progress
from groundling.text.chat.reading import messages_in

log = logging.getLogger(__name__)

ELSEWHERE = 1_000_003
"""Added to a seed for the replies that all others are compared with, so that nothing is compared with itself."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Compare stages on held-out prompts: groundling align-report SFT --reward MODEL --runs DIR ... [--field value]."""

    path: tyro.conf.Positional[str]
    """The fine-tuned model: what all are compared with."""
    base: str | None = None
    """The model before fine-tuning."""
    reward: str = "runs/reward"
    """The reward model."""
    runs: tuple[Path, ...] = ()
    """Folders of ppo, dpo and grpo; those of one kind are the seeds of one row."""
    unpenalised: Path | None = None
    """The folder of a run at kl_coef 0 with --gold: shown apart, as what goes wrong."""
    over_optimised: tuple[Path, ...] = ()
    """Folders of more such runs, with any measure: only their course is shown."""
    rankings: Path | None = None
    """What the rater said: shown beside the measure."""
    gold_noise: float = 0.2
    """How noisy the rater was, if it was a simulated one."""
    out_dir: Path = Path("runs/report")
    """Where the report goes: index.html, report.json, table.md and pictures."""
    gold: str = "warm"
    """The measure that judges (warm or verse)."""
    prompts: int = 200
    """Held-out prompts."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of the replies; the n-th run of a kind gets the n-th."""
    best_of: tuple[int, ...] = (4, 16)
    """Of how many replies the reward model picks one."""
    max_new_tokens: int = 128
    """After which a reply is cut."""
    context: int | None = None
    """Tokens of context that each model uses; None: all that it has."""
    data: ChatDataConfig = field(default_factory=ChatDataConfig)

    def __post_init__(self) -> None:
        for name in ("prompts", "max_new_tokens"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(
            len(set(self.seeds)) == len(self.seeds) > 0, f"seeds are {self.seeds}; give at least one, and none twice"
        )
        require(all(n >= 2 for n in self.best_of), f"best_of is {self.best_of}; the best of one is that one")
        measure_by_name(self.gold)


@dataclass(frozen=True)
class Row:
    """A way to reply."""

    name: str
    verdict: Verdict
    seconds: float | None
    """Of training it, the mean over its seeds."""
    replies: list[Reply]
    """Of the first seed."""
    gold_KL: list[list[tuple[float, float]]] = field(default_factory=list)
    """Of each run, the way it took: nats and the measure, round by round."""


def main(argv: Sequence[str]) -> int:
    """The verb `align-report`."""
    return align_report(parse(ReportConfig, argv, "groundling align-report"))


def align_report(config: ReportConfig) -> int:
    """Write the report; return the exit code.

    Raises:
        GroundlingError: one of its kinds, in one line.
    """
    started = time.perf_counter()
    atomic.make_folder(config.out_dir)
    runs = [(folder, _summary(folder)) for folder in config.runs]
    unheld = [folder for folder in (config.unpenalised, *config.over_optimised) if folder is not None]
    over_optimisation = [course_of(folder) for folder in unheld]
    hacked = None if config.unpenalised is None else (config.unpenalised, _summary(config.unpenalised))
    evaluator = _ReplyEvaluator(config)
    rows = [evaluator.base(config.base)] if config.base is not None else []
    rows += evaluator.fine_tuned(_seconds(Path(config.path)))
    for name in dict.fromkeys(str(summary["stage"]) for _, summary in runs):
        rows.append(evaluator.runs(name.upper(), [run for run in runs if run[1]["stage"] == name]))
    failed = None if hacked is None else evaluator.runs(f"{str(hacked[1]['stage']).upper()} without KL", [hacked])
    for row in [*rows, *([failed] if failed else [])]:
        log.info(page.line(row.name, row.verdict, row.seconds))
    figures = {
        "gold": config.gold,
        "prompts": len(evaluator.prompts),
        "seeds": list(config.seeds),
        "environment": environment(),
        "rows": [{"name": r.name, **asdict(r.verdict), "seconds": r.seconds, "way": r.gold_KL} for r in rows],
        "best_of": evaluator.best_curve,
        "without_kl": None if failed is None else {"name": failed.name, **asdict(failed.verdict)},
        "over_optimisation": over_optimisation,
        "calibration": _calibration(Path(config.reward)),
        "rater": None if config.rankings is None else what_was_preferred(config),
        "courses": _courses([Path(config.path), *config.runs]),
        "replies": [
            {
                "prompt": evaluator.text(prompt),
                **{r.name: r.replies[i].text for r in [*rows, *([failed] if failed else [])]},
            }
            for i, prompt in enumerate(evaluator.prompts[:12])
        ],
        "wall_s": round(time.perf_counter() - started, 1),
    }
    atomic.write_json(config.out_dir / "report.json", figures)
    page.write(config.out_dir, figures)
    log.info(f"the report: {config.out_dir / 'index.html'}")
    return 0


class _ReplyEvaluator:
    """Draws replies to the held-out prompts, and judges them."""

    def __init__(self, config: ReportConfig) -> None:
        self.config, self.measure = config, measure_by_name(config.gold)
        self.sft = require_chat(load_bundle(config.path, context=config.context), config.path)
        self.reward_model, theirs = load_reward_model(config.reward)
        require_same_ids(theirs, self.sft, config.reward)
        chat, block_size = self.sft.chat, self.sft.config.block_size
        assert chat is not None
        room = prompt_room(block_size, config.max_new_tokens, least_ids(chat, self.sft.tokenizer))
        asked = fit_prompt(read_asked(config.data).val, chat, self.sft.tokenizer, room)
        self.prompts = [list(ids) for ids in asked][: config.prompts]
        self.reference = self._policy(self.sft)
        self.theirs = [[r for (r,) in self._draw(self.sft, seed + ELSEWHERE, 1)] for seed in config.seeds]
        self.best_curve: list[dict[str, float]] = []

    def _context(self, path: Path | str) -> int | None:
        """What another model than the fine-tuned one uses: it may have less."""
        return contexts([self.config.path, path], self.config.context)[1]

    def text(self, ids: Sequence[int]) -> str:
        """A prompt for people: what was said, turn by turn."""
        assert self.sft.chat is not None
        messages = messages_in(ids, self.sft.chat, self.sft.tokenizer)
        return " / ".join(message.content for message in messages if message.content)

    def base(self, path: str) -> Row:
        """The model before fine-tuning. It has never seen a turn, so nats between it and the reference mean nothing."""
        bundle = with_chat(load_bundle(path, context=self._context(path)))
        require_same_ids(bundle, self.sft, path)
        replies = [[r for (r,) in self._draw(bundle, seed, 1)] for seed in self.config.seeds]
        return self._row("base", replies, None, None)

    def fine_tuned(self, seconds: float | None) -> list[Row]:
        """The fine-tuned model, and the best of several of its replies."""
        most = max(self.config.best_of, default=1)
        groups_S = [self._draw(self.sft, seed, most) for seed in self.config.seeds]
        rewards_S = []
        for groups in groups_S:
            values = iter(self._rewards([reply for group in groups for reply in group]))
            rewards_S.append([[next(values) for _ in group] for group in groups])
        rows = [self._row("SFT", [[group[0] for group in groups] for groups in groups_S], 0.0, seconds)]
        for n in sorted({*_powers_of_two(most), *self.config.best_of}):
            picked = [
                [group[place] for group, place in zip(groups, best_of_n(n, groups, rewards), strict=True)]
                for groups, rewards in zip(groups_S, rewards_S, strict=True)
            ]
            row = self._row(f"best of {n}", picked, best_of_kl(n), None)
            self.best_curve.append({"n": n, "kl": best_of_kl(n), "gold": row.verdict.gold, "proxy": row.verdict.proxy})
            if n in self.config.best_of:
                rows.append(row)
        return rows

    def runs(self, name: str, runs: Sequence[tuple[Path, dict[str, Any]]]) -> Row:
        """Trained policies: one for each seed, or one for all."""
        if len(runs) not in (1, len(self.config.seeds)):
            raise ConfigError(
                f"{name} has {len(runs)} runs, and seeds are {len(self.config.seeds)}; give one run, or one for each"
            )
        replies, nats = [], []
        for number, seed in enumerate(self.config.seeds):
            folder = runs[number % len(runs)][0]
            bundle = require_chat(load_bundle(folder, context=self._context(folder)), str(folder))
            require_same_ids(bundle, self.sft, str(folder))
            drawn = [r for (r,) in self._draw(bundle, seed, 1)]
            replies.append(drawn)
            nats.append(self._kl(bundle, drawn))
        seconds = math.fsum(float(summary["wall_s"]) for _, summary in runs) / len(runs)
        ways = [[(r["kl"], r["gold"]) for r in _rounds(folder) if "gold" in r] for folder, _ in runs]
        return self._row(name, replies, math.fsum(nats) / len(nats), seconds, [way for way in ways if way])

    def _row(
        self,
        name: str,
        replies: list[list[Reply]],
        kl: float | None,
        seconds: float | None,
        ways: list[list[tuple[float, float]]] | None = None,
    ) -> Row:
        with Progress(f"judging {name}"):
            proxy = [self._rewards(each) for each in replies]
            verdict = evaluate_replies(replies, self.theirs, self.measure, proxy, kl)
        return Row(name, verdict, seconds, replies[0], ways or [])

    def _draw(self, bundle: Bundle, seed: int, each: int) -> list[list[Reply]]:
        assert bundle.chat is not None
        sampler = ReplySampler(
            bundle.model,
            bundle.chat,
            bundle.tokenizer,
            max_new_tokens=self.config.max_new_tokens,
            decode=deterministic_decode(bundle.model, DecodeConfig(weights="bfloat16")),
        )
        with Progress("drawing replies", len(self.prompts)) as progress:
            groups = []
            for _, group in sampler.stream(enumerate(self.prompts), seed, each):
                groups.append(group)
                progress.advance(1)
            return groups

    def _rewards(self, replies: Sequence[Reply]) -> list[float]:
        return scores_of(self.reward_model, exchanges_of(replies), nullcontext)

    def _kl(self, bundle: Bundle, replies: Sequence[Reply]) -> float:
        block_size = self.sft.config.block_size
        new = scored_by(self._policy(bundle), replies, block_size, 16)
        old = scored_by(self.reference, replies, block_size, 16)
        return nats_a_reply(new, old)

    @staticmethod
    def _policy(bundle: Bundle) -> Policy:
        assert bundle.chat is not None
        return Policy(bundle.model, bundle.n_ids, nullcontext)


def require_same_ids(bundle: Bundle, other: Bundle, name: str) -> None:
    """Check that two bundles mean the same by an id, and that one's context is not shorter.

    Raises:
        ConfigError: they do not.
    """
    if not reads_the_same(bundle, other):
        raise ConfigError(f"{name} has another tokenizer, chat template or context than the fine-tuned model; compare "
                          "models of one family")  # fmt: skip


def _powers_of_two(most: int) -> list[int]:
    return [2**k for k in range(1, most.bit_length()) if 2**k <= most]


def _summary(folder: Path) -> dict[str, Any]:
    file = folder / "summary.json"
    try:
        summary = atomic.read_json(file)
        if isinstance(summary, dict) and {"stage", "wall_s"} <= summary.keys():
            return summary
    except (OSError, ValueError):
        pass
    raise CheckpointError(f"{folder} is no finished run of a stage (no readable {file}); run the stage first")


def _seconds(folder: Path) -> float | None:
    try:
        return float(_summary(folder)["wall_s"])
    except CheckpointError:
        return None  # a bundle of its own says nothing of its training


def _rounds(folder: Path) -> list[dict[str, Any]]:
    return [record for record in read_records(folder / "metrics.jsonl") if "kl" in record]


def _courses(folders: Sequence[Path]) -> dict[str, list[list[dict[str, Any]]]]:
    """What each stage wrote down as it learned: stage -> runs -> records."""
    courses: dict[str, list[list[dict[str, Any]]]] = {}
    for folder in folders:
        if records := read_records(folder / "metrics.jsonl"):
            courses.setdefault(str(_summary(folder)["stage"]), []).append(records)
    return courses


def course_of(folder: Path) -> dict[str, Any]:
    """A run of rounds: its measure, and what each round was like.

    Raises:
        CheckpointError: there is none.
    """
    try:
        gold = _summary(folder)["config"]["gold"]
    except KeyError as error:
        raise CheckpointError(f"{folder} does not say which measure it was run with ({error})") from error
    return {"gold": gold, "rounds": _rounds(folder)}


def what_was_preferred(config: ReportConfig, most: int = 300, n_bins: int = 12) -> dict[str, Any]:
    """The measure of some ranked replies, and of two of them how often the higher one was preferred, by their gap."""
    assert config.rankings is not None
    measure = lru_cache(maxsize=None)(measure_by_name(config.gold))
    with Rankings(config.rankings, must_exist=True) as rankings:
        judgements = list(islice(rankings, most))
    golds = [measure(candidate.text) for judgement in judgements for candidate in judgement.candidates]
    gaps = [
        measure(comparison.better.text) - measure(comparison.worse.text)
        for judgement in judgements
        for comparison in judgement.comparisons()
        if not comparison.tie
    ]
    widest = max(map(abs, gaps), default=0.0)
    bins: list[list[float]] = [[] for _ in range(n_bins)]
    for gap in gaps:
        if abs(gap) > SAME:
            bins[min(int(abs(gap) / widest * n_bins), n_bins - 1)].append(gap)
    preferred = [
        {"gap": sum(map(abs, each)) / len(each), "share": sum(gap > 0 for gap in each) / len(each), "pairs": len(each)}
        for each in bins
        if each
    ]
    raters = {judgement.rater for judgement in judgements}
    simulated = bool(raters) and all(rater.startswith("simulated-") for rater in raters)
    return {"golds": golds, "preferred": preferred, "noise": config.gold_noise if simulated else None}


def _calibration(folder: Path) -> dict[str, Any] | None:
    try:
        summary = _summary(folder)
    except CheckpointError:
        return None
    keys = ("accuracy", "accuracy_low", "accuracy_high", "ceiling", "of_the_margin", "pairs", "calibration", "wall_s")
    return {key: summary[key] for key in keys if key in summary}
