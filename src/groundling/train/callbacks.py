"""Callbacks of the training loop: stop on a signal, evaluate, save, sample, stop early, record."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from groundling.data.batches import Tokens
from groundling.evals.loss import Interrupted, train_loss_estimate, whole_split_loss
from groundling.system import distributed, memory
from groundling.system.hardware import Peak
from groundling.system.metrics import MetricsWriter
from groundling.system.runtime import Runtime
from groundling.system.signals import ASKED_TO_STOP, StopRequest
from groundling.train.loop import FINISHED, Callback
from groundling.train.state import TrainState
from groundling.train.step import StepStats

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Every:
    """A schedule: due every `interval` steps and after the last one; None: never."""

    interval: int | None
    n_steps: int

    def due(self, step: int) -> bool:
        """Whether it is due at `step`."""
        return self.interval is not None and step > 0 and (step % self.interval == 0 or step >= self.n_steps)


class Stoppable(Protocol):
    """The part of `Run` that `StopOnSignal` needs."""

    stop: StopRequest

    def asked_to_stop(self) -> bool:
        """Whether any rank received a signal."""


class StopOnSignal(Callback):
    """End training on SIGTERM or Ctrl-C. All ranks end at the same step."""

    def __init__(self, run: Stoppable) -> None:
        self._run = run

    def before_step(self, state: TrainState) -> str | None:  # noqa: ARG002
        return ASKED_TO_STOP if self._run.asked_to_stop() else None

    def after_step(self, state: TrainState, stats: StepStats) -> None:  # noqa: ARG002
        self._run.stop.can_save = True


class Evaluate(Callback):
    """Measure the validation loss, unless a resumed step was evaluated before. A signal interrupts it.

    Args:
        every: when to evaluate.
        metrics: records the losses.
        val_tokens: the validation split; all of it is evaluated.
        train_tokens: the training split, whose loss is estimated too; None: no estimate.
        picked: runtime, for its precision.
        stop: set by signals.
    """

    def __init__(
        self,
        every: Every,
        metrics: MetricsWriter,
        val_tokens: Tokens,
        train_tokens: Tokens | None,
        picked: Runtime,
        stop: StopRequest,
    ) -> None:
        self._every, self._metrics, self._picked, self._stop = every, metrics, picked, stop
        self._val_tokens, self._train_tokens = val_tokens, train_tokens

    def before_step(self, state: TrainState) -> str | None:
        progress = state.progress
        if not self._every.due(progress.step) or progress.evaluated_step == progress.step:
            return None
        start = time.perf_counter()
        try:
            with state.eval_mode():
                val_loss = self._val_loss(state.model)
                train_loss = None if self._train_tokens is None else self._train_loss(state.model, self._train_tokens)
        except Interrupted:
            return ASKED_TO_STOP
        progress.record_evaluation(val_loss, train_loss)
        self._metrics.write(
            {
                "step": progress.step,
                "val_loss": val_loss,
                "best_val_loss": progress.best_val_loss,
                **({} if train_loss is None else {"train_loss": train_loss}),
                "eval_s": round(time.perf_counter() - start, 3),
            }
        )
        return None

    def _val_loss(self, model: nn.Module) -> float:
        return whole_split_loss(
            model, self._val_tokens, _block_size(model), self._picked.autocast, lambda: bool(self._stop)
        )

    def _train_loss(self, model: nn.Module, train_tokens: Tokens) -> float:
        """Estimate on as many windows as the validation split has, up to a limit, so that both cost the same."""
        block_size = _block_size(model)
        n_windows = math.ceil((len(self._val_tokens) - 1) / block_size)
        return train_loss_estimate(
            model, train_tokens, block_size, n_windows, self._picked.autocast, lambda: bool(self._stop)
        )


class Save(Callback):
    """Write checkpoints: when due, and when training ends early.

    Args:
        every: when to save.
        save: writes a checkpoint; all ranks call it together.
        saved_at: a step that needs no checkpoint: 0, or the step of the checkpoint that the run resumed from.
        every_s: also save after this many seconds; single rank only.
    """

    def __init__(
        self,
        every: Every,
        save: Callable[[TrainState], None],
        *,
        saved_at: int | None = 0,
        every_s: float = math.inf,
    ) -> None:
        self._every, self._save, self._saved_at, self._every_s = every, save, saved_at, every_s
        self._saved_s = time.perf_counter()

    def before_step(self, state: TrainState) -> str | None:
        if self._every.due(state.progress.step) or time.perf_counter() - self._saved_s >= self._every_s:
            self._save_once(state)
        return None

    def at_end(self, state: TrainState, reason: str) -> None:
        if reason != FINISHED:
            self._save_once(state)

    def _save_once(self, state: TrainState) -> None:
        if self._saved_at != state.progress.step:
            self._save(state)
            self._saved_at = state.progress.step
        self._saved_s = time.perf_counter()


class Sample(Callback):
    """Show and record generated text. Only the first rank samples.

    Args:
        every: when to sample.
        metrics: records the text; a resumed step is not sampled twice.
        generate: samples a text; called with the model in evaluation mode.
    """

    def __init__(self, every: Every, metrics: MetricsWriter, generate: Callable[[], str]) -> None:
        self._every, self._metrics, self._generate = every, metrics, generate
        self._sampled_at = metrics.sampled_at

    def before_step(self, state: TrainState) -> str | None:
        step = state.progress.step
        if self._every.due(step) and self._sampled_at != step and distributed.is_first():
            self._sampled_at = step
            with state.eval_mode():
                text = self._generate()
            log.info(text)
            self._metrics.write({"step": step, "sample": text})
        return None


class StopEarly(Callback):
    """End training after `patience` evaluations without a lower validation loss; None: never."""

    def __init__(self, patience: int | None) -> None:
        self._patience = patience

    def before_step(self, state: TrainState) -> str | None:
        progress, patience = state.progress, self._patience
        if patience is not None and progress.n_evals_since_best >= patience and math.isfinite(progress.best_val_loss):
            return f"no better validation loss in {patience} evaluations"
        return None


class Throughput:
    """Model FLOP utilisation: tokens per second as a share of the machine's peak.

    Args:
        flops_per_token: FLOPs of training on one token.
        peak: FLOP/s of matrix products over all ranks.
    """

    def __init__(self, flops_per_token: float, peak: Peak) -> None:
        self._flops_per_token, self._peak = flops_per_token, peak

    def utilisation(self, tokens_per_s: float) -> float:
        """Utilisation from 0 to 1 at this speed."""
        return round(self._peak.share(tokens_per_s * self._flops_per_token), 4)


class Record(Callback):
    """Record loss, speed and memory.

    Args:
        every: when to record; the first step is recorded too.
        metrics: where to record.
        throughput: computes the utilisation.
        device: whose peak memory is recorded.
        state: the state at the start of the run.
    """

    def __init__(
        self, every: Every, metrics: MetricsWriter, throughput: Throughput, device: torch.device, state: TrainState
    ) -> None:
        self._every, self._metrics, self._throughput, self._device = every, metrics, throughput, device
        self._mark = (state.progress.n_tokens, state.progress.train_s)  # at the last record

    def after_step(self, state: TrainState, stats: StepStats) -> None:
        progress = state.progress
        if progress.step != 1 and not self._every.due(progress.step):
            return
        n_tokens, seconds = progress.n_tokens - self._mark[0], progress.train_s - self._mark[1]
        self._mark = (progress.n_tokens, progress.train_s)
        tokens_per_s = n_tokens / seconds
        steps_left = self._every.n_steps - progress.step
        self._metrics.write(
            {
                "step": progress.step,
                "loss": stats.loss,
                "grad_norm": stats.grad_norm,
                "n_tokens": progress.n_tokens,
                "train_s": round(progress.train_s, 3),
                "tokens_per_s": round(tokens_per_s, 1),
                "utilisation": self._throughput.utilisation(tokens_per_s),
                "memory_mb": _memory_mb(self._device),
                "eta_s": round(steps_left * progress.train_s / progress.step, 1),
                "lr_factor": stats.lr_factor,
            }
        )


def final_figures(state: TrainState, throughput: Throughput, device: torch.device) -> dict[str, Any]:
    """Final figures of a language model's run for `summary.json`; None: not measured."""
    progress = state.progress
    speed = progress.n_tokens / progress.train_s if progress.train_s else None
    return {
        "steps": progress.step,
        "tokens": progress.n_tokens,
        "train_s": round(progress.train_s, 3),
        "val_loss": progress.val_loss,
        "train_loss": progress.train_loss,
        "best_val_loss": None if progress.best_step is None else progress.best_val_loss,
        "best_step": progress.best_step,
        "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        "tokens_per_s": None if speed is None else round(speed, 1),
        "utilisation": None if speed is None else throughput.utilisation(speed),
        "memory_mb": _memory_mb(device),
    }


def _memory_mb(device: torch.device) -> float:
    return round(memory.peak_memory_bytes(device) / 1e6, 1)


def _block_size(model: nn.Module) -> int:
    """The model's context length; every model here has the attribute."""
    return int(model.block_size)  # type: ignore[arg-type]
