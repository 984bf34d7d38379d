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
    "ladder": Verb("groundling.ladder.train", "climb the lecture, rung by rung, and compare the losses with its own"),
    "pretrain": Verb("groundling.train.pretrain", "train a GPT on a named data set or on your own text"),
    "speedrun": Verb("groundling.train.speedrun.run", "train by the fixed recipe in minutes, and report time and loss"),
    "sample": Verb("groundling.sample.cli", "let a trained model speak"),
    "sft": Verb("groundling.align.sft", "teach a trained model to answer"),
    "chat": Verb("groundling.align.chat", "talk with a model that was taught to answer"),
    "rank": Verb("groundling.align.preferences.terminal", "say which of some replies is better, in the terminal"),
    "rankings": Verb("groundling.align.preferences.cli", "simulate, export, import and sum up rankings"),
    "reward": Verb("groundling.align.reward.train", "teach a model to tell better replies from worse, by rankings"),
    "ppo": Verb("groundling.align.rl.ppo", "optimise a model against rewards, with a value model"),
    "dpo": Verb("groundling.align.dpo", "optimise a model by preferences directly"),
    "grpo": Verb("groundling.align.rl.grpo", "optimise a model against rewards, by groups of replies"),
    "align-report": Verb(
        "groundling.align.report.build", "compare the stages on held-out prompts, in a page with pictures"
    ),
    "chatgpt": Verb(
        "groundling.align.pipeline.chatgpt", "run every stage of a small ChatGPT, from a pretrained model to the report"
    ),
    "serve": Verb("groundling.serve.cli", "serve models over HTTP, and pages to chat, look inside, rank and watch"),
    "safety": Verb("groundling.safety.cli", "train and measure what looks at prompts and replies"),
    "export": Verb("groundling.export.cli", "write a trained model for transformers, vLLM, llama.cpp and Ollama"),
    "import": Verb("groundling.export.import_cli", "make a bundle of a model from Hugging Face or nanoGPT"),
    "plot": Verb("groundling.tools.plot", "draw the loss curves of runs to a PNG"),
    "data": Verb("groundling.data.cli", "data sets by name, and examples as a model sees them"),
    "tokenizer": Verb("groundling.data.tokenizer_cli", "train, show and compare tokenizers"),
    "verify-checkpoint": Verb("groundling.tools.verify", "check every file of a run's checkpoints"),
    "doctor": Verb("groundling.tools.doctor", "tell what this machine has, what will be used, and why"),
}


def usage() -> str:
    """Text of `groundling --help`."""
    lines = "\n".join(f"  {name:<18} {verb.summary}" for name, verb in VERBS.items())
    return (
        "usage: groundling VERB [OPTIONS]\n\nA GPT from the ground up.\n\n"
        f"{lines}\n\ngroundling VERB --help tells more; groundling --version tells the version."
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
        return 130
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
