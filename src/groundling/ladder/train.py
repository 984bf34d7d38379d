"""`groundling ladder`: train the rungs in the lecture's settings, and compare the losses with its own.

Data, training loop, loss and sampler are the production ones; only the models belong to the rungs. A small rung uses
one core, so small rungs are trained in parallel processes.
"""

import functools
import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from groundling.config import parse
from groundling.data.corpus import Corpus, DataConfig, prepare
from groundling.errors import require
from groundling.evals.loss import TRAIN_ESTIMATE, random_batches_loss
from groundling.ladder.fused import fuse_heads
from groundling.ladder.rungs import RUNGS, Rung, find_rung
from groundling.ladder.runs.begin import SMALL
from groundling.ladder.runs.long_run import LongRun, RungStoppedError, train_recorded
from groundling.ladder.runs.results import NOTE, RungResult, table
from groundling.ladder.runs.short_run import Trained, train_unrecorded
from groundling.sample.generate import generate_ids
from groundling.sample.request import row_generator
from groundling.sample.sampler import SamplingConfig
from groundling.storage import atomic
from groundling.system.console import busy, print_table
from groundling.system.processes import n_cores, side_by_side
from groundling.text.tokenizer import Tokenizer
from groundling.train import run_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """Train the lecture's rungs with its settings and compare the losses; `groundling ladder show s6` prints one."""

    rungs: str = ",".join(SMALL)
    """Rungs to train, separated by commas."""
    steps: int | None = None
    """Steps of each rung; None: as in the lecture, 3,000 for s1 and 5,000 for the others."""
    seed: int = 1337
    """Seed of the initial weights and the batches."""
    scaled: bool = False
    """Add s8, the scaled-up model; takes hours on a laptop."""
    at_once: int | None = None
    """Number of small rungs trained in parallel; None: one per core."""
    out_dir: Path = Path("runs/ladder")
    """Folder for ladder.json and ladder.png; s8 and s9 get a run folder each, saved every two minutes."""
    resume: bool = False
    """Resume s8 or s9 in out_dir; the small rungs start again."""
    overwrite: bool = False
    """Remove an existing s8 or s9 in out_dir."""

    def __post_init__(self) -> None:
        require(self.steps is None or self.steps >= 1, f"steps is {self.steps}; it must be at least 1, or None")
        at_once = self.at_once
        require(at_once is None or at_once >= 1, f"at_once is {at_once}; it must be at least 1, or None")
        require(not (self.resume and self.overwrite), "resume continues a run and overwrite removes it; choose one")
        require(bool(self.names()), "rungs is empty; name some, for example s3,s4")
        for name in self.names():
            find_rung(name)

    def names(self) -> list[str]:
        """Return the selected rungs without duplicates, in the ladder's order."""
        asked = {name.strip() for name in self.rungs.split(",") if name.strip()} | ({"s8"} if self.scaled else set())
        return [name for name in RUNGS if name in asked] + sorted(asked - RUNGS.keys())


@contextmanager
def _restore_threads() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@_restore_threads()
def train_rung(
    name: str, *, steps: int | None = None, seed: int = 1337, corpus: Corpus | None = None, run: LongRun | None = None
) -> RungResult:
    """Train one rung as the lecture does: AdamW at a constant learning rate, on batches from random positions.

    Args:
        name: s1 to s9.
        steps: number of steps; None: the lecture's.
        seed: seed of the initial weights and the batches.
        corpus: the text; None: Tiny Shakespeare by characters.
        run: run folder of s8 or s9; None: train in memory. Ignored for small rungs.

    Raises:
        ConfigError: no rung has this name, or `run` holds one and neither resumes nor overwrites it.
        CheckpointError: `run` has nothing to resume.
        RungStoppedError: a signal stopped a rung with a `run`.
    """
    rung = find_rung(name)
    corpus = corpus or prepare(DataConfig(), block_size=8)
    n_steps = rung.steps if steps is None else steps
    if run is None or name in SMALL:
        return _result(rung, train_unrecorded(rung, corpus, n_steps, seed), corpus, seed)
    trained = train_recorded(run, rung, corpus, n_steps=n_steps, seed=seed)
    with busy(f"{name}: the loss on random batches, and a sample ..."):
        return _result(rung, trained, corpus, seed)


def _result(rung: Rung, trained: Trained, corpus: Corpus, seed: int) -> RungResult:
    model = trained.state.model
    block_size = int(model.block_size)  # type: ignore[arg-type]
    sizes = {"n_batches": 200 if rung.name in SMALL else 20, "batch_size": rung.batch_size}
    return RungResult(
        rung=rung.name,
        adds=rung.adds,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        val_loss=trained.val_losses[-1][1],
        val_loss_random_batches=random_batches_loss(model, corpus.val.ids, block_size, **sizes),
        train_loss_random_batches=random_batches_loss(
            model, corpus.train.ids, block_size, **sizes, purpose=TRAIN_ESTIMATE
        ),
        lecture_val_loss=rung.lecture_val_loss,
        seconds=round(trained.seconds, 2),
        sample=sample_of(model, corpus.tokenizer, seed),
        losses=trained.losses,
        val_losses=trained.val_losses,
        model=model,
    )


def sample_of(model: nn.Module, tokenizer: Tokenizer, seed: int, n_tokens: int = 120) -> str:
    """Sample from a newline on at temperature 1, as in the lecture."""
    how = SamplingConfig(max_new_tokens=n_tokens, temperature=1.0, seed=seed)
    return tokenizer.decode(generate_ids(model, tokenizer.encode("\n"), how, row_generator(seed, 0)))


@dataclass(frozen=True)
class _Packed:
    """A picklable `RungResult`: plain values and NumPy arrays."""

    values: dict[str, Any]
    weights: dict[str, npt.NDArray[Any]]

    def unpack(self, vocab_size: int) -> RungResult:
        """Rebuild the result with its model."""
        with torch.random.fork_rng(devices=[]):  # initial weights are overwritten; leave the generator alone
            model = fuse_heads(find_rung(self.values["rung"]).build(vocab_size))
        model.load_state_dict({name: torch.from_numpy(weight) for name, weight in self.weights.items()})
        return RungResult(**self.values, model=model)


def _train_packed(name: str, *, steps: int | None, seed: int, data: DataConfig) -> _Packed:
    result = train_rung(name, steps=steps, seed=seed, corpus=prepare(data, block_size=8))  # cached
    values = {part.name: getattr(result, part.name) for part in fields(result) if part.name != "model"}
    return _Packed(values, {name: weight.numpy() for name, weight in result.model.state_dict().items()})


def train_rungs(
    names: Sequence[str],
    *,
    steps: int | None = None,
    seed: int = 1337,
    data: DataConfig | None = None,
    at_once: int | None = None,
    runs: Callable[[str], LongRun] | None = None,
) -> Generator[RungResult, None, None]:
    """Train rungs, the small ones in parallel; yield each result when it is done.

    Results equal those of `train_rung` bit for bit. Workers import the calling script, which therefore needs
    `if __name__ == "__main__":`.

    Args:
        names: rungs, in any order.
        steps: number of steps; None: the lecture's.
        seed: seed of the initial weights and the batches.
        data: the text; None: Tiny Shakespeare by characters.
        at_once: number of small rungs in parallel; None: one per core; 1: no worker processes.
        runs: maps s8 or s9 to its run folder; None: train in memory.

    Raises:
        ConfigError: no rung has one of the names.
    """
    data = data or DataConfig()
    rungs = [find_rung(name) for name in names]
    corpus = prepare(data, block_size=8)
    # Longest first, to keep all cores busy: higher rungs take longer.
    small = sorted((rung.name for rung in rungs if rung.name in SMALL), reverse=True)
    n_workers = min(at_once or n_cores(), len(small))
    if n_workers > 1:
        log.info(f"{', '.join(small)}: {n_workers} at a time ...")
        work = functools.partial(_train_packed, steps=steps, seed=seed, data=data)
        with closing(side_by_side(work, small, n_workers)) as done:
            for packed in done:
                yield packed.unpack(corpus.tokenizer.vocab_size)
    for rung in rungs:
        if n_workers <= 1 or rung.name not in SMALL:
            log.info(f"{rung.name}: {rung.adds} ...")
            run = None if runs is None else runs(rung.name)
            yield train_rung(rung.name, steps=steps, seed=seed, corpus=corpus, run=run)


def main(argv: Sequence[str]) -> int:
    """Run `groundling ladder` or `groundling ladder show RUNG`."""
    if argv and argv[0] == "show":
        from groundling.ladder import show

        return show.main(list(argv[1:]))
    config = parse(LadderConfig, argv, "groundling ladder")
    try:
        climb(config)
    except RungStoppedError as stopped:
        log.info(str(stopped))
        return stopped.exit_code
    return 0


def climb(config: LadderConfig) -> list[RungResult]:
    """Train the rungs, print the table, and write ladder.json and ladder.png.

    Raises:
        MissingExtraError: matplotlib is not installed; ladder.json is written first.
        RungStoppedError: a signal stopped s8 or s9.
    """
    atomic.make_folder(config.out_dir)
    results: list[RungResult] = []
    start = time.perf_counter()
    names = config.names()

    begun = [name for name in names if name not in SMALL and run_folder.has_run(config.out_dir / name)]

    def run(name: str) -> LongRun:
        resume = config.resume and (name in begun or not begun)  # start s9 new if only s8 was stopped
        return LongRun(folder=config.out_dir / name, resume=resume, overwrite=config.overwrite)

    with closing(train_rungs(names, steps=config.steps, seed=config.seed, at_once=config.at_once, runs=run)) as trained:
        for new in trained:
            results = sorted([*results, new], key=lambda result: names.index(result.rung))
            atomic.write_json(config.out_dir / "ladder.json", {"rungs": [result.record() for result in results]})
            log.info(f"{new.rung}: validation loss {new.val_loss:.3f}, {new.seconds:.1f} s")
    log.info(f"trained in {time.perf_counter() - start:.0f} s")
    print_table(table(results))
    print("\n".join(f"{result.rung}  {' '.join(result.sample.split())[:72]}" for result in results))
    print(NOTE)
    from groundling.ladder.runs.chart import draw

    draw(results, config.out_dir / "ladder.png")
    print(f"wrote {config.out_dir / 'ladder.json'} and {config.out_dir / 'ladder.png'}")
    return results
