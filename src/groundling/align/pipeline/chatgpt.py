"""`groundling chatgpt`: train every stage of a small ChatGPT, from a pretrained model to the report.

Each step is a verb of its own, and its command is printed before it runs. Finished steps are skipped, interrupted ones
are resumed.
"""

import logging
import shlex
import time
from collections.abc import Sequence
from typing import Any

from groundling.align.chat_vocab import with_chat
from groundling.align.data import prompt_room, read_prompt_splits
from groundling.align.pipeline.command_line import changed_fields, flags
from groundling.align.pipeline.recipe import ChatgptConfig, steps
from groundling.align.pipeline.step import RANK, PipelineStep, has_rankings
from groundling.align.pipeline.time_estimate import N_DIALOGUES, Clock, measure, step_key
from groundling.bundle import load_bundle
from groundling.bundle.context import contexts
from groundling.bundle.layout import find_bundle, read_chat, read_config, require_language_model
from groundling.config import parse
from groundling.data.examples.encoding import least_ids
from groundling.errors import ConfigError, require
from groundling.storage import atomic
from groundling.system.runtime import RuntimeConfig
from groundling.text.chat.role_tokens import RoleTokens
from groundling.text.serialize import load_tokenizer
from groundling.train.estimate import describe_seconds

log = logging.getLogger(__name__)

Steps = Sequence[PipelineStep[Any]]


def main(argv: Sequence[str]) -> int:
    """The verb `chatgpt`."""
    return chatgpt(parse(ChatgptConfig, argv, "groundling chatgpt"))


def chatgpt(config: ChatgptConfig) -> int:
    """Run the steps that are not done; return the exit code of the last one that ran.

    Raises:
        GroundlingError: any subclass.
    """
    _require_trainable(config)
    _require_same_recipe(config)
    started = time.perf_counter()
    all_steps = steps(config)
    missing = steps_to_run(all_steps)
    clock = _clock(config, missing)
    for step in missing:
        if _is_stale(step, missing):
            step.forget()
    for step in all_steps:
        if step not in missing:
            log.info(f"\n{step.command()}: already done")
            continue
        log.info(f"\n$ {step.command()}")
        begun = time.perf_counter()
        if code := step.run(step.config_to_run()):
            return code
        if clock is not None:
            clock.end(time.perf_counter() - begun)
            log.info(f"{step.verb} done in {time.perf_counter() - begun:.0f} s; {_left(clock)}")
    log.info(f"\nall stages in {time.perf_counter() - started:.0f} s; chat with one: "
        f"groundling chat {shlex.quote(str(config.out_dir / f'ppo-{config.seeds[0]}'))}")  # fmt: skip
    return 0


def _require_trainable(config: ChatgptConfig) -> None:
    """Check before the first step what later steps require.

    Raises:
        GroundlingError: the model cannot chat, or its context is too short.
    """
    folder = find_bundle(config.path)
    require_language_model(config.path)
    own, tokenizer = read_config(folder), load_tokenizer(folder)
    chat = read_chat(folder, own) or RoleTokens.after(tokenizer.vocab_size)
    (context,) = contexts([config.path], config.context)
    prompt_room(context or own.block_size, config.max_new_tokens, least_ids(chat, tokenizer))


def _clock(config: ChatgptConfig, missing: Steps) -> Clock | None:
    """Estimate the time for all steps and log it; None for a smoke test, which is too short to need one."""
    if config.smoke:
        return None
    bundle = with_chat(load_bundle(config.path, context=config.context))
    scale = 1.0
    if config.data.path is not None:
        scale = len(read_prompt_splits(config.data).train) / N_DIALOGUES
    clock = Clock([step_key(step.verb, step.output) for step in missing], measure(bundle, RuntimeConfig()), scale)
    stages_left = f"{len(missing)} {'stage' if len(missing) == 1 else 'stages'}"
    log.info(f"{stages_left}; {_left(clock)} on this machine, by a short trial of training and decoding")
    return clock


def _left(clock: Clock) -> str:
    return f"about {describe_seconds(clock.seconds_left)} left for all"


def steps_to_run(all_steps: Steps) -> list[PipelineStep[Any]]:
    """Steps that are not done, or whose inputs will change.

    Raises:
        ConfigError: there are rankings of a model that will be trained again.
    """
    missing: list[PipelineStep[Any]] = []
    for step in all_steps:
        is_stale = _is_stale(step, missing)
        if step.is_done() and not is_stale:
            continue
        if step.verb == RANK and is_stale and has_rankings(step.output):
            raise ConfigError(f"{step.output} has rankings of an earlier model's replies; move it elsewhere")
        missing.append(step)
    return missing


def _is_stale(step: PipelineStep[Any], missing: Steps) -> bool:
    return any(other.output in step.inputs for other in missing)


def _require_same_recipe(config: ChatgptConfig) -> None:
    """Check that the folder's steps were made with the same settings, and record the settings there.

    Raises:
        ConfigError: they were not.
    """
    file = config.out_dir / "chatgpt.json"
    recipe = {"path": config.path, "gold": config.gold, "smoke": config.smoke}
    recipe |= {"data": flags(changed_fields(config.data), "data."), "max_new_tokens": config.max_new_tokens}
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
