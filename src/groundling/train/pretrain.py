"""`groundling pretrain`: from a text to a run folder with checkpoints, records and a bundle that speaks."""

import dataclasses
import hashlib
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from groundling.bundle import Bundle, load_bundle, save_bundle
from groundling.bundle.adapter import base_at
from groundling.bundle.layout import find_bundle
from groundling.config import to_dict, to_toml
from groundling.data.batches import Batches
from groundling.data.corpus import Corpus, prepare
from groundling.errors import CheckpointError, ConfigError, TrainingError
from groundling.model.gpt import GPT
from groundling.sample.generate import generate
from groundling.sample.sampler import SamplingConfig
from groundling.storage import atomic
from groundling.system import distributed, hardware, runtime
from groundling.system.console import ConsoleSink
from groundling.system.hardware import Peak
from groundling.system.metrics import JsonlSink, Sink, optional_sinks, require_packages
from groundling.system.runtime import Runtime, make_deterministic
from groundling.system.signals import ASKED_TO_STOP, StopRequest, stop_on_signals
from groundling.text.tokenizer import require_unicode
from groundling.train import resuming, run_folder
from groundling.train.arguments import parse_arguments
from groundling.train.callbacks import Plan, RunWatcher
from groundling.train.checkpoints.checkpoint import Checkpoints, RunFacts, read_state, restore
from groundling.train.compiled import compile_objective
from groundling.train.distill.objective import DistillationObjective, FadeTeacher
from groundling.train.distill.table import TableTeacher, learn, require_teachable
from groundling.train.estimate import estimate, require_buildable, require_memory, total_flops
from groundling.train.initial import read_initial, take_weights
from groundling.train.loop import Watcher, Watchers, train
from groundling.train.optim.ema import WeightAverage
from groundling.train.optim.optimizers import Optimizers
from groundling.train.settings import PretrainConfig
from groundling.train.state import TrainState
from groundling.train.step import Objective
from groundling.train.summary import RunSummary, last_words

log = logging.getLogger(__name__)

WORTH_COMPILING_FLOPS = 2e13
"""A run of less work than this takes about a minute on two cores, and compiling takes half of that."""


def main(argv: Sequence[str]) -> int:
    """The verb `pretrain`: returns 0, or 128 + a signal's number when one asked it to stop."""
    return pretrain(parse_arguments(argv)).exit_code


def pretrain(config: PretrainConfig) -> RunSummary:
    """Train as the config says, alone or as one of torchrun's ranks.

    Raises:
        GroundlingError: one of its kinds, in one line; what was saved before is still there.
    """
    started = time.perf_counter()
    device = runtime.pick_device(config.runtime.device)
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        stack.enter_context(distributed.process_group(device, advice=resuming.AFTER_A_LOST_RANK))
        if distributed.is_first():
            stack.enter_context(run_folder.locked(config.out_dir))
        distributed.barrier()
        return _Run(config, stop, started, stack).run()


class _Run:
    """One run, from its config to its end. Its parts are made in the order in which they need each other."""

    def __init__(self, config: PretrainConfig, stop: StopRequest, started: float, stack: ExitStack) -> None:
        config = resuming.decided(config)
        self.config, self.stop, self.started, self.stack = config, stop, started, stack
        self.console = ConsoleSink(config.steps) if distributed.is_first() else None
        if self.console is not None:
            stack.callback(self.console.close)
        self._require_place()
        self.resume_from = self._find_checkpoint() if config.resume else None
        self.initial = self._find_initial()
        self.corpus = self._prepare_data()
        self.teachers = self._find_teachers()
        self._require_workable()
        self.model = self._build_model()
        self.model_config = self.model.config
        self.picked = self._pick_runtime()
        self.model = self.model.to(self.picked.device, self.picked.weight_dtype)
        self.facts = self._facts()
        self.checkpoints = Checkpoints(config.out_dir / "checkpoints", config.keep_checkpoints)
        self.wall_before = 0.0
        self.extra_watchers = list[Watcher]()

    def run(self) -> RunSummary:
        """Train, and write down what came of it."""
        config = self.config
        self._say_estimate()
        if not config.resume:  # what could be refused has been: only now is an earlier run removed
            if distributed.is_first():
                self.stack.enter_context(run_folder.new_run(config.out_dir, self.stop))
            distributed.barrier()
        measured = hardware.measure_matmul_peak(self.picked.device, self.picked.compute_dtype)
        state = self._state()
        if self.resume_from is not None:
            restore(self.resume_from, state)
        self.wall_before = state.progress.wall_s
        watcher = self._watcher(state, Peak(measured * distributed.world_size()))
        watchers = Watchers(*self.extra_watchers, watcher)
        try:
            reason = train(
                state, n_steps=config.steps, schedule=config.schedule, max_norm=config.grad_clip, watcher=watchers
            )
        except TrainingError as error:
            raise TrainingError(
                f"stopped at step {state.progress.step + 1}: {error}; the checkpoints are as they were; "
                f"try lower learning rates, for example: {resuming.way_on(config)}"
            ) from error
        finally:
            for sink in watcher.sinks:
                sink.close()
        return self._finish(state, reason, watcher)

    def _find_teachers(self) -> list[Path]:
        how = self.config.teacher
        if how.recipes and not how.models:
            raise ConfigError(
                f"teacher.recipes ({', '.join(how.recipes)}): these models have to be trained first; "
                "`groundling speedrun` with this preset does it, or name trained ones with --teacher.models"
            )
        if how.weight:
            require_teachable(len(self.corpus.train), self.corpus.tokenizer, how.models)
        return [find_bundle(path) for path in how.models]

    def _require_place(self) -> None:
        config = self.config
        if not config.resume and distributed.is_first():
            run_folder.require_room(config.out_dir, overwrite=config.overwrite)
        distributed.barrier()

    def _require_workable(self) -> None:
        """Refuse what would fail later, when an earlier run was removed or hours of training would be lost."""
        config = self.config
        self._batches(teacher=None)
        if distributed.is_first():
            require_packages(config.sinks)
        if config.sample_every is not None:
            require_unicode(config.sample_prompt)
            self.corpus.tokenizer.encode(config.sample_prompt)

    def _find_checkpoint(self) -> Path:
        """What to go on from, on all ranks the same."""
        config = self.config
        if distributed.is_first():
            path, passed_over = run_folder.find_resumable(config.out_dir)
            for why in passed_over:
                log.warning(f"passed over: {why}")
        distributed.barrier()
        if not distributed.is_first():
            path, _ = Checkpoints(config.out_dir / "checkpoints").newest_good()
        log.info(f"resuming from {path}")
        return path

    def _find_initial(self) -> Bundle | None:
        """The bundle that the run began with; of a run that goes on, its checkpoint knows all that is needed of it."""
        if self.config.init_from is None:
            return None
        source = self.config.init_from if self.resume_from is None else str(self.resume_from)
        self.config, bundle = read_initial(self.config, source)
        if self.resume_from is None:
            size = f"{bundle.model.n_parameters():,} parameters"
            log.info(f"init_from   {source}: {size}, the {bundle.tokenizer.kind} tokenizer")
        return bundle

    def _prepare_data(self) -> Corpus:
        """The first rank prepares the token files, the others then find them."""
        config, tokenizer = self.config, None if self.initial is None else self.initial.tokenizer
        if distributed.is_first():
            corpus = prepare(config.data, config.model.block_size, tokenizer)
        distributed.barrier()
        if not distributed.is_first():
            corpus = prepare(config.data, config.model.block_size, tokenizer)
        return corpus

    def _build_model(self) -> GPT:
        config = self.config
        torch.manual_seed(config.seed)
        vocab_size = config.model.vocab_size if self.initial else self.corpus.tokenizer.vocab_size
        require_buildable(dataclasses.replace(config.model, vocab_size=vocab_size))
        if self.initial is not None:
            model = GPT(config.model)
            take_weights(model, self.initial)
            return model
        model = GPT(dataclasses.replace(config.model, vocab_size=vocab_size))
        if config.zero_init:
            model.start_as_identity()
        return model

    def _pick_runtime(self) -> Runtime:
        """Compilation is decided by the work of the whole run, so that a resumed run decides as the first one did."""
        config = self.config
        if self.resume_from is not None:
            worth_compiling = bool(read_state(self.resume_from)["compiled"])
        else:
            work = total_flops(self.model, config.steps, config.batch_size)
            worth_compiling = work > WORTH_COMPILING_FLOPS
        picked = runtime.pick(config.runtime, worth_compiling)
        make_deterministic(picked.device)
        for line in picked.lines():
            log.info(line)
        return picked

    def _facts(self) -> RunFacts:
        """Who this run is: as its checkpoint says, when it goes on, and the config must agree with it."""
        plain = to_dict(dataclasses.replace(self.config, model=self.model_config))
        run_id, data_fingerprint = run_folder.new_run_id(), self._data_fingerprint()
        if self.resume_from is not None:
            record = read_state(self.resume_from)
            run_id = record["run_id"]
            if changed := resuming.require_same_run(self.config, plain, record, data_fingerprint):
                log.info(f"changed     {'; '.join(changed)}")
        return RunFacts(run_id=run_id, config=plain, data_fingerprint=data_fingerprint, compiled=self.picked.compile)

    def _data_fingerprint(self) -> str:
        """Of all that is learned from: the text as tokens, and the weights of the models that teach."""
        if not self.teachers:
            return self.corpus.fingerprint
        weights = [base_at(teacher).sha256 for teacher in self.teachers]
        return hashlib.sha256(" ".join([self.corpus.fingerprint, *weights]).encode()).hexdigest()

    def _say_estimate(self) -> None:
        config = self.config
        share = config.batch_size // distributed.world_size()
        micro_batch_size = min(config.micro_batch_size or share, share)
        require_memory(self.model, self.picked, micro_batch_size)
        cost = estimate(
            self.model,
            self.picked,
            n_steps=config.steps,
            batch_size=config.batch_size,
            micro_batch_size=micro_batch_size,
            n_train_tokens=len(self.corpus.train),
        )
        for line in cost.lines():
            log.info(line)

    def _state(self) -> TrainState:
        config, picked = self.config, self.picked
        objective = self._objective()
        compile_objective(objective, picked)
        optimizers = Optimizers(self.model, config.optim, picked.compute_dtype)
        batches = self._batches(self._teacher())
        average = None if config.average_decay is None else WeightAverage(self.model, config.average_decay)
        torch.manual_seed(config.seed + distributed.rank())  # from here on, dropout: other ranks drop other numbers
        return TrainState(self.model, distributed.wrap(objective), optimizers, batches, average)

    def _objective(self) -> Objective:
        teacher, autocast = self.config.teacher, self.picked.autocast
        if not teacher.weight:
            return Objective(self.model, autocast=autocast)
        objective = DistillationObjective(self.model, teacher.weight, autocast)
        if teacher.fades:
            self.extra_watchers.append(FadeTeacher(objective, self.config.schedule, self.config.steps))
        return objective

    def _batches(self, teacher: TableTeacher | None) -> Batches:
        config = self.config
        return Batches(
            self.corpus.train.ids,
            block_size=config.model.block_size,
            batch_size=config.batch_size,
            micro_batch_size=config.micro_batch_size,
            order=config.order,
            seed=config.seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            teacher=teacher,
        )

    def _teacher(self) -> TableTeacher | None:
        how, corpus, picked = self.config.teacher, self.corpus, self.picked
        if not how.weight:
            return None
        if self.teachers:
            log.info(f"teacher     the mean of {', '.join(how.models)}")
        return learn(corpus.train.ids, corpus.tokenizer, how, self.teachers, picked.device, picked.autocast)

    def _watcher(self, state: TrainState, peak: Peak) -> RunWatcher:
        config = self.config
        watcher = RunWatcher(
            plan=Plan(
                n_steps=config.steps,
                eval_every=config.eval_every,
                save_every=config.save_every,
                log_every=config.log_every,
                sample_every=config.sample_every,
                patience=config.patience,
            ),
            picked=self.picked,
            val_tokens=self.corpus.val.ids,
            train_tokens=self.corpus.train.ids if config.estimate_train_loss else None,
            save=self._save,
            sample_text=self._sample_text,
            sinks=self._sinks(state.progress.step),
            stop=self.stop,
            flops_per_token=self.model.flops_per_token(),
            peak=peak,
        )
        watcher.resume_at(state)
        return watcher

    def _sinks(self, step: int) -> list[Sink]:
        """The record and its views; only the first rank has any."""
        config = self.config
        if self.console is None:
            return []
        run = config.out_dir
        # First what can fail for want of a package: a run that never began leaves nothing behind.
        more = optional_sinks(config.sinks, run, self.facts.config, self.facts.run_id)
        atomic.write_text(run / "run.toml", to_toml(dataclasses.replace(config, resume=False, overwrite=False)))
        about = {"run_id": self.facts.run_id, **hardware.environment(), **self.picked.reasons}
        atomic.write_json(run / "env.json", about)
        atomic.remove(run / "summary.json")
        record = JsonlSink(run / "metrics.jsonl", resumed_at=step if config.resume else None)
        return [record, self.console, *more]

    def _save(self, state: TrainState) -> None:
        state.progress.wall_s = self._wall_s()
        chat = None if self.initial is None else self.initial.chat
        self.checkpoints.save(state, self.model_config, self.corpus.tokenizer, self.facts, chat)

    def _sample_text(self) -> str:
        bundle = Bundle(self.model_config, self.model, self.corpus.tokenizer)
        config = self.config
        how = SamplingConfig(max_new_tokens=config.sample_tokens, seed=config.seed)
        return config.sample_prompt + generate(bundle, config.sample_prompt, how)

    def _wall_s(self) -> float:
        return self.wall_before + time.perf_counter() - self.started

    def _finish(self, state: TrainState, reason: str, watcher: RunWatcher) -> RunSummary:
        """Leave the best model as the run's bundle, and the summary last: where it is, the run is over."""
        run, interrupted = self.config.out_dir, reason == ASKED_TO_STOP
        if distributed.is_first() and not interrupted:
            self._leave_bundle(state)
        summary = watcher.summary(state, reason, self._wall_s())
        if distributed.is_first():
            if not interrupted:
                atomic.write_json(run / "summary.json", dataclasses.asdict(summary))
            log.info(last_words(summary, run))
        return summary

    def _leave_bundle(self, state: TrainState) -> None:
        """The best checkpoint's bundle, or without checkpoints the model as it is now, becomes the run's."""
        folder, about = self.config.out_dir / "bundle", {"run_id": self.facts.run_id}
        for best in self.checkpoints.by_loss(self.facts.run_id):
            try:
                bundle = load_bundle(best, dtype=self.picked.weight_dtype)
            except CheckpointError as error:
                log.warning(f"passed over: {error}")
                continue
            save_bundle(folder, bundle.model, bundle.tokenizer, {**about, "checkpoint": best.name}, bundle.chat)
            return
        with state.eval_mode():
            chat = None if self.initial is None else self.initial.chat
            save_bundle(folder, self.model, self.corpus.tokenizer, about, chat)
