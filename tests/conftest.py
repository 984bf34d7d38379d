"""What all tests share: one thread (the tests themselves run side by side), and no colours in what is read back."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from groundling.data.corpus import DataConfig
from groundling.model.config import GPTConfig
from groundling.system.logs import console_logging, show_decoder
from groundling.system.runtime import RuntimeConfig
from groundling.train.pretrain import pretrain
from groundling.train.settings import PretrainConfig
from servekit import Served, serving, write_models

# Two busy threads on a shared core wait for each other; subprocesses inherit this.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["NO_COLOR"] = "1"
torch.set_num_threads(1)

settings.register_profile("all", deadline=None)  # an example may take as long as a busy machine needs
settings.register_profile("fast", settings.get_profile("all"), max_examples=20)
"""What `make check` draws of each law; `make test` draws a hundred."""
settings.load_profile("all")


TESTS = Path(__file__).parent
SLOW_FIXTURES = {"models", "house", "classifier"}
"""Each starts a server, or trains a model for one."""
LONG_TO_IMPORT = (
    "serve/browser",
    "export/test_chat_export.py",
    "export/test_hf.py",
    "export/test_importing.py",
    "export/test_instruct.py",
    "serve/test_schema.py",
    "export/test_nanogpt.py",
)
"""A browser's tests are slow anyway; the others bring transformers or schemathesis, which each process would import."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out of `make check` what takes seconds to be looked at only."""
    here = collection_path.relative_to(TESTS).as_posix() if TESTS in collection_path.parents else ""
    return True if config.option.markexpr == "not slow" and here in LONG_TO_IMPORT else None


def pytest_addoption(parser: pytest.Parser) -> None:
    """An option of tests/test_snapshots.py."""
    parser.addoption("--update-snapshots", action="store_true", help="rewrite the files in tests/snapshots")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a test that needs a server and is not marked slow: `make check` would run it."""
    for item in items:
        needs = SLOW_FIXTURES & set(getattr(item, "fixturenames", ()))
        if needs and item.get_closest_marker("slow") is None:
            raise pytest.UsageError(f"{item.nodeid} uses {', '.join(sorted(needs))}; mark it with pytest.mark.slow")


@pytest.fixture(autouse=True)
def _forget_determinism():
    """A run switches deterministic algorithms on for its process; the next test starts without."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _notes_on_stderr():
    """Log as the command does, also where a test calls the module of a verb."""
    with console_logging():
        yield


class _Notes(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def notes(_notes_on_stderr) -> list[str]:
    """What is logged in the test, by the decoder too."""
    show_decoder()
    handler = _Notes()
    logging.getLogger("groundling").addHandler(handler)
    return handler.lines


@pytest.fixture(scope="session")
def story(tmp_path_factory) -> Path:
    """A text file of our own: 6,000 words of ten, each chosen by the one before or, at times, by chance."""
    words = ["the", "king", "and", "fool", "did", "speak", "of", "love", "so", "well\n"]
    chance = np.random.Generator(np.random.Philox(7)).random(6000)
    place, text = 0, []
    for luck in chance:
        place = int(luck * 30) if luck < 1 / 3 else (place + 1) % len(words)
        text.append(words[place])
    path = tmp_path_factory.mktemp("story") / "story.txt"
    path.write_text(" ".join(text), encoding="utf-8")
    return path


def _tiny(story: Path, out_dir: Path, **changes) -> PretrainConfig:
    model = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "dropout": 0.2} | changes.pop("model", {})
    how = {"device": "cpu", "dtype": "float32", "compile": "off", "tune_allocator": False} | changes.pop("runtime", {})
    numbers = {"steps": 6, "batch_size": 4, "eval_every": 3, "save_every": 3, "log_every": 1, "sample_tokens": 8}
    return PretrainConfig(
        out_dir=out_dir,
        data=DataConfig(path=str(story)),
        model=GPTConfig(**model),
        runtime=RuntimeConfig(**how),
        **{**numbers, **changes},
    )


@pytest.fixture
def tiny_config(story, tmp_path, monkeypatch):
    """Makes the config of a run of a second: `tiny_config("name", steps=..., model={...}, runtime={...})`."""
    monkeypatch.setenv("GROUNDLING_CACHE", str(story.parent / "cache"))
    return lambda name="run", **changes: _tiny(story, tmp_path / name, **changes)


@pytest.fixture(scope="session")
def finished_run(story) -> Path:
    """The folder of a run of six steps that has ended; whoever changes something in it takes a copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(story.parent / "cache"))
        pretrain(_tiny(story, story.parent / "run"))
    torch.use_deterministic_algorithms(False)
    return story.parent / "run"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models to serve: base, talker and pairs; whoever changes something in one takes a copy."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def server(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of all of them, for tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("server")
    words = (*models.values(), "--rankings", folder / "rankings.sqlite", "--runs", folder / "runs", "--safety", "off")
    with serving(*words, "--max-tokens", 100_000) as served:
        yield served
