"""Row 68: what lies in a folder that others made is read only where it is a regular file; no link leads out of it."""

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from groundling import cli
from groundling.bundle import load_bundle, save_bundle
from groundling.bundle.layout import FILES
from groundling.data import datasets
from groundling.data.corpus import DataConfig, prepare
from groundling.data.folders import find_files
from groundling.data.text_files import TextFiles
from groundling.errors import CheckpointError, ConfigError, GroundlingError, StorageError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.serve.runs.curves import last_values, read_delta
from groundling.serve.runs.folders import RunFolder, find_runs, ladder_of, run_info
from groundling.storage import atomic, download, files
from groundling.storage.manifest import MANIFEST
from groundling.system import metrics
from groundling.system.metrics import JsonlSink, read_records
from groundling.text import gpt2
from groundling.text.char import CharTokenizer
from groundling.train import run_folder
from groundling.train.arguments import parse_arguments
from groundling.train.checkpoints.checkpoint import Checkpoints


def link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_outside(path: Path) -> None:
    outside = path.parent.parent / "outside"
    outside.mkdir(exist_ok=True)
    shutil.copy(path.parent.parent / "sound" / path.name, outside / path.name)
    path.symlink_to(outside / path.name)


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def listening(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def vast(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100 << 30)


ATTACKS: tuple[Callable[[Path], None], ...] = (
    *(link_to_zeros, link_outside, link_to_itself, os.mkfifo, Path.mkdir, listening, vast),
)


@contextmanager
def in_time(seconds: int = 20) -> Iterator[None]:
    """A reader that waits for a pipe is not waited for."""

    def too_long(*_: object) -> None:
        raise AssertionError("it does not come to an end")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def victim(tmp_path):
    (tmp_path / "victim").write_text("mine\n")
    return tmp_path / "victim"


def test_the_files_of_a_bundle(tmp_path, capsys):
    config = GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=3)
    save_bundle(tmp_path / "sound", GPT(config), CharTokenizer("abc"))
    for name in (*FILES, MANIFEST):
        for attack in ATTACKS:
            folder = tmp_path / "attacked"
            shutil.copytree(tmp_path / "sound", folder)
            (folder / name).unlink()
            attack(folder / name)
            with in_time(), pytest.raises(CheckpointError) as refused:
                load_bundle(folder)
            assert "\n" not in str(refused.value)
            assert cli.main(["verify-checkpoint", str(folder)]) == 1
            shutil.rmtree(folder)
    capsys.readouterr()
    (tmp_path / "link").symlink_to(tmp_path / "sound")
    load_bundle(tmp_path / "link")  # a folder may be one


def test_no_folder_that_a_manifest_names_leads_out_of_it(tiny, tmp_path):
    step = tiny.save(Checkpoints(tmp_path / "checkpoints"), tiny.state(5))
    load_bundle(step)
    (step / "bundle").rename(tmp_path / "elsewhere")
    (step / "bundle").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"cannot read .*it is a link"):
        load_bundle(step)


RECORDS = {
    "env.json": '{"stage": "sft"}',
    "summary.json": '{"ended": "finished"}',
    "metrics.jsonl": '{"step": 1, "loss": 2}\n',
    "ladder.json": '{"rungs": [{"rung": "s1"}]}',
    ".lock.pid": f"{os.getpid()}\n",
}


def test_the_records_of_a_run_that_is_watched(tmp_path, monkeypatch):
    """The page of training lists what is sound, and goes on."""
    monkeypatch.setattr(metrics, "MAX_BYTES", 1 << 22)
    sound = tmp_path / "sound"
    sound.mkdir()
    for name, text in RECORDS.items():
        (sound / name).write_text(text)
    whole = run_info(RunFolder("run", sound))
    assert (whole["kind"], whole["state"], whole["step"], whole["has_ladder"]) == ("sft", "live", 1, True)
    for name in RECORDS:
        for attack in ATTACKS:
            folder = tmp_path / "runs"
            shutil.copytree(sound, folder)
            (folder / name).unlink()
            attack(folder / name)
            run = RunFolder("run", folder)
            with in_time():
                told = run_info(run)
                assert read_delta(folder / "metrics.jsonl", 0).n_rows == (name != "metrics.jsonl")
                assert bool(last_values(folder / "metrics.jsonl")) == (name != "metrics.jsonl")
                assert bool(ladder_of(run)) == (name != "ladder.json")
                assert len(read_records(folder / "metrics.jsonl")) == (name != "metrics.jsonl")
                assert run_folder.read_summary(folder) == ({} if name == "summary.json" else {"reason": "finished"})
            if attack is not vast:
                assert told["kind"] == ("pretrain" if name == "env.json" else "sft" if told["step"] else "ladder")
            assert (told["state"] == "ended") == (name == ".lock.pid" or told["kind"] == "ladder")
            shutil.rmtree(folder)


def test_no_word_of_a_run_that_cannot_be_sent_is_told(tmp_path):
    """Half of a surrogate pair, and a number without end, were an error of the server."""
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    half = '"\\ud800"'
    (folder / "env.json").write_text(f'{{"stage": {half}}}')
    (folder / "summary.json").write_text(f'{{"ended": {half}}}')
    (folder / "ladder.json").write_text(f'{{"rungs": [{{"rung": {half}, "sample": {half}, "val_loss": 1e999}}]}}')
    (folder / "metrics.jsonl").write_text(f'{{"step": 1, {half}: 1, "loss": 2, "sample": {half}}}\n')
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/runs/\xff")).mkdir()
    (tmp_path / "runs" / "circle").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "itself").symlink_to("itself")
    runs = find_runs(tmp_path / "runs", {"served": tmp_path / "runs" / "itself"})
    assert list(runs) == ["run"]
    news = read_delta(folder / "metrics.jsonl", 0)
    told = [run_info(runs["run"]), ladder_of(runs["run"]), news.samples, news.points()]
    json.dumps(told, ensure_ascii=False, allow_nan=False).encode("utf-8")
    assert news.points() == {"loss": ([1], [2])}


def test_a_lock_overwrites_nothing(tmp_path, victim):
    for name, attack in ((".lock", "link"), (".lock", "pipe"), (".lock.pid", "link"), (".lock.pid", "pipe")):
        run = tmp_path / f"{name}-{attack}"
        run.mkdir()
        os.mkfifo(run / name) if attack == "pipe" else (run / name).symlink_to(victim)
        with in_time():
            if name == ".lock":
                with pytest.raises(StorageError, match=r"lock: it is a (link|pipe), .*; remove it, and run again"):
                    run_folder.locked(run).__enter__()
                (run / name).unlink()
            with run_folder.locked(run):
                assert run_folder.holder_of(run) == os.getpid()
        assert victim.read_text() == "mine\n"
    run = tmp_path / "held"
    with run_folder.locked(run):
        (run / ".lock.pid").unlink()
        (run / ".lock.pid").symlink_to("/dev/zero")
        with in_time(), pytest.raises(CheckpointError, match=r"another process \(pid unknown\)"):
            run_folder.locked(run).__enter__()


def test_a_lock_on_a_full_disk_is_one_line(tmp_path):
    (tmp_path / "run").mkdir()
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
    try:
        with pytest.raises(StorageError, match=r"cannot write .*\.lock\.pid: the file is larger than"):
            run_folder.locked(tmp_path / "run").__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    with run_folder.locked(tmp_path / "run"):
        pass


def test_of_a_link_the_link_alone_is_removed(tmp_path, victim):
    precious, run = tmp_path / "precious", tmp_path / "run"
    (precious / "deep").mkdir(parents=True)
    (precious / "deep" / "file").write_text("mine")
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    for name in (".tmp-x", "bundle", "tensorboard"):
        (run / name).symlink_to(precious)
    (run / "checkpoints" / "step-00000001" / "inner").symlink_to(precious)
    (run / "summary.json").symlink_to(victim)
    (run / "env.json").symlink_to("nowhere")
    (run / "run.toml").mkdir()
    os.mkfifo(run / ".tmp-pipe")
    run_folder.make_room(run)
    assert list(run.iterdir()) == []
    assert (precious / "deep" / "file").read_text() == victim.read_text().strip() == "mine"


def test_what_is_added_to_a_file_goes_through_no_link(tmp_path, victim):
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(StorageError, match="it is a link, and a regular file is expected; remove it, and run again"):
        atomic.append_line(tmp_path / "link", "theirs")
    assert victim.read_text() == "mine\n"
    os.mkfifo(tmp_path / "pipe")
    with in_time(), pytest.raises(StorageError, match="it is a pipe"):
        atomic.append_line(tmp_path / "pipe", "theirs")


def test_the_settings_of_a_run_and_presets(tmp_path, victim):
    """A run's own settings are in its folder; a preset is named by the user, who may give a link to one."""
    run = tmp_path / "run"
    run.mkdir()
    preset = tmp_path / "preset.toml"
    preset.write_text("steps = 7\n")
    (run / "run.toml").symlink_to(preset)
    with pytest.raises(ConfigError, match=r"^the preset .*run\.toml cannot be read: it is a link"):
        parse_arguments(["--resume", "--out-dir", str(run)])
    (tmp_path / "link.toml").symlink_to(preset)
    assert parse_arguments([str(tmp_path / "link.toml")]).steps == 7
    os.mkfifo(tmp_path / "pipe.toml")
    with in_time(), pytest.raises(ConfigError, match=r"^no preset"):
        parse_arguments([str(tmp_path / "pipe.toml")])
    for text, said in (
        ("x = " + "[" * 5000 + "]" * 5000, "nested too deep"),
        ("x = 1\n" * 300_000, "are read at most"),
    ):
        preset.write_text(text)
        with pytest.raises(ConfigError, match=said):
            parse_arguments([str(preset)])


def test_the_files_of_a_folder_of_texts(tmp_path, monkeypatch):
    """Links are followed there, to files that can be read to their end."""
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "texts"
    folder.mkdir()
    (tmp_path / "elsewhere.txt").write_text("elsewhere " * 50)
    (folder / "link.txt").symlink_to(tmp_path / "elsewhere.txt")
    (folder / "zeros.txt").symlink_to("/dev/zero")
    (folder / "round.txt").symlink_to("round.txt")
    (folder / "round").symlink_to(folder)
    os.mkfifo(folder / "pipe.txt")
    undecodable = Path(os.fsdecode(os.fsencode(folder) + b"/\xff.txt"))
    undecodable.write_text("<html><body>" + "it is text " * 50)
    with in_time():
        for path in (str(folder), f"{folder}/*.txt", f"{folder}/**/*.txt"):
            assert {found.name for found in find_files(path).paths} == {"link.txt", undecodable.name}
        corpus = prepare(DataConfig(path=str(folder)), 8)
    assert corpus.train_part.n_chars > 500
    assert len(corpus.doubts) == 1
    with in_time(), pytest.raises(GroundlingError, match="it is a pipe"):
        list(TextFiles([folder / "pipe.txt"]).pieces())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no names for descriptors")
def test_what_the_user_names_may_be_a_link_or_a_descriptor(tmp_path):
    """`--data.path /dev/stdin < text.txt` reads a regular file."""
    (tmp_path / "text.txt").write_text("words")
    (tmp_path / "link.txt").symlink_to("text.txt")
    with (tmp_path / "text.txt").open() as file:
        for path in (str(tmp_path / "link.txt"), f"/dev/fd/{file.fileno()}"):
            assert "".join(TextFiles(find_files(path).paths).pieces()) == "words"


def test_a_file_that_is_exchanged_while_it_is_looked_at_is_not_read(tmp_path, victim, monkeypatch):
    """What counts is what was opened."""
    (tmp_path / "file").write_text("ours")
    status = files._status

    def exchanged(path, links):
        mode = status(path, links)
        path.unlink()
        path.symlink_to(victim)
        return mode

    monkeypatch.setattr(files, "_status", exchanged)
    with pytest.raises(files.RefusedFileError, match="it is a link"):
        files.read_bytes(tmp_path / "file", 100)
    assert victim.read_text() == "mine\n"


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_lock_on_a_disk_that_has_none(tmp_path, monkeypatch):
    """Some network disks know no flock; a file that was put there first would be taken for the lock of another."""

    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)
    for _ in range(2):
        held = f"another process .pid {os.getpid()}."
        with run_folder.locked(tmp_path / "run"), pytest.raises(CheckpointError, match=held):
            run_folder.locked(tmp_path / "run").__enter__()


def test_a_record_that_cannot_be_read_is_kept_beside_the_one_of_a_run_that_goes_on(tmp_path, monkeypatch, capsys):
    """A disk that fails for a moment, or a file of 1 GiB, was an empty record afterwards."""
    path = tmp_path / "metrics.jsonl"
    lines = "".join(f'{{"step": {step}, "loss": 2}}\n' for step in range(100))
    path.write_text(lines)
    open_regular = files.open_regular
    monkeypatch.setattr(files, "open_regular", lambda _: open_regular(tmp_path / ("x" * 300)))
    JsonlSink(path, resumed_at=50).write({"step": 51})
    monkeypatch.undo()
    assert (kept := tmp_path / "metrics.jsonl.unread-1").read_text() == lines
    assert [record["step"] for record in read_records(path)] == [51]
    why = "all that could not be read (File name too long)"
    assert f"{path}: skipped {why}; the whole file is kept as {kept}" in capsys.readouterr().err
    for number in (2, 3):
        path.write_text(lines)
        monkeypatch.setattr(metrics, "MAX_BYTES", 300)
        JsonlSink(path, resumed_at=50).write({"step": 51})
        monkeypatch.undo()
        assert (kept := tmp_path / f"metrics.jsonl.unread-{number}").read_text() == lines
        assert [record["step"] for record in read_records(path)][-2:] == [12, 51]
        assert f"what follows its first 300 bytes; the whole file is kept as {kept}" in capsys.readouterr().err


def test_what_was_fetched_may_be_a_link_to_the_same_bytes(tmp_path, monkeypatch):
    """Where it says to put the file there, a link will do: its content is known by its hash."""
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "cache"))
    data = b"to be"
    source = dataclasses.replace(
        datasets.SOURCES["tiny_shakespeare"], urls=(), sha256=hashlib.sha256(data).hexdigest(), n_bytes=len(data)
    )
    monkeypatch.setattr(download, "package_archive", lambda _: pytest.fail("it was fetched again"))
    (tmp_path / "text").write_bytes(data)
    source.path().parent.mkdir(parents=True)
    source.path().symlink_to(tmp_path / "text")
    assert datasets.obtain(source).read_bytes() == data
    vocabulary = tmp_path / "cache" / "gpt2" / "encoder.json"
    (tmp_path / "ids").write_text('{"a": 0}')
    monkeypatch.setattr(gpt2, "GPT2_SHA256", atomic.sha256_of(tmp_path / "ids"))
    vocabulary.parent.mkdir()
    vocabulary.symlink_to(tmp_path / "ids")
    monkeypatch.setattr(atomic, "make_folder", lambda _: pytest.fail("the cache may be read-only"))
    assert gpt2.gpt2_ids() == {"a": 0}


def test_a_bundle_of_links_is_copied_with_what_they_lead_to(tmp_path, capsys):
    """As the cache of a hub, git-annex or DVC have it."""
    config = GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=3)
    save_bundle(tmp_path / "blobs", GPT(config), CharTokenizer("abc"))
    for names in ((*FILES, MANIFEST), ("model.safetensors",)):
        snapshot = tmp_path / f"snapshot {len(names)}"
        shutil.copytree(tmp_path / "blobs", snapshot)
        for name in names:
            (snapshot / name).unlink()
            (snapshot / name).symlink_to(tmp_path / "blobs" / name)
        with pytest.raises(CheckpointError, match=r"it is a link, .*; copy the folder with cp -rL$"):
            load_bundle(snapshot)
        subprocess.run(["cp", "-rL", snapshot, tmp_path / f"copy {len(names)}"], check=True)
        load_bundle(tmp_path / f"copy {len(names)}")
    assert cli.main(["tokenizer", "show", str(tmp_path / "snapshot 4" / "tokenizer.json")]) == 0, "the user names it"
    assert "char, 3 ids" in capsys.readouterr().out
