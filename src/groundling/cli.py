"""The command `groundling`. Each verb is a module, imported on use."""

import importlib
import os
import sys
import threading
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from groundling.errors import ConfigError, GroundlingError, near_name
from groundling.system import output

INTERRUPTED, TERMINATED = 130, 143
"""128 + SIGINT, 128 + SIGTERM: exit codes after Ctrl-C and SIGTERM, as in shells."""


class Verb(NamedTuple):
    """Module of a verb, with `main(argv) -> exit code`, and a summary for the help."""

    module: str
    summary: str


VERBS = {
    "ladder": Verb("groundling.ladder.train", "train the models of the lecture, rung by rung, and compare losses"),
    "pretrain": Verb("groundling.train.pretrain", "train a GPT on a named data set or your own text"),
    "speedrun": Verb("groundling.train.speedrun.run", "train a fixed recipe in minutes and report time and loss"),
    "sample": Verb("groundling.sample.cli", "generate text from a trained model"),
    "sft": Verb("groundling.align.sft", "fine-tune a trained model on conversations"),
    "chat": Verb("groundling.align.chat", "chat with a fine-tuned model"),
    "rank": Verb("groundling.align.preferences.terminal", "rank replies in the terminal"),
    "rankings": Verb("groundling.align.preferences.cli", "simulate, export, import and summarize rankings"),
    "reward": Verb("groundling.align.reward.train", "train a reward model on rankings"),
    "ppo": Verb("groundling.align.rl.ppo", "optimize a model against rewards with PPO"),
    "dpo": Verb("groundling.align.dpo", "train a model on preferences with DPO"),
    "grpo": Verb("groundling.align.rl.grpo", "optimize a model against rewards with GRPO"),
    "align-report": Verb("groundling.align.report.build", "compare the stages on held-out prompts in an HTML report"),
    "chatgpt": Verb(
        "groundling.align.pipeline.chatgpt", "run all stages of a small ChatGPT, from a pretrained model to the report"
    ),
    "serve": Verb("groundling.serve.cli", "serve models over an OpenAI-compatible HTTP API, with web pages"),
    "safety": Verb("groundling.safety.cli", "train and evaluate filters for prompts and replies"),
    "export": Verb("groundling.export.cli", "export a model for transformers, vLLM, llama.cpp and Ollama"),
    "import": Verb("groundling.export.import_cli", "import a model from Hugging Face or nanoGPT"),
    "plot": Verb("groundling.tools.plot", "plot the loss curves of runs to a PNG"),
    "data": Verb("groundling.data.cli", "fetch data sets and inspect training examples"),
    "tokenizer": Verb("groundling.data.tokenizer_cli", "train, inspect and compare tokenizers"),
    "verify-checkpoint": Verb("groundling.tools.verify", "verify every file of a run's checkpoints"),
    "doctor": Verb("groundling.tools.doctor", "show the hardware and the settings that will be used"),
}


def usage() -> str:
    """Text of `groundling --help`."""
    lines = "\n".join(f"  {name:<18} {verb.summary}" for name, verb in VERBS.items())
    return (
        "usage: groundling VERB [OPTIONS]\n\nA GPT from the ground up.\n\n"
        f"{lines}\n\nRun `groundling VERB --help` for the options of a verb, `groundling --version` for the version."
    )


def main(argv: Sequence[str]) -> int:
    """Run a verb; return the exit code. A GroundlingError is printed as one line on stderr.

    `GROUNDLING_TRACEBACK=1` shows its traceback instead.
    """
    with output.guarded() as guard:
        try:
            return guard.settle(_explained(argv))
        except SystemExit as stop:  # --help
            raise SystemExit(guard.settle(stop.code or 0) if not isinstance(stop.code, str) else stop.code) from None
        except KeyboardInterrupt:  # while the output was being flushed
            return INTERRUPTED


def _explained(argv: Sequence[str]) -> int:
    try:
        return _run(argv)
    except GroundlingError as error:
        if os.environ.get("GROUNDLING_TRACEBACK"):
            raise
        print(f"groundling: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("groundling: interrupted", file=sys.stderr)
        return INTERRUPTED
    except output.OutputEnded:
        return 0


def _run(argv: Sequence[str]) -> int:
    name, rest = (argv[0], list(argv[1:])) if argv else ("--help", [])
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        from importlib.metadata import version

        print(f"groundling {version('groundling')}")
        return 0
    if name not in VERBS:
        raise ConfigError(f"no verb {name!r}; {near_name(name, VERBS, 'the verbs are')}")
    limit_openmp_spinning(os.environ)
    from groundling.system.logs import console_logging

    with console_logging():
        code: int = importlib.import_module(VERBS[name].module).main(rest)
    return code


def limit_openmp_spinning(environment: MutableMapping[str, str]) -> None:
    """Reduce the spinning of waiting OpenMP threads to a tenth of the default.

    Spinning threads that share a core with another process can make training hundreds of times slower; on an idle
    machine the reduction costs 2 % (docs/log.md). OpenMP reads the variable when torch is loaded, so set it before.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = "30000"


def console() -> None:
    """Entry point of the command `groundling`."""
    output.claim_descriptors()
    try:
        code = main(sys.argv[1:])
    except SystemExit as stop:
        if stop.code not in (INTERRUPTED, TERMINATED):
            raise
        code = stop.code
    at_work = any(thread.name.startswith(output.UNBREAKABLE) for thread in threading.enumerate())
    if code in (INTERRUPTED, TERMINATED) or at_work or "TORCHELASTIC_RUN_ID" in os.environ:
        # Everything is written and closed. Skip the interpreter's shutdown: freeing PyTorch and a long text takes a
        # second of CPU time, but a signal should end the process immediately; and a thread inside PyTorch (loading a
        # model, or left over from gloo under torchrun) would abort it and make a successful run look failed.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    raise SystemExit(code)
