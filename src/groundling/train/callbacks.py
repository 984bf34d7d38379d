"""What happens around the updates of a pretraining run: evaluations, checkpoints, records, samples, the end."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from groundling.data.batches import Tokens
from groundling.evals.loss import Interrupted, train_loss_estimate, whole_split_loss
from groundling.system import distributed, memory
from groundling.system.hardware import Peak
from groundling.system.logs import Record
from groundling.system.metrics import JsonlSink, Sink
from groundling.system.runtime import Runtime
from groundling.system.signals import ASKED_TO_STOP, SIGTERM_EXIT_CODE, StopRequest
from groundling.train.loop import Watcher
from groundling.train.state import TrainState
from groundling.train.step import StepStats
from groundling.train.summary import RunSummary

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """When what happens, in steps; None is never."""

    n_steps: int
    eval_every: int | None
    save_every: int | None
    log_every: int
    sample_every: int | None
    patience: int | None

    def due(self, every: int | None, step: int) -> bool:
        """Whether something that happens every so often, and at the end, happens at `step`."""
        return every is not None and step > 0 and (step % every == 0 or step >= self.n_steps)


class RunWatcher(Watcher):
    """Evaluates, saves, records and shows a run, none of which changes what is learned.

    Args:
        plan: when.
        picked: precision and device.
        val_tokens: the validation split.
        train_tokens: the training split, whose loss is estimated at each evaluation; None: no estimate.
        save: writes a checkpoint.
        speak: returns a sample of the model.
        sinks: where records go; only the first rank has any.
        stop: set by signals.
        flops_per_token: of training.
        peak: of matrix products, FLOP/s over all ranks.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        picked: Runtime,
        val_tokens: Tokens,
        train_tokens: Tokens | None,
        save: Callable[[TrainState], None],
        sample_text: Callable[[], str],
        sinks: list[Sink],
        stop: StopRequest,
        flops_per_token: float,
        peak: Peak,
    ) -> None:
        self.plan, self.picked, self.stop, self.sinks = plan, picked, stop, sinks
        self._val_tokens, self._train_tokens, self._save, self._sample_text = (
            val_tokens,
            train_tokens,
            save,
            sample_text,
        )
        self._flops_per_token, self._peak = flops_per_token, peak
        self._mark = (0, 0.0)  # tokens and seconds at the last record
        self._saved_at = self._sampled_at = 0
        self._asked_to_stop = False

    def before_step(self, state: TrainState) -> None:
        """Evaluate, save and speak where that is due. A step that was resumed from does only what is missing."""
        progress = state.progress
        step = progress.step
        if self._stopping():
            self._save_once(state)
            return
        if self.plan.due(self.plan.eval_every, step) and progress.evaluated_step != step:
            self._evaluate(state)
        if self.plan.due(self.plan.save_every, step) or self._reason(state) or self._asked_to_stop:
            self._save_once(state)
        if self.plan.due(self.plan.sample_every, step) and self._sampled_at != step and distributed.is_first():
            self._sampled_at = step
            with state.eval_mode():
                text = self._sample_text()
            log.info(text)
            self._record({"step": step, "sample": text})

    def reason_to_stop(self, state: TrainState) -> str | None:
        """A signal, or no progress for `patience` evaluations."""
        return self._reason(state)

    def after_step(self, state: TrainState, stats: StepStats) -> None:
        """Record the step where that is due."""
        self.stop.can_save = True
        progress = state.progress
        if progress.step % self.plan.log_every and progress.step != 1 and progress.step < self.plan.n_steps:
            return
        n_tokens, seconds = progress.n_tokens - self._mark[0], progress.train_s - self._mark[1]
        self._mark = (progress.n_tokens, progress.train_s)
        tokens_per_s = n_tokens / seconds
        steps_left = self.plan.n_steps - progress.step
        self._record(
            {
                "step": progress.step,
                "loss": stats.loss,
                "grad_norm": stats.grad_norm,
                "n_tokens": progress.n_tokens,
                "train_s": round(progress.train_s, 3),
                "tokens_per_s": round(tokens_per_s, 1),
                "utilisation": round(self._peak.share(tokens_per_s * self._flops_per_token), 4),
                "memory_mb": round(memory.peak_memory_bytes(self.picked.device) / 1e6, 1),
                "eta_s": round(steps_left * progress.train_s / progress.step, 1),
                "lr_factor": stats.lr_factor,
            }
        )

    def resume_at(self, state: TrainState) -> None:
        """Go on from a state that was restored: it is saved already, and the next record's speed counts from here."""
        self._mark = (state.progress.n_tokens, state.progress.train_s)
        self._sampled_at = max((sink.sampled_at for sink in self.sinks if isinstance(sink, JsonlSink)), default=0)

    def summary(self, state: TrainState, reason: str, wall_s: float) -> RunSummary:
        """What came of the run, which ended for a reason after so many seconds."""
        progress, stopped = state.progress, reason == ASKED_TO_STOP  # perhaps by a signal to another rank only
        speed = progress.n_tokens / progress.train_s if progress.train_s else None
        return RunSummary(
            reason=reason,
            exit_code=(self.stop.exit_code or SIGTERM_EXIT_CODE) if stopped else 0,
            steps=progress.step,
            tokens=progress.n_tokens,
            train_s=round(progress.train_s, 3),
            wall_s=round(wall_s, 3),
            val_loss=progress.val_loss,
            train_loss=progress.train_loss,
            best_val_loss=None if progress.best_step is None else progress.best_val_loss,
            best_step=progress.best_step,
            parameters=sum(parameter.numel() for parameter in state.model.parameters()),
            tokens_per_s=None if speed is None else round(speed, 1),
            utilisation=None if speed is None else round(self._peak.share(speed * self._flops_per_token), 4),
            memory_mb=round(memory.peak_memory_bytes(self.picked.device) / 1e6, 1),
        )

    def _evaluate(self, state: TrainState) -> None:
        start = time.perf_counter()
        try:
            with state.eval_mode():
                val_loss = self._val_loss(state.model)
                train_loss = self._train_loss(state.model)
        except Interrupted:
            self._asked_to_stop = True
            return
        progress = state.progress
        progress.record_evaluation(val_loss, train_loss)
        self._record(
            {
                "step": progress.step,
                "val_loss": val_loss,
                "best_val_loss": progress.best_val_loss,
                **({} if train_loss is None else {"train_loss": train_loss}),
                "eval_s": round(time.perf_counter() - start, 3),
            }
        )

    def _val_loss(self, model: nn.Module) -> float:
        return whole_split_loss(
            model, self._val_tokens, _block_size(model), self.picked.autocast, lambda: bool(self.stop)
        )

    def _train_loss(self, model: nn.Module) -> float | None:
        """On as many windows as the validation split has, within bounds: it costs as much as the validation loss."""
        if self._train_tokens is None:
            return None
        block_size = _block_size(model)
        n_windows = math.ceil((len(self._val_tokens) - 1) / block_size)
        return train_loss_estimate(
            model, self._train_tokens, block_size, n_windows, self.picked.autocast, lambda: bool(self.stop)
        )

    def _save_once(self, state: TrainState) -> None:
        if self._saved_at != state.progress.step and state.progress.step > 0:
            self._save(state)
            self._saved_at = state.progress.step

    def _stopping(self) -> bool:
        """Whether some rank was asked to stop; all ranks get the same answer."""
        self._asked_to_stop = self._asked_to_stop or distributed.any_rank(bool(self.stop), self.picked.device)
        return self._asked_to_stop

    def _reason(self, state: TrainState) -> str | None:
        if self._asked_to_stop:
            return ASKED_TO_STOP
        progress, patience = state.progress, self.plan.patience
        if patience is not None and progress.n_evals_since_best >= patience and math.isfinite(progress.best_val_loss):
            return f"no better validation loss in {patience} evaluations"
        return None

    def _record(self, record: Record) -> None:
        for sink in self.sinks:
            sink.write(record)


def _block_size(model: nn.Module) -> int:
    """T of a model that says it; all of ours do."""
    return int(model.block_size)  # type: ignore[arg-type]
