"""Where metrics go: the record survives crashes and resumptions, and people see what matters."""

import copy
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundling.errors import MissingExtraError
from groundling.system import console
from groundling.system.console import ConsoleSink
from groundling.system.logs import FIGURES, ConsoleHandler, console_logging, format_record, show_decoder
from groundling.system.metrics import JsonlSink, optional_sinks, read_records
from groundling.system.optional import missing_extra

log = logging.getLogger("groundling.tests")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, steps, **options) -> None:
    sink = JsonlSink(path, **options)
    for step in steps:
        sink.write({"step": step, "loss": 1 / step})
    sink.close()


def steps(path) -> list[int]:
    return [record["step"] for record in read_records(path)]


def test_a_new_run_begins_a_new_record_and_every_line_is_json(path):
    write(path, [1, 2])
    write(path, [1, 2, 3])
    lines = path.read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"step": n, "loss": 1 / n} for n in (1, 2, 3)]


@pytest.mark.parametrize(("resumed_at", "kept"), [(0, []), (2, [1, 2]), (3, [1, 2, 3]), (9, [1, 2, 3, 4])])
def test_on_resume_what_came_after_the_checkpoint_is_dropped(path, resumed_at, kept):
    write(path, [1, 2, 3, 4])
    write(path, [77], resumed_at=resumed_at)
    assert steps(path) == [*kept, 77]


@pytest.mark.parametrize("left", [1, 5, 10, 20])
def test_a_last_line_that_a_crash_has_cut_is_passed_over_and_does_not_spoil_the_next(path, left):
    write(path, [1, 2, 3])
    whole = path.read_bytes()
    line = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole[: len(whole) - len(line)] + line[:left])
    assert steps(path) == [1, 2]
    write(path, [3, 4], resumed_at=2)
    assert steps(path) == [1, 2, 3, 4]
    assert all(json.loads(line) for line in path.read_text("utf-8").splitlines())


DAMAGED = [
    b"[1]",
    b'{"loss": 1}',
    b'"step"',
    b"nonsense",
    b"",
    b'{"step": 6, "loss\xff": 1}',
    b'{"step": "6"}',
    b'{"step": true}',
    b'{"step": 6, "loss": "1.5"}',
    b'{"step": ' + b"9" * 5000 + b"}",
    b"[" * 100_000,
]


def test_what_is_no_record_is_passed_over_and_counted(path, tmp_path, capsys):
    path.write_bytes(b"".join(line + b"\n" for line in [*DAMAGED, b'{"step": 5}']))
    assert steps(path) == [5]
    assert capsys.readouterr().err == f"{path}: skipped {len(DAMAGED)} damaged lines\n"
    assert read_records(tmp_path / "nothing") == []


@given(st.data())
@settings(max_examples=60)
def test_a_record_with_one_changed_byte_loses_at_most_two_lines(data):
    """One that ends up as two, or one that its neighbour is joined to."""
    whole = b"".join(json.dumps({"step": n, "loss": n / 7}).encode() + b"\n" for n in range(1, 9))
    place, byte = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
        kept = read_records(path)
        sink = JsonlSink(path, resumed_at=8)
        sink.write({"step": 9, "loss": 1.0})
        assert len(kept) >= 6
        assert len(read_records(path)) <= 9


TRAINED = {"loss": 2.34567, "tokens_per_s": 12345.6, "utilisation": 0.5, "memory_mb": 1234.5}
EVALUATED = {"val_loss": 1.5, "best_val_loss": 1.25}


def test_a_record_in_words():
    assert format_record(TRAINED, FIGURES) == "loss 2.3457, 12,346 tokens/s, utilisation 50%, 1,234 MB"
    assert format_record({"step": 1, **EVALUATED}, FIGURES) == "validation loss 1.5000 (best 1.2500)"
    both = {**EVALUATED, "train_loss": 1.25}
    assert format_record(both, FIGURES) == "validation loss 1.5000 (best 1.2500), training loss 1.2500"
    assert format_record({}, FIGURES) == format_record({}) == ""
    of_a_stage = {"step": 3, "loss": 0.123456, "kl": float("inf"), "pairs": 12, "lr_factor": 1.0, "why": "x"}
    assert format_record(of_a_stage) == "loss 0.1235, kl inf, pairs 12, why x"


def test_without_a_terminal_a_line_now_and_then_and_one_for_each_evaluation(capsys):
    sink = ConsoleSink(n_steps=30)
    for step in range(1, 22):
        sink.write({"step": step, "eta_s": 99.6, **TRAINED})
        if step == 5:
            sink.write({"step": step, **EVALUATED})
    sink.close()
    said = capsys.readouterr()
    assert said.out == "", "stdout is for results"
    lines = said.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 1", "step 5", "step 10", "step 20"]
    assert lines[1] == "step 5: validation loss 1.5000 (best 1.2500)"
    assert lines[0].endswith("1,234 MB  ETA 100 s")


def test_without_a_terminal_slow_steps_are_each_a_line(capsys, monkeypatch):
    clock = iter([0.0, 0.0, 3.0, 3.0, 4.0, 6.0, 6.0])
    monkeypatch.setattr("groundling.system.console.time.monotonic", lambda: next(clock))
    sink = ConsoleSink(n_steps=9, plain_every_s=2.0)
    for step in range(1, 5):
        sink.write({"step": step, **TRAINED})
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["step 1", "step 2", "step 4"]


def test_on_a_terminal_a_bar_with_the_newest_figures(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    sink = ConsoleSink(n_steps=10, first_step=4)
    for step in (5, 6):
        sink.write({"step": step, **TRAINED})
    sink.write({"step": 6, **EVALUATED})
    log.info("[a line] for people")
    sink.close()
    err = capsys.readouterr().err
    assert "step 6: validation loss 1.5000 (best 1.2500)" in err
    assert "[a line] for people" in err
    assert "loss 2.3457" in err
    assert "6/10" in err
    assert "ETA" in err
    assert "step 5:" not in err


def test_no_name_is_no_sink(tmp_path):
    assert optional_sinks([], tmp_path, {}, "id") == []


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_package_that_is_not_installed_names_its_extra(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed, whether or not it is
    with pytest.raises(MissingExtraError, match=rf"'{name}' is not installed.*extra 'track': .*pip install"):
        optional_sinks([name], tmp_path, {}, "id")


def test_notes_go_to_stderr_as_they_are_and_to_no_other_handler(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(sys.stdout)])
    log.info("hello 100 %s")
    log.warning("[a] :smile:")
    assert capsys.readouterr() == ("", "hello 100 %s\n[a] :smile:\n")


def test_only_the_first_rank_prints(capsys, monkeypatch):
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        log.warning(rank)
    assert capsys.readouterr().err == "0\n"


def test_which_backend_decodes_is_printed_only_where_it_was_asked_for(capsys):
    decoder = logging.getLogger("groundling.sample.auto_runner")
    decoder.info("unasked")
    show_decoder()
    decoder.info("asked")
    with console_logging():  # a command inside a command: nothing is printed twice
        decoder.info("unasked")
        log.info("once")
    decoder.info("asked again")
    assert capsys.readouterr().err.splitlines() == ["asked", "once", "asked again"]


def test_a_bar_that_was_closed_takes_no_lines(capsys):
    first, second = ConsoleSink(n_steps=1), ConsoleSink(n_steps=1)
    first.close()
    assert ConsoleHandler.print_above_bar == second.print
    second.close()
    log.info("after")
    assert capsys.readouterr().err == "after\n"


LIBRARY = """
import logging
log = logging.getLogger("groundling.data.corpus")
import groundling.system.logs, groundling.data.datasets
log.info("a note")
log.warning("a warning")
"""


def test_as_a_library_it_prints_warnings_only_and_leaves_logging_to_its_user():
    configured = "import logging; logging.basicConfig(level='INFO', format='%(name)s %(message)s')"
    said = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
        for code in (LIBRARY, configured + LIBRARY)
    ]
    assert said == ["a warning\n", "groundling.data.corpus a note\ngroundling.data.corpus a warning\n"]


def test_what_takes_a_while_is_said_before_it_begins(capsys, monkeypatch):
    with console.busy("measuring ..."):
        assert capsys.readouterr() == ("", "measuring ...\n")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    with console.busy("measuring ..."):
        pass
    said = capsys.readouterr()
    assert said.out == ""
    assert "measuring ..." in said.err


def test_a_missing_extra_reaches_the_parent_of_a_worker_as_it_was_raised():
    error = copy.copy(missing_extra("wandb", "track"))  # in the way that a pickle takes
    assert type(error) is MissingExtraError
    assert str(error) == str(missing_extra("wandb", "track"))
