"""A bundle: one folder with all that sampling needs, and nothing that can run code when it is read.

    config.json  model.safetensors  tokenizer.json  manifest.json  and of a model that chats  chat.json

An adapter is a bundle that has `adapter.safetensors` in place of the weights, and a manifest that says to which other
bundle's weights it is to be added.

A checkpoint holds all but the manifest in its folder `bundle`, and its own manifest vouches for them. A run:

    RUN/checkpoints/step-00000250/{bundle/, training.safetensors, state.json, manifest.json}
    RUN/bundle/     the best of the run, once training has ended
"""

import dataclasses
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from groundling import atomicio
from groundling.adapter import Adapter
from groundling.config import from_dict
from groundling.context import cut_positions, narrowed
from groundling.errors import CheckpointError, ConfigError, DataError
from groundling.manifest import MANIFEST, check_manifest, read_json_object, read_manifest, write_manifest
from groundling.memory import memory_of
from groundling.model.blank import blank_gpt
from groundling.model.gpt import GPT, GPTConfig
from groundling.runtime import unwrap
from groundling.tensors import read_tensors, tensor_names
from groundling.text.chat import ChatFormat
from groundling.text.tokenizer import Tokenizer, load_tokenizer, save_tokenizer

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
FILES = (CONFIG, WEIGHTS, TOKENIZER)
CHAT = "chat.json"
"""Only in the bundle of a model that knows how a conversation is laid out."""
HEAD = "head.safetensors"
"""Only in the bundle of a model that has another head besides the one of words."""
ADAPTER = "adapter.safetensors"
"""In place of the weights, in the bundle of what fine-tuning changed."""
MOST_ADAPTERS = 20
"""One on the other."""
MOST_TABLES = 1 << 27
"""Bytes of the tables of rotary positions, beside four times those of the weights: no file holds them."""
LARGEST_LOSS = 1e300
"""A whole number in a file can be larger than any float."""
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")


@dataclass(frozen=True)
class Bundle:
    """All that sampling needs: the model, what it was built from, and the tokenizer it was trained with."""

    config: GPTConfig
    model: GPT
    tokenizer: Tokenizer
    chat: ChatFormat | None = None
    """How a conversation is laid out, if the model was taught to hold one."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids at which generation ends: of a reply, and of a text."""
        return self.tokenizer.end_ids if self.chat is None else self.chat.end_ids(self.tokenizer)

    @property
    def n_ids(self) -> int:
        """Ids below this can come out; those above are padding, or the beginnings of messages."""
        return self.tokenizer.vocab_size if self.chat is None else self.chat.n_sayable(self.tokenizer)


@dataclass(frozen=True)
class Base:
    """The bundle that an adapter belongs to."""

    folder: Path
    sha256: str
    """Of the file with its weights."""


def save_bundle(
    folder: Path,
    model: nn.Module,
    tokenizer: Tokenizer,
    extra: dict[str, Any] | None = None,
    chat: ChatFormat | None = None,
    head: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a bundle. At every moment the folder holds the old one or the new one, whole.

    Args:
        folder: where; a bundle that is already there is replaced.
        model: a GPT: plain, compiled, or wrapped for data parallelism.
        tokenizer: the one the model was trained with.
        extra: what else the manifest says, for example {"step": 250, "val_loss": 1.5}.
        chat: how a conversation is laid out, if the model knows that.
        head: weights of another head than that of words, if it has one.

    Raises:
        CheckpointError: something else than a bundle is there.
        StorageError: it could not be written; the old one is as it was.
    """
    gpt = unwrap(model)
    if not isinstance(gpt, GPT):
        raise TypeError(f"a bundle holds a GPT, and this is a {type(gpt).__name__}")
    with _new_bundle(folder) as temporary:
        write_bundle_files(temporary, plain_state_dict(gpt), gpt.config, tokenizer)
        if chat is not None:
            atomicio.write_json(temporary / CHAT, chat.to_json())
        if head is not None:
            atomicio.write_bytes(temporary / HEAD, safetensors.torch.save(dict(head)))
        write_manifest(temporary, extra or {})


def save_adapter(
    folder: Path, adapter: Adapter, base: Base, bundle: Bundle, extra: dict[str, Any] | None = None
) -> None:
    """Write what fine-tuning changed; `load_bundle` adds it to what it began from: the bits that were trained.

    The base is found by its place as seen from the adapter: the two may be moved together.

    Args:
        folder: where; a bundle that is already there is replaced.
        adapter: what was learned.
        base: what it began from.
        bundle: the fine-tuned model's config, tokenizer and chat are kept.
        extra: what else the manifest says.

    Raises:
        CheckpointError: something else than a bundle is there.
        StorageError: it could not be written; the old one is as it was.
    """
    where, here = base.folder.resolve(), folder.resolve()
    try:
        place = Path(os.path.relpath(where, here)).as_posix()
    except ValueError:  # on another drive of Windows
        place = where.as_posix()
    note = {"base": place, "base_sha256": base.sha256, "scale": adapter.scale}
    with _new_bundle(folder) as temporary:
        write_bundle_files(temporary, adapter.to_tensors(), bundle.config, bundle.tokenizer, ADAPTER)
        if bundle.chat is not None:
            atomicio.write_json(temporary / CHAT, bundle.chat.to_json())
        write_manifest(temporary, {**(extra or {}), **note})


def base_at(path: Path | str, checkpoint: str | int = "best") -> Base:
    """The bundle that is meant, and what its weights are known by.

    Raises:
        CheckpointError: there is no such thing, or it is damaged.
    """
    folder = find_bundle(path, checkpoint)
    sha256s = _check_files(folder)
    return Base(folder, sha256s[ADAPTER if ADAPTER in sha256s else WEIGHTS])


@contextmanager
def _new_bundle(folder: Path) -> Iterator[Path]:
    """A folder to be filled, which then takes a bundle's place."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not looks_like_bundle(folder)):
        raise CheckpointError(f"{folder} exists and is not a bundle; it was left alone, choose another name")
    previous = _previous(folder)
    with atomicio.new_folder(folder) as temporary:
        yield temporary
        if folder.exists():
            if previous.exists():
                atomicio.remove_tree(previous)
            # A folder cannot be replaced in one step; until the new one stands, the old one is found by this name.
            atomicio.replace(folder, previous)
    if previous.exists():
        atomicio.remove_tree(previous)


def write_bundle_files(
    folder: Path, weights: Mapping[str, Tensor], config: GPTConfig, tokenizer: Tokenizer, name: str = WEIGHTS
) -> None:
    """Write a bundle's three files into a folder that the caller makes atomic and vouches for in a manifest.

    Args:
        folder: an existing folder.
        weights: as `plain_state_dict` gives them.
        config: what the model was built from.
        tokenizer: the one the model was trained with.
        name: of the file with the weights.

    Raises:
        StorageError: a file could not be written.
    """
    atomicio.write_json(folder / CONFIG, dataclasses.asdict(config))
    atomicio.write_bytes(folder / name, safetensors.torch.save(dict(weights)))
    save_tokenizer(tokenizer, folder)


def load_bundle(
    path: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    checkpoint: str | int = "best",
    context: int | None = None,
) -> Bundle:
    """Load a model that is ready to speak, in evaluation mode. Draws nothing from the global generator.

    Args:
        path: a bundle, a checkpoint, or the folder of a training run.
        device: where the model goes.
        dtype: of its weights.
        checkpoint: of a run: "best", "last", or a step.
        context: the longest window that it is read with, in tokens; None: the model's own.

    Raises:
        CheckpointError: nothing to load there, or it is damaged, or its parts do not fit together.
        ConfigError: the model has no such context, or is larger than the memory that is free.
    """
    folder = find_bundle(path, checkpoint)
    listed = _check_files(folder)
    config = read_config(folder)
    try:
        tokenizer = load_tokenizer(folder)
    except DataError as error:
        raise CheckpointError(f"{folder / TOKENIZER}: {error}") from error
    chat = read_chat(folder, config) if CHAT in listed else None
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens and the model {config.vocab_size}; "
            "they do not belong together"
        )
    _require_layers(folder, config)
    try:
        outline = blank_gpt(config, "meta")  # costs no memory, whatever sizes a damaged config asks for
    except RuntimeError as error:
        raise CheckpointError(f"{folder / CONFIG} asks for sizes that no machine has: {error}") from error
    config = narrowed(config, context, path)
    weights = _read_adapted(folder, outline) if ADAPTER in listed else read_weights(folder / WEIGHTS, outline)
    _require_memory(folder, config, outline)
    model = blank_gpt(config)
    model.load_state_dict(cut_positions(weights, config), strict=False)
    return Bundle(config, model.to(device, dtype).eval(), tokenizer, chat)


def contexts(paths: Sequence[Path | str], context: int | None) -> list[int | None]:
    """The context to load each of several models with: the one that is given, or the model's own if that is shorter.

    Args:
        paths: as `load_bundle` takes them.
        context: in tokens; None: each model's own.

    Raises:
        CheckpointError: there is no bundle.
        ConfigError: no model has such a context.
    """
    if context is None:
        return [None] * len(paths)
    own = [read_config(path).block_size for path in paths]
    longest = max(range(len(own)), key=own.__getitem__)
    narrowed(read_config(paths[longest]), context, paths[longest])
    return [min(context, each) for each in own]


def _require_layers(folder: Path, config: GPTConfig) -> None:
    """Check a config's layers against those in the file of weights: each costs time to build, even without memory.

    Raises:
        CheckpointError: there are others, or a base of an adapter is its own.
    """
    seen = [folder.resolve()]
    while os.path.lexists(seen[-1] / ADAPTER):
        base = find_bundle(_place_of_base(seen[-1])[0]).resolve()
        if base in seen:
            raise CheckpointError(
                f"{folder} is an adapter whose base is {base}, which is an adapter of it; no model is"
            )
        seen.append(base)
        if len(seen) > MOST_ADAPTERS + 1:
            raise CheckpointError(f"{folder} is an adapter of an adapter, and so on for more than {MOST_ADAPTERS}")
    file = seen[-1] / WEIGHTS
    layers = {name.split(".")[1] for name in tensor_names(file) if name.startswith("h.")}
    if len(layers) != config.n_layer:
        raise CheckpointError(
            f"{file} has the weights of {len(layers)} layers, and {folder / CONFIG} says {config.n_layer}"
        )


def _require_memory(folder: Path, config: GPTConfig, outline: GPT) -> None:
    """Refuse a model that the main memory cannot hold, before the kernel kills the process."""
    tables = 0 if config.position == "learned" else 4 * config.block_size * config.head_width()
    weights, known = 4 * outline.n_parameters(), memory_of()
    if tables > MOST_TABLES + 4 * weights:
        raise ConfigError(
            f"{folder} has {weights / 1e6:,.1f} MB of weights, and a context of {config.block_size:,} tokens takes "
            f"tables of {tables / 1e6:,.1f} MB; give a shorter one with --context"
        )
    needed = weights + tables
    if known is not None and needed > known.free:
        raise ConfigError(
            f"the weights of {folder} take {needed / 1e9:,.1f} GB, and {known.free / 1e9:,.1f} GB of memory are free; "
            "end other programs, or take a smaller model"
        )


def read_config(path: Path | str) -> GPTConfig:
    """What the model of a bundle, a checkpoint or a run was built from.

    Raises:
        CheckpointError: there is no such thing, or it is damaged.
    """
    file = find_bundle(path) / CONFIG
    try:
        return from_dict(GPTConfig, read_json_object(file))
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from error


def find_bundle(path: Path | str, checkpoint: str | int = "best") -> Path:
    """The folder that holds the three files of the bundle that is meant.

    The best of a run is `RUN/bundle`, or before training has ended the checkpoint with the lowest validation loss,
    or the newest where none was measured.

    Args:
        path: a bundle, a checkpoint, or the folder of a training run.
        checkpoint: of a run: "best", "last", or a step.

    Raises:
        CheckpointError: there is no such thing.
    """
    if path == "":  # Python takes it for the folder in which one stands
        raise CheckpointError("the path of the model is empty; give the folder of a bundle, a checkpoint or a run")
    path = _standing(Path(path))
    if path.is_file():
        hint = "; a pickle is never opened here, because it can run code" if path.suffix in PICKLES else ""
        raise CheckpointError(f"{path} is a file; give the folder of a bundle, a checkpoint or a run{hint}")
    if not path.is_dir():
        raise CheckpointError(f"there is no {path}; give the folder of a bundle, a checkpoint or a run")
    inner, steps = _standing(path / "bundle"), model_checkpoints(path / "checkpoints")
    if steps and not looks_like_bundle(path) and not (checkpoint == "best" and inner.is_dir()):
        return _choose(steps, str(checkpoint), path) / "bundle"
    if checkpoint != "best":
        raise CheckpointError(f"{path} has no checkpoints to choose {checkpoint!r} from; leave the choice out")
    if _is_of_transformers(path):
        command = f"groundling import hf {shlex.quote(str(path))} OUT"
        raise CheckpointError(f"{path} is a model in the layout of transformers; import it: {command}")
    if looks_like_bundle(path):
        return path
    if inner.is_dir():
        return inner
    if finished_checkpoints(path / "checkpoints"):
        raise CheckpointError(
            f"{path} is a stage that was interrupted before it left a model; go on with it: the same command, and "
            "--resume"
        )
    raise CheckpointError(
        f"{path} is not a bundle (a folder with {', '.join(FILES)} and {MANIFEST}), "
        "nor a checkpoint or a run that has saved one"
    )


def require_speaker(path: Path | str) -> None:
    """Check that the model at a path speaks, and does not judge what others say.

    Raises:
        ConfigError: it is a reward model.
        CheckpointError: there is no bundle.
    """
    if os.path.lexists(find_bundle(path) / HEAD):
        raise ConfigError(f"{path} is a reward model: it judges replies, and says none; give the model that it judges")


def finished_checkpoints(folder: Path) -> dict[int, Path]:
    """Step -> folder, oldest first. The order is that of the steps, never that of the clock."""
    found = {int(match[1]): path for path in folder.glob("step-*") if (match := re.fullmatch(r"step-(\d+)", path.name))}
    return {step: found[step] for step in sorted(found) if os.path.lexists(found[step] / MANIFEST)}


def model_checkpoints(folder: Path) -> dict[int, Path]:
    """Those that hold a model which speaks; the checkpoints of alignment's stages hold none."""
    return {step: path for step, path in finished_checkpoints(folder).items() if (path / "bundle").is_dir()}


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights under the names of the plain model, whatever wraps it; a tied matrix once.

    `torch.compile` puts `_orig_mod.` before names and data parallelism `module.`; a file that kept them could be
    loaded only by a model wrapped in the same way. Of a model that is sharded over ranks, the whole tensors are
    gathered; all ranks call this together then.
    """
    state: dict[str, Tensor] = unwrap(model).state_dict(keep_vars=True)
    first_names: dict[int, str] = {}
    for name, tensor in state.items():
        first_names.setdefault(id(tensor), name)
    # Blocks that were compiled one by one carry the prefix in the middle of their names.
    return {name.replace("_orig_mod.", ""): _whole(state[name].detach()) for name in first_names.values()}


def read_weights(file: Path, model: nn.Module) -> dict[str, Tensor]:
    """Read weights whose names and shapes are exactly those of `model`'s `plain_state_dict`.

    They go into the plain model by `load_state_dict(..., strict=False)`: a tied matrix is there once.

    Raises:
        CheckpointError: this is not a safetensors file, or it belongs to another model.
    """
    weights = read_tensors(file)
    require_fit(weights, model, file)
    return weights


def _read_adapted(folder: Path, model: GPT) -> dict[str, Tensor]:
    """An adapter's base with the adapter added: the weights of `model`."""
    where, sha256, scale = _place_of_base(folder)
    if (base := base_at(where)).sha256 != sha256:
        raise CheckpointError(
            f"{folder} is an adapter of another model than {where} holds now; "
            f"the file with that one's weights has the SHA-256 {sha256}"
        )
    adapter = Adapter.from_tensors(read_tensors(folder / ADAPTER), scale)
    before = load_bundle(base.folder).model
    weights = adapter.applied_to(cut_positions(plain_state_dict(before), model.config), model.config.vocab_size)
    require_fit(weights, model, folder / ADAPTER)
    return weights


def _place_of_base(folder: Path) -> tuple[Path, str, float]:
    """Where an adapter's base is, the SHA-256 of its weights, and the adapter's scale."""
    facts = read_manifest(folder)
    place, sha256, scale = (facts.get(key) for key in ("base", "base_sha256", "scale"))
    if not isinstance(place, str) or not isinstance(sha256, str) or not isinstance(scale, float):
        raise CheckpointError(f"{folder / MANIFEST} does not say which model the adapter belongs to")
    if not math.isfinite(scale):
        raise CheckpointError(f"{folder / MANIFEST} has the scale {scale}, which is no finite number")
    where = Path(os.path.normpath(folder.resolve() / place.replace("\0", "?")))
    if not where.is_dir():
        raise CheckpointError(f"{folder} is an adapter of {where}, which is not there; put it there again")
    return where, sha256, scale


def require_fit(weights: Mapping[str, Tensor], model: nn.Module, file: Path) -> None:
    """Check that the names and shapes of weights are exactly those of `model`'s `plain_state_dict`.

    Raises:
        CheckpointError: they are not; `file` is where they were read.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in plain_state_dict(model).items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = [
        f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'no such tensor')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{file} does not fit the model: {'; '.join(wrong[:3])}{more}")


def _whole(tensor: Tensor) -> Tensor:
    """A tensor that lies on this rank in one piece: a sharded one (DTensor) has no memory of its own to be written."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.contiguous()


def read_chat(folder: Path, config: GPTConfig) -> ChatFormat | None:
    """How a bundle's model lays out a conversation; None: it does not chat.

    Raises:
        CheckpointError: the file is damaged, or belongs to another model.
    """
    if not os.path.lexists(folder / CHAT):
        return None
    try:
        chat = ChatFormat.from_json(read_json_object(folder / CHAT))
    except DataError as error:
        raise CheckpointError(f"{folder / CHAT}: {error}") from error
    if max(chat.special_ids()) >= config.vocab_size:
        raise CheckpointError(
            f"{folder / CHAT} has ids beyond the model's {config.vocab_size}; they do not belong together"
        )
    return chat


def _check_files(folder: Path) -> dict[str, str]:
    """A bundle's files against its own manifest, or that of the checkpoint it lies in; return name -> SHA-256."""
    own = os.path.lexists(folder / MANIFEST) or not os.path.lexists(folder.parent / MANIFEST)
    root, under = (folder, "") if own else (folder.parent, f"{folder.name}/")
    listed = check_manifest(root, under)["files"]
    for name in (CONFIG, ADAPTER if under + ADAPTER in listed else WEIGHTS, TOKENIZER):
        if under + name not in listed:
            raise CheckpointError(f"{root / MANIFEST} does not list {under + name}; {folder} is not a whole bundle")
    return {name.removeprefix(under): entry["sha256"] for name, entry in listed.items()}


def looks_like_bundle(folder: Path) -> bool:
    """Whether a folder has a bundle's files, or some of them."""
    return any((folder / name).exists() for name in FILES)


def _is_of_transformers(folder: Path) -> bool:
    """Whether another program's `config.json` is in a folder: `transformers` names a family of models there."""
    if os.path.lexists(folder / MANIFEST):
        return False
    try:
        return "model_type" in read_json_object(folder / CONFIG, links=True)
    except CheckpointError:
        return False


def _previous(folder: Path) -> Path:
    """Where the bundle that is being replaced stands for a moment."""
    return folder.with_name(folder.name + ".previous")


def _standing(folder: Path) -> Path:
    """The folder, or what a crash in the middle of its replacement left of it: the whole old one."""
    return _previous(folder) if not folder.exists() and _previous(folder).is_dir() else folder


def _choose(steps: dict[int, Path], checkpoint: str, run: Path) -> Path:
    """The best, the last, or the one of a step."""
    if checkpoint == "last":
        return list(steps.values())[-1]
    if checkpoint == "best":
        return min(reversed(steps.values()), key=_rank)
    if checkpoint.isdecimal() and int(checkpoint) in steps:
        return steps[int(checkpoint)]
    raise CheckpointError(
        f"{run} has no checkpoint {checkpoint!r}; it has: best, last, {', '.join(str(step) for step in steps)}"
    )


def val_loss_of(manifest: Mapping[str, Any]) -> float | None:
    """A checkpoint's validation loss, as its manifest tells it; None where none was measured."""
    value = manifest.get("val_loss")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < LARGEST_LOSS else None


def _rank(checkpoint: Path) -> float:
    loss = val_loss_of(read_manifest(checkpoint))
    return math.inf if loss is None else loss
