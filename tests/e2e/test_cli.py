"""The command itself, in real processes: its speed, its help, its errors and its exit codes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import groundling
from groundling import cli

SUB_COMMANDS = {
    "data": ("list", "get", "dialogues", "inspect"),
    "rankings": ("simulate", "export", "import", "stats"),
    "safety": ("train", "test"),
    "tokenizer": ("train", "show", "compare"),
    "export": ("hf", "gguf", "bundle"),
    "import": ("hf", "nanogpt"),
}
VERBS = [
    *((verb,) for verb in cli.VERBS),
    *((verb, name) for verb, names in SUB_COMMANDS.items() for name in names),
    ("ladder", "show"),
]
COMMAND = Path(sys.executable).with_name("groundling")


def run(*words: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *words], capture_output=True, text=True, check=False, timeout=120, stdin=subprocess.DEVNULL, **options
    )


def called(capsys, *words: str) -> tuple[int, str, str]:
    """The command in this process, which has torch already: its exit code and what it said."""
    try:
        code = cli.main(words)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    return code, *capsys.readouterr()


def test_help_takes_less_than_three_tenths_of_a_second():
    """Of the processor's time, whatever else the machine does; the best of five."""
    seconds = []
    for _ in range(5):
        before = os.times()
        assert run("--help").returncode == 0
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.3, seconds


@pytest.mark.parametrize("words", [["--help"], ["--version"], [], ["no-such-verb"], ["data", "--help"]], ids=str)
def test_verbs_that_compute_nothing_do_not_import_torch(words):
    code = (
        "import sys, groundling; from groundling.cli import main; main(sys.argv[1:]);"
        "sys.exit(next((name for name in ('torch', 'numpy', 'matplotlib') if name in sys.modules), None))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_names_every_verb_in_a_line():
    said = run()
    assert said.stdout == run("--help").stdout == run("-h").stdout
    lines = dict(re.findall(r"^  (\S+) +(\S.*)$", said.stdout, re.MULTILINE))
    assert lines == {name: verb.summary for name, verb in cli.VERBS.items()}


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert run("--version").stdout == f"groundling {version('groundling')}\n"


def test_python_m_groundling_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "groundling"], capture_output=True, text=True, check=True)
    assert done.stdout == run().stdout


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_lists_its_options_with_types_and_defaults(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "79")
    code, out, err = called(capsys, *words, "--help")
    assert (code, err) == (0, "")
    assert f"usage: groundling {' '.join(words)}" in out
    if words[-1] in SUB_COMMANDS or words == ("ladder", "show"):  # these have no options, only names
        return
    # Each option begins at the left of its box and ends where the next one begins.
    _, *options = re.split(r"^[│ ] {1,2}(?:-h, )?(?=--[a-z]|(?:STR|PATH) )", out, flags=re.MULTILINE)
    options = [" ".join(re.sub("[│╭╮╰╯─]|-{4,}", " ", option).split()) for option in options]
    assert options
    for option in options:
        if not option.startswith("--help"):
            assert re.match(
                r"(--[\w.-]+ )?(\{None\}\|)?(INT|FLOAT|STR|PATH|\{\w|\[STR|\[INT|\[PATH|\[\{)|--[\w.-]+, --", option
            ), option
            assert re.search(r"[a-z0-9.)] \((default: .*|required)\)", option), (
                f"no line of help, or no default: {option}"
            )


def test_every_sub_command_is_listed(capsys):
    for verb, names in SUB_COMMANDS.items():
        _, out, _ = called(capsys, verb, "--help")
        assert tuple(re.findall(r"^  (\w+) +\S", out, re.MULTILINE)) == names


@pytest.mark.slow
def test_a_verb_in_a_process_of_its_own():
    done = run("pretrain", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--steps INT" in done.stdout
    assert re.search(r"Optimizer steps. \(default: \d+\)", done.stdout)


ERRORS = [
    (["pretian"], 2, "no verb 'pretian'; did you mean 'pretrain'?"),
    (["xyz"], 2, "no verb 'xyz'; the verbs are: ladder, pretrain,"),
    (["pretrain", "--stepss", "3"], 2, "did you mean --steps?"),
    (["pretrain", "none.toml"], 2, "no preset 'none.toml'"),
    (["pretrain", "--steps", "0"], 2, "steps is 0; it must be at least 1"),
    (["pretrain", "--sinks", "mlflow"], 2, "invalid choice 'mlflow' for argument '--sinks'"),
    (["sample", "nowhere"], 1, "there is no nowhere"),
    (["sample"], 2, "see groundling sample --help"),
    (["sample", "nowhere", "--prompt", "-a"], 2, "a value that begins with a hyphen is written --prompt=VALUE"),
    (["sample", "nowhere", "--prompt=-a"], 1, "there is no nowhere"),
    (["plot", "nowhere"], 1, "nowhere has no records of losses"),
    (["verify-checkpoint", "nowhere"], 1, "nowhere holds neither a finished checkpoint nor a bundle"),
    (["data", "get", "tiny_shakespear"], 1, "did you mean 'tiny_shakespeare'?"),
    (["data", "fetch"], 2, "groundling data has no command 'fetch'; it has: list, get"),
    (["ladder", "--rungs", "s0"], 2, "no rung 's0'"),
    (["tokenizer", "show", "nowhere"], 1, "nowhere"),
    (["pretrain", "--out-dir", ""], 2, "out-dir: it is empty; give a path"),
    (["plot", "a", "--out="], 2, "out: it is empty; give a path"),
    (["export", "hf", "nowhere", ""], 2, "it is empty; give a path"),
    (["rank", "a", "--candidates", ""], 2, "it is empty; give a path"),
    (["rankings", "stats", ""], 2, "it is empty; give a path"),
    *[([verb, ""], 1, "the path of the model is empty; give the folder of") for verb in ("sample", "chat")],
    (["serve", "", "--port", "0"], 2, "'' names no model; give RUN_OR_BUNDLE or NAME=RUN_OR_BUNDLE"),
    (["serve", "a=", "--port", "0"], 2, "'a=' names no model; give RUN_OR_BUNDLE or NAME=RUN_OR_BUNDLE"),
]


@pytest.mark.parametrize(
    ("words", "code", "said"), ERRORS, ids=lambda value: " ".join(value) if type(value) is list else ""
)
def test_an_error_is_one_line_on_stderr_and_an_exit_code(words, code, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    got, out, err = called(capsys, *words)
    assert (got, out) == (code, "")
    assert err.startswith("groundling: error: ")
    assert err.count("\n") == 1
    assert said in err
    assert list(tmp_path.iterdir()) == [], "a mistake must leave nothing behind"


@pytest.mark.slow
def test_an_error_in_a_process_of_its_own_and_its_traceback_on_request(tmp_path):
    done = run("pretrain", "--steps", "0", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    more = run("pretrain", "--steps", "0", cwd=tmp_path, env=os.environ | {"GROUNDLING_TRACEBACK": "1"})
    assert more.returncode == 1
    assert "Traceback" in more.stderr
    assert "ConfigError" in more.stderr


def test_ctrl_c_is_reported_in_one_line(capsys, monkeypatch):
    monkeypatch.setitem(cli.VERBS, "wait", cli.Verb("test_cli_waits", ""))
    waits = type(sys)("test_cli_waits")

    def main(words):
        raise KeyboardInterrupt

    waits.main = main
    monkeypatch.setitem(sys.modules, "test_cli_waits", waits)
    assert called(capsys, "wait") == (130, "", "groundling: interrupted\n")


PIPED = [["--help"], ["data", "list"], ["data", "--help"], ["pretrain", "--help"], ["ladder", "show", "s9"]]


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", PIPED, ids=" ".join)
def test_a_closed_output_pipe_is_not_an_error(words, unbuffered):
    """`| head -0` closes its end at once; the process hears of it only when it writes, or at its end."""
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([COMMAND, *words], env=environment, **pipes) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert said == "", process.returncode


def test_the_public_names_are_exactly_these():
    assert set(groundling.__all__) <= set(dir(groundling))
    for name in groundling.__all__:
        assert getattr(groundling, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        groundling.nothing  # noqa: B018
