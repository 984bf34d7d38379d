"""`groundling pretrain`: train a GPT on a text. `pretrain` reads from top to bottom; the helpers are below it."""

import dataclasses
import hashlib
import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from groundling.bundle import Bundle, load_bundle, save_bundle
from groundling.bundle.adapter import base_at
from groundling.bundle.layout import CHECKPOINTS, find_bundle
from groundling.config import to_dict
from groundling.data.batches import Batches
from groundling.data.corpus import Corpus, prepare
from groundling.errors import CheckpointError, ConfigError, TrainingError
from groundling.model.gpt import GPT
from groundling.sample.generate import generate
from groundling.sample.sampler import SamplingConfig
from groundling.system import distributed, hardware
from groundling.system.hardware import Peak
from groundling.system.metrics import optional_sinks, require_packages
from groundling.system.runtime import Runtime
from groundling.system.signals import ASKED_TO_STOP
from groundling.text.tokenizer import Tokenizer, require_unicode
from groundling.train import resuming
from groundling.train.arguments import parse_arguments
from groundling.train.callbacks import (
    Evaluate,
    Every,
    Record,
    Sample,
    Save,
    StopEarly,
    StopOnSignal,
    Throughput,
    final_figures,
)
from groundling.train.checkpoints.checkpoint import Checkpoints, RunFacts, read_state, restore
from groundling.train.compiled import compile_objective
from groundling.train.distill.objective import make_objective
from groundling.train.distill.table import TableTeacher, learn, require_teachable
from groundling.train.estimate import describe_seconds, estimate, require_buildable, require_memory, total_flops
from groundling.train.initial import read_initial, take_weights
from groundling.train.loop import FINISHED, train
from groundling.train.optim.ema import WeightAverage
from groundling.train.optim.optimizers import Optimizers
from groundling.train.run import Run, open_run
from groundling.train.run_folder import RunSummary
from groundling.train.settings import PretrainConfig
from groundling.train.state import TrainState

log = logging.getLogger(__name__)

WORTH_COMPILING_FLOPS = 2e13
"""A run of less work than this takes about a minute on two cores, and compiling takes half of that."""


def main(argv: Sequence[str]) -> int:
    """The verb `pretrain`: returns 0, or 128 + the signal's number if a signal stopped it."""
    return pretrain(parse_arguments(argv)).exit_code


def pretrain(config: PretrainConfig) -> RunSummary:
    """Train as the config says, alone or as one of torchrun's ranks.

    Raises:
        GroundlingError: any subclass; earlier checkpoints are intact.
    """
    with open_run(config, "pretrain") as run:
        run.show_progress(config.steps)
        checkpoint = run.find_checkpoint()
        record = None if checkpoint is None else read_state(checkpoint)

        # Config and corpus
        initial = _read_initial(run, checkpoint)
        config, chat = run.config, None if initial is None else initial.chat
        with distributed.first_rank_first():  # it writes the token files
            corpus = prepare(config.data, config.model.block_size, None if initial is None else initial.tokenizer)
        teachers = _find_teachers(config, corpus)
        _require_workable(config, corpus)

        # Model
        model = _build_model(config, corpus, initial)
        picked = _pick_runtime(run, model, record)
        model = model.to(picked.device, picked.weight_dtype)
        facts = _facts(run, model, corpus, teachers, record)
        _log_estimate(config, model, picked, corpus)
        peak = hardware.measure_matmul_peak(picked.device, picked.compute_dtype) * distributed.world_size()

        # Teacher, objective, optimizers
        teacher = _learn_teacher(config, corpus, teachers, picked)
        batches = _batches(config, corpus, teacher)
        objective, fade = make_objective(model, config.teacher, config.schedule, config.steps, picked.autocast)
        compile_objective(objective, picked)
        optimizers = Optimizers(model, config.optim, picked.compute_dtype)
        average = None if config.average_decay is None else WeightAverage(model, config.average_decay)
        torch.manual_seed(config.seed + distributed.rank())  # for dropout, which differs between ranks

        # State: new, or as the checkpoint has it
        state = TrainState(model, distributed.wrap(objective), optimizers, batches, average)
        if checkpoint is not None:
            restore(checkpoint, state)
            run.continue_from(facts.run_id, state.progress.wall_s)
        checkpoints = Checkpoints(run.folder / CHECKPOINTS, config.keep_checkpoints)

        def save(state: TrainState) -> None:
            state.progress.wall_s = run.wall_s()
            checkpoints.save(state, model.config, corpus.tokenizer, facts, chat)

        # Train
        metrics = run.begin(
            state.progress.step,
            extra_sinks=lambda: optional_sinks(config.sinks, run.folder, facts.config, facts.run_id),
        )
        every, throughput = partial(Every, n_steps=config.steps), Throughput(model.flops_per_token(), Peak(peak))
        train_tokens = corpus.train.ids if config.estimate_train_loss else None
        callbacks = [
            *fade,
            StopOnSignal(run),
            Evaluate(every(config.eval_every), metrics, corpus.val.ids, train_tokens, picked, run.stop),
            Save(every(config.save_every), save),
            Sample(every(config.sample_every), metrics, lambda: _sample(config, model, corpus.tokenizer)),
            StopEarly(config.patience),
            Record(every(config.log_every), metrics, throughput, picked.device, state),
        ]
        with _advice_on_failure(config, state):
            reason = train(
                state, n_steps=config.steps, schedule=config.schedule, max_norm=config.grad_clip, callbacks=callbacks
            )

        # Bundle and summary
        if distributed.is_first() and reason != ASKED_TO_STOP:
            _save_bundle(run, state, checkpoints, Bundle(model.config, model, corpus.tokenizer, chat))
        summary = run.finish(reason, final_figures(state, throughput, picked.device))
        log.info(_last_line(summary, run.folder))
        return summary


def _read_initial(run: Run[PretrainConfig], checkpoint: Path | None) -> Bundle | None:
    """The bundle of `init_from`; for a resumed run its checkpoint. The run's config takes the bundle's model."""
    if run.config.init_from is None:
        return None
    source = run.config.init_from if checkpoint is None else str(checkpoint)
    run.config, bundle = read_initial(run.config, source)
    if checkpoint is None:
        size = f"{bundle.model.n_parameters():,} parameters"
        log.info(f"init_from   {source}: {size}, the {bundle.tokenizer.kind} tokenizer")
    return bundle


def _find_teachers(config: PretrainConfig, corpus: Corpus) -> list[Path]:
    how = config.teacher
    if how.recipes and not how.models:
        raise ConfigError(
            f"teacher.recipes ({', '.join(how.recipes)}): these models must be trained first; "
            "`groundling speedrun` with this preset trains them, or name trained ones with --teacher.models"
        )
    if how.weight:
        require_teachable(len(corpus.train), corpus.tokenizer, how.models)
    return [find_bundle(path) for path in how.models]


def _require_workable(config: PretrainConfig, corpus: Corpus) -> None:
    """Check in advance what would otherwise fail after an earlier run was removed, or after hours of training."""
    _batches(config, corpus, teacher=None)
    if distributed.is_first():
        require_packages(config.sinks)
    if config.sample_every is not None:
        require_unicode(config.sample_prompt)
        corpus.tokenizer.encode(config.sample_prompt)


def _build_model(config: PretrainConfig, corpus: Corpus, initial: Bundle | None) -> GPT:
    torch.manual_seed(config.seed)
    vocab_size = corpus.tokenizer.vocab_size if initial is None else config.model.vocab_size
    model_config = dataclasses.replace(config.model, vocab_size=vocab_size)
    require_buildable(model_config)
    model = GPT(model_config)
    if initial is not None:
        take_weights(model, initial)
    elif config.zero_init:
        model.start_as_identity()
    return model


def _pick_runtime(run: Run[PretrainConfig], model: GPT, record: dict[str, Any] | None) -> Runtime:
    """Whether to compile depends on the work of the whole run; a resumed run keeps its earlier choice."""
    if record is not None:
        worth_compiling = bool(record["compiled"])
    else:
        worth_compiling = total_flops(model, run.config.steps, run.config.batch_size) > WORTH_COMPILING_FLOPS
    picked = run.pick_runtime(worth_compiling=worth_compiling)
    for line in picked.lines():
        log.info(line)
    return picked


def _facts(
    run: Run[PretrainConfig], model: GPT, corpus: Corpus, teachers: Sequence[Path], record: dict[str, Any] | None
) -> RunFacts:
    """Facts that identify the run. For a resumed run, checks that the config matches the checkpoint's."""
    fingerprint = corpus.fingerprint
    if teachers:
        weights = [base_at(teacher).sha256 for teacher in teachers]
        fingerprint = hashlib.sha256(" ".join([fingerprint, *weights]).encode()).hexdigest()
    plain, run_id = to_dict(dataclasses.replace(run.config, model=model.config)), run.run_id
    if record is not None:
        run_id = record["run_id"]
        if changed := resuming.require_same_run(run.config, plain, record, fingerprint):
            log.info(f"changed     {'; '.join(changed)}")
    return RunFacts(run_id=run_id, config=plain, data_fingerprint=fingerprint, compiled=run.picked.compile)


def _log_estimate(config: PretrainConfig, model: GPT, picked: Runtime, corpus: Corpus) -> None:
    share = config.batch_size // distributed.world_size()
    micro_batch_size = min(config.micro_batch_size or share, share)
    require_memory(model, picked, micro_batch_size)
    cost = estimate(
        model,
        picked,
        n_steps=config.steps,
        batch_size=config.batch_size,
        micro_batch_size=micro_batch_size,
        n_train_tokens=len(corpus.train),
    )
    for line in cost.lines():
        log.info(line)


def _learn_teacher(
    config: PretrainConfig, corpus: Corpus, teachers: Sequence[Path], picked: Runtime
) -> TableTeacher | None:
    if not config.teacher.weight:
        return None
    if teachers:
        log.info(f"teacher     the mean of {', '.join(config.teacher.models)}")
    return learn(corpus.train.ids, corpus.tokenizer, config.teacher, teachers, picked.device, picked.autocast)


def _batches(config: PretrainConfig, corpus: Corpus, teacher: TableTeacher | None) -> Batches:
    return Batches(
        corpus.train.ids,
        block_size=config.model.block_size,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
        order=config.order,
        seed=config.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        teacher=teacher,
    )


def _sample(config: PretrainConfig, model: GPT, tokenizer: Tokenizer) -> str:
    how = SamplingConfig(max_new_tokens=config.sample_tokens, seed=config.seed)
    return config.sample_prompt + generate(Bundle(model.config, model, tokenizer), config.sample_prompt, how)


@contextmanager
def _advice_on_failure(config: PretrainConfig, state: TrainState) -> Iterator[None]:
    try:
        yield
    except TrainingError as error:
        raise TrainingError(
            f"stopped at step {state.progress.step + 1}: {error}; the checkpoints are as they were; "
            f"try lower learning rates, for example: {resuming.retry_command(config)}"
        ) from error


def _save_bundle(run: Run[PretrainConfig], state: TrainState, checkpoints: Checkpoints, current: Bundle) -> None:
    """Write the bundle of the best checkpoint to the run folder; without checkpoints, the model as it is now."""
    folder, about = run.folder / "bundle", {"run_id": run.run_id}
    for best in checkpoints.by_loss(run.run_id):
        try:
            bundle = load_bundle(best, dtype=run.picked.weight_dtype)
        except CheckpointError as error:
            log.warning(f"skipped: {error}")
            continue
        save_bundle(folder, bundle.model, bundle.tokenizer, {**about, "checkpoint": best.name}, bundle.chat)
        return
    with state.eval_mode():
        save_bundle(folder, current.model, current.tokenizer, about, current.chat)


def _last_line(summary: RunSummary, run: Path) -> str:
    figures, trained = summary.figures, describe_seconds(summary.figures["train_s"])
    done = f"{figures['steps']:,} steps, {figures['tokens']:,} tokens in {trained} of training"
    if summary.exit_code:
        command = f"groundling pretrain --resume if-present --out-dir {shlex.quote(str(run))}"
        return f"stopped as asked after {done}; resume with: {command}"
    best = figures["best_val_loss"]
    loss = "" if best is None else f"; best validation loss {best:.4f}"
    why = "" if summary.reason == FINISHED else f" ({summary.reason})"
    return f"done{why}: {done}{loss}; sample from it: groundling sample {shlex.quote(str(run))}"
