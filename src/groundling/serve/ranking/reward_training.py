"""Run `groundling reward` on the page's rankings: a child process, one at a time, stopped with the server."""

import asyncio
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from groundling.serve.http.errors import ApiError
from groundling.serve.runs.curves import read_delta

MIN_PAIRS = 10
MIN_PROMPTS = 5
BATCH_SIZE = 8
MAX_STEPS = 200
"""For a training of minutes: a step of a small model takes less than a second."""
MAX_EPOCHS = 4.0
STOP_S = 10.0
TAIL_BYTES = 8192


def require_enough(n_pairs: int, n_prompts: int) -> None:
    """Check that there are enough rankings to train on.

    Raises:
        ApiError: 409: there are not.
    """
    if n_pairs < MIN_PAIRS or n_prompts < MIN_PROMPTS:
        raise ApiError(
            409,
            f"there are {n_pairs} preferences on {n_prompts} prompts; training needs at least {MIN_PAIRS} on "
            f"{MIN_PROMPTS} prompts, and hundreds for a useful model: rank more replies",
            "too_few_rankings",
        )


def arguments(base: Path, rankings: Path, out_dir: Path, n_answers: int) -> list[str]:
    """The command line of a run of at most MAX_STEPS steps."""
    epochs = min(MAX_EPOCHS, MAX_STEPS * BATCH_SIZE / n_answers)
    n_steps = max(1, round(epochs * n_answers / BATCH_SIZE))
    return [
        *("reward", str(base.resolve())),
        *("--rankings", str(rankings.resolve())),
        *("--out-dir", str(out_dir.resolve())),
        *("--epochs", f"{epochs:.6f}"),
        *("--batch-size", str(BATCH_SIZE)),
        *("--log-every", str(max(1, n_steps // 50))),
        *("--schedule.warmup-steps", str(min(20, n_steps // 5))),
    ]


class RewardTraining:
    """The current or last training. For the event loop only.

    Args:
        runs: parent folder of the run folders.
        rankings: file to train on.
    """

    def __init__(self, runs: Path, rankings: Path) -> None:
        self._runs, self._rankings = runs, rankings
        self._lock = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._following: asyncio.Task[None] | None = None
        self._state, self._tail = "idle", b""
        self._model = ""
        self._folder: Path | None = None
        self._began = self._ended = 0.0

    async def start(self, model: str, base: Path, n_answers: int) -> None:
        """Start a training.

        Args:
            model: name of the model to start from.
            base: path of the model.
            n_answers: number of judgements to train on.

        Raises:
            ApiError: 409: a training is running.
        """
        async with self._lock:
            if self._state == "running":
                raise ApiError(409, "a reward model is being trained already; wait for it, or stop it", "is_training")
            self._folder = _free_folder(self._runs)
            command = arguments(base, self._rankings, self._folder, n_answers)
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "groundling.system.child_process", *command),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            self._state, self._tail, self._model = "running", b"", model
            self._began = time.monotonic()
            self._following = asyncio.create_task(self._follow(self._process))

    async def stop(self) -> None:
        """Stop the running training, if any, and wait for its process to end."""
        async with self._lock:
            process, following = self._process, self._following
            if process is None or following is None or self._state != "running":
                return
            self._state = "stopped"
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(asyncio.shield(following), STOP_S)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    process.kill()
                await following

    async def _follow(self, process: asyncio.subprocess.Process) -> None:
        """Keep the end of its output until it exits."""
        assert process.stderr is not None
        while output := await process.stderr.read(TAIL_BYTES):
            self._tail = (self._tail + output)[-TAIL_BYTES:]
        code = await process.wait()
        self._ended = time.monotonic()
        if self._state == "running":
            self._state = "done" if code == 0 else "failed"

    def facts(self) -> dict[str, Any]:
        """Progress of the training. Reads its files: call it in a thread."""
        facts: dict[str, Any] = {"state": self._state, "model": self._model or None, "run": None, "error": None}
        facts |= {"step": None, "loss": None, "accuracy": None, "share": None, "seconds": None, "losses": []}
        if self._folder is None:
            return facts
        facts["run"] = self._folder.name
        end = time.monotonic() if self._state == "running" else self._ended
        facts["seconds"] = round(max(0.0, end - self._began), 1)
        if self._state == "failed":
            facts["error"] = _last_line(self._tail)
        series = read_delta(self._folder / "metrics.jsonl", 0).points()
        last = {name: values[-1] for name, (_, values) in series.items() if values}
        facts |= {name: last.get(name) for name in ("loss", "accuracy")}
        if "loss" in series:
            steps, losses = series["loss"]
            facts["step"] = steps[-1]
            facts["losses"] = [list(point) for point in zip(steps, losses, strict=True)]
        if self._state == "done":
            facts["share"] = 1.0
        elif last.get("train_s") is not None and "eta_s" in last:
            facts["share"] = last["train_s"] / max(1e-9, last["train_s"] + last["eta_s"])
        return facts


def _free_folder(runs: Path) -> Path:
    number = 1
    while (runs / f"reward-{number}").exists():
        number += 1
    return runs / f"reward-{number}"


def _last_line(output: bytes) -> str:
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("groundling: error: ")[:1000] if lines else "it ended without an error message"
