"""Advice about runs: each is provoked by the program, and then followed to the letter."""

import dataclasses
import shlex
import shutil

import pytest
from advicekit import follows

from groundling.config import load_preset, to_toml
from groundling.system import hardware, memory
from groundling.train import resuming, run_folder
from groundling.train.distill.table import TeacherConfig
from groundling.train.optim.optimizers import OptimConfig
from groundling.train.optim.schedule import ScheduleConfig


@pytest.fixture(autouse=True)
def _hasten(monkeypatch):
    """No measurement of the machine before each run."""
    monkeypatch.setattr(hardware, "measure_matmul_peak", lambda device, dtype: 1e10)


@pytest.fixture
def preset(tiny_config, tmp_path):
    """Makes presets of tiny runs: `preset("name", steps=...)`; the run goes to a folder of that name."""

    def write(name="run", **changes):
        path = tmp_path / f"{name}.toml"
        path.write_text(to_toml(tiny_config(name, **{"save_every": 1, **changes})), encoding="utf-8")
        return path

    return write


def command_in(said: str) -> list[str]:
    """The command that a message ends with, as a shell would read it."""
    return shlex.split(said[said.rindex("groundling ") :])[1:]


@pytest.mark.slow
@follows(
    "{} already holds a run; {}remove it (--overwrite), or choose another --out-dir",
    "resume it (--resume), ",
)
def test_a_folder_that_holds_a_run(advised, preset, tmp_path):
    first = preset(steps=2)
    advised.works("pretrain", first)
    advised.hears(advised.refused("pretrain", first))
    advised.works("pretrain", first, "--resume")
    advised.works("pretrain", first, "--out-dir", tmp_path / "another")
    advised.works("pretrain", first, "--overwrite")


@follows("{} holds no finished checkpoint to resume from; {}", "start it without --resume")
def test_nothing_to_resume(advised, preset):
    advised.refused("pretrain", preset(steps=1), "--resume")
    advised.works("pretrain", preset(steps=1))


@follows("remove what is there (--overwrite), or choose another --out-dir")
def test_nothing_to_resume_from_what_is_there(advised, preset, a_run, tmp_path):
    shutil.rmtree(a_run / "checkpoints")
    advised.refused("pretrain", preset(steps=1), "--resume", "--out-dir", a_run)
    advised.works("pretrain", preset(steps=1), "--out-dir", tmp_path / "another")
    advised.works("pretrain", preset(steps=1), "--overwrite", "--out-dir", a_run)


@follows("{} holds a speedrun; choose another --out-dir")
def test_a_folder_that_holds_a_speedrun(advised, preset, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "speedrun.json").write_text("[]", encoding="utf-8")
    advised.refused("pretrain", preset(steps=1))
    advised.refused("pretrain", preset(steps=1), "--resume")
    advised.works("pretrain", preset(steps=1), "--out-dir", tmp_path / "another")


@pytest.mark.slow
@follows("{} is being used by another process (pid {}); wait for it, or choose another --out-dir")
def test_a_folder_in_use(advised, preset, tmp_path):
    with run_folder.locked(tmp_path / "run"):
        advised.refused("pretrain", preset(steps=1))
        advised.works("pretrain", preset(steps=1), "--out-dir", tmp_path / "another")
    advised.works("pretrain", preset(steps=1))


@follows(
    "{} was trained with other settings ({}); leave the preset and these flags out to take its own run.toml, "
    "or start a new run in another --out-dir"
)
def test_other_settings(advised, a_run, preset, tmp_path):
    advised.refused("pretrain", "--resume", "--out-dir", a_run, "--seed", "9")
    advised.works("pretrain", "--resume", "--out-dir", a_run)
    advised.works("pretrain", preset(steps=1), "--seed", "9", "--out-dir", tmp_path / "another")


@follows(
    "the text or its tokenizer{} is not the one that {} was trained on; resume with that one, or start a new run "
    "in another --out-dir"
)
def test_another_text(advised, a_run, story, preset, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(story.read_text(encoding="utf-8")[::-1], encoding="utf-8")
    advised.refused("pretrain", "--resume", "--out-dir", a_run, "--data.path", other)
    advised.works("pretrain", "--resume", "--out-dir", a_run, "--data.path", story)
    advised.works("pretrain", preset(steps=1), "--data.path", other, "--out-dir", tmp_path / "another")


@pytest.mark.slow
@follows("steps is {}, and {} has made {} already; give --steps {} or more, or start a new run in another --out-dir")
def test_fewer_steps_than_were_made(advised, a_run, preset, tmp_path):
    advised.refused("pretrain", "--resume", "--out-dir", a_run, "--steps", "4")
    advised.works("pretrain", "--resume", "--out-dir", a_run, "--steps", "6")
    advised.works("pretrain", "--resume", "--out-dir", a_run, "--steps", "7")
    advised.works("pretrain", preset(steps=4), "--out-dir", tmp_path / "another")


@pytest.mark.parametrize("begun", [True, False], ids=["from its checkpoint", "from the start"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
@follows(
    "stopped at step {}: {}; the checkpoints are as they were; try lower learning rates, for example: {}",
    "groundling pretrain --resume if-present --out-dir {} {}",
)
def test_a_run_that_diverges(advised, preset, begun, kind, tmp_path):
    """Rates at which gradients are beyond float32, and at a tenth of them not yet."""
    at_once = ScheduleConfig(kind="constant", warmup_steps=0)
    path = preset("a run", steps=2, save_every=2, eval_every=None, schedule=at_once, optim=OptimConfig(kind=kind))
    rates = ["--optim.lr", "1e4", "--optim.muon-lr", "1e4", "--optim.weight-decay", "0", "--steps", "4"]
    if begun:
        advised.works("pretrain", path)
        said = advised.refused("pretrain", "--resume", "--out-dir", tmp_path / "a run", *rates)
    else:
        said = advised.refused("pretrain", path, *rates)
    advised.works(*command_in(said), "--steps", "3")
    assert (tmp_path / "a run" / "summary.json").is_file()


@follows(
    "stopped as asked before the first step; there is nothing to save, run it again",
    "stopped as asked after {}; resume with: {}",
    "groundling pretrain --resume if-present --out-dir {}",
)
def test_a_run_that_was_stopped(advised, preset, tmp_path, monkeypatch, capfd):
    """In its first step, and, when it was run again, in its second."""
    import signal

    from groundling.cli import main
    from groundling.train import loop

    made, real = [0], loop.train_step

    def stopping(*args, **kwargs):
        made[0] += 1
        if made[0] in (1, 3):
            signal.raise_signal(signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", stopping)
    words = ["pretrain", str(preset("a run", steps=5))]
    with pytest.raises(SystemExit, match="143"):
        main(words)
    advised.hears(capfd.readouterr().err)
    assert main(words) == 143, "run again"
    said = advised.hears(capfd.readouterr().err).strip().splitlines()[-1]
    advised.works(*command_in(said))
    assert (tmp_path / "a run" / "summary.json").is_file()


@follows("done{}: {}{}; sample from it: groundling sample {}")
def test_a_run_that_is_done(advised, preset):
    said = advised.works("pretrain", preset("a run", steps=1))
    advised.works(*command_in(said.strip().splitlines()[-1]), "--prompt", "the", "--max-new-tokens", "2")


@follows(
    "{} sequences at once need about {} GB of memory and this machine has {}; cut the batch with --micro-batch-size, "
    "or take a smaller model"
)
def test_a_batch_beyond_the_memory(advised, preset, monkeypatch):
    many = preset(steps=1, batch_size=64, eval_every=None)
    monkeypatch.setattr(memory, "memory_total_bytes", lambda: 4_000_000)
    from groundling.train import estimate

    if hasattr(estimate, "memory_total_bytes"):
        monkeypatch.setattr(estimate, "memory_total_bytes", lambda: 4_000_000)
    advised.refused("pretrain", many)
    advised.works("pretrain", many, "--micro-batch-size", "1")
    advised.works("pretrain", many, "--overwrite", "--model.n-layer", "1", "--model.block-size", "2")


@follows(
    "teacher.recipes ({}): these models must be trained first; `groundling speedrun` with this preset trains them, "
    "or name trained ones with --teacher.models"
)
def test_a_recipe_with_teachers(advised, preset, finished_run):
    from groundling.train.speedrun.recipes import Recipes

    taught = preset(steps=1, teacher=TeacherConfig(weight=0.5, recipes=("speedrun",)))
    advised.refused("pretrain", taught)
    advised.done(load_preset(str(taught))["teacher"]["recipes"] == ["speedrun"])
    plain = preset("student", steps=1, teacher=TeacherConfig(weight=0.5, recipes=("speedrun.toml",)))
    with pytest.raises(Exception, match="other settings of data"):  # it read the recipe, and this text is not its
        Recipes.of(str(plain))
    advised.works("pretrain", taught, "--teacher.models", finished_run)


@follows(
    "the teacher's table for {} tokens and a vocabulary of {} would take {} GB to make, at most {} are allowed; "
    "set teacher.weight to 0"
)
def test_a_teacher_that_would_need_too_much(advised, preset, monkeypatch):
    monkeypatch.setattr("groundling.train.distill.table.MAX_BYTES", 1000)
    taught = preset(steps=1, teacher=TeacherConfig(weight=0.5))
    advised.refused("pretrain", taught)
    advised.works("pretrain", taught, "--teacher.weight", "0")


@pytest.mark.slow
@follows(
    "a run that starts from {} takes its model and its tokenizer, and these settings differ: {}; leave them out, or "
    "leave init_from out to train a new model"
)
def test_a_run_that_begins_with_a_bundle(advised, preset, finished_run, story, tmp_path):
    fast = ["--steps", "1", "--batch-size", "2", "--data.path", story, "--out-dir", tmp_path / "on"]
    fast += ["--runtime.compile", "off", "--runtime.device", "cpu"]
    advised.refused("pretrain", *fast, "--init-from", finished_run, "--model.n-layer", "3")
    advised.works("pretrain", *fast, "--init-from", finished_run)
    advised.works("pretrain", *fast, "--overwrite", "--model.n-layer", "3", "--model.block-size", "16")


@follows("{} of {} are damaged; --resume skips them", "resuming from {}", "skipped: {}")
def test_damaged_checkpoints(advised, a_run):
    newest = sorted((a_run / "checkpoints").glob("step-*"))[-1]
    (newest / "training.safetensors").write_bytes(b"")
    advised.refused("verify-checkpoint", a_run)
    advised.works("pretrain", "--resume", "--out-dir", a_run)


@follows("{} holds neither a finished checkpoint nor a bundle; give the folder of one, or of a run")
def test_nothing_to_verify(advised, a_run, tmp_path):
    advised.refused("verify-checkpoint", tmp_path)
    for place in (a_run, a_run / "bundle", a_run / "checkpoints" / "step-00000006"):
        advised.works("verify-checkpoint", place)


@pytest.mark.slow
@follows("{} has no records of losses in metrics.jsonl; give the folder of a run")
def test_nothing_to_plot(advised, a_run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").write_text("", encoding="utf-8")
    advised.refused("plot", tmp_path / "empty", "--out", tmp_path / "p.png")
    advised.works("plot", a_run, "--out", tmp_path / "p.png")


@follows(
    "restore it from a copy, or use another checkpoint",
    "{} {}: size {}, expected {}; {}",
)
def test_a_damaged_checkpoint_is_not_the_only_one(advised, a_run, tmp_path):
    shutil.copytree(a_run, tmp_path / "copy")
    weights = a_run / "bundle" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    words = ["--prompt", "the", "--max-new-tokens", "2"]
    advised.refused("sample", a_run, *words)
    advised.works("sample", a_run, *words, "--checkpoint", "last")
    shutil.copy(tmp_path / "copy" / "bundle" / "model.safetensors", weights)
    advised.works("sample", a_run, *words)


@pytest.mark.slow
@follows(
    "the speedrun was stopped as asked in {}; {}; start again with --overwrite",
    "{} is there already; remove it (--overwrite), or choose another --out-dir",
    "{} holds a run of `groundling pretrain`; choose another --out-dir",
)
def test_speedruns(advised, preset, tmp_path, monkeypatch, a_run):
    from groundling.train.speedrun import run as speedrun

    recipe = preset("recipe", steps=1)
    seconds = [(1.0, 143)]
    monkeypatch.setattr(speedrun, "_run_in_a_process", lambda command, cold: seconds[0])
    out = tmp_path / "speed"
    words = ["speedrun", recipe, "--seeds", "1", "--out-dir", out]
    from groundling.cli import main

    assert main([str(word) for word in words]) == 143
    advised.hears("")
    (out / "seed-1").mkdir(parents=True)

    def in_this_process(command, cold):
        return 1.0, main([*command[3:]])

    monkeypatch.setattr(speedrun, "_run_in_a_process", in_this_process)
    advised.refused(*words)
    advised.works(*words, "--overwrite")
    advised.works("speedrun", recipe, "--seeds", "1", "--out-dir", tmp_path / "another")
    advised.refused("speedrun", recipe, "--seeds", "1", "--out-dir", a_run)
    advised.works("speedrun", recipe, "--seeds", "1", "--out-dir", tmp_path / "third")


@follows(
    "the checkpoints are intact: resume with --resume if-present, which torchrun --max-restarts 1 then does by itself",
    "rank {} lost the connection to another rank ({}), whose own message tells why; {}",
)
def test_a_lost_rank(advised, a_run):
    """torchrun itself restarts ranks in tests/faults/test_f19_killed_rank.py."""
    advised.hears(f"rank 0 lost the connection to another rank (x), whose own message tells why; "
                  f"{resuming.LOST_RANK_ADVICE}")  # fmt: skip
    advised.works("pretrain", "--resume", "if-present", "--out-dir", a_run, "--steps", "7")


@follows("{}; see {} --help")
def test_a_flag_that_does_not_exist(advised, capfd):
    advised.refused("pretrain", "--stepz", "3")
    from groundling.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "--help"])
    advised.done(ended.value.code == 0 and "--steps" in capfd.readouterr().out)


@follows("a worker process ended with exit code {} and without a result; if memory was short, run one at a time: "
         "--at-once 1")  # fmt: skip
def test_rungs_one_at_a_time(advised):
    """A worker that dies: tests/ladder/test_climb.py."""
    from advicekit import parsed

    advised.hears("a worker process ended with exit code 9 and without a result; if memory was short, run one at a "
                  "time: --at-once 1")  # fmt: skip
    advised.done(parsed(["ladder", "--at-once", "1"]).at_once == 1)


def test_a_tenth_of_what_is_in_use():
    config = dataclasses.make_dataclass("C", ["optim", "value_optim", "steps"])(
        OptimConfig(lr=1e-3), OptimConfig(kind="muon", lr=1e-3, muon_lr=0.02), 3
    )
    said = resuming.lower_rates(config)
    assert said == "--optim.lr 0.0001 --value-optim.lr 0.0001 --value-optim.muon-lr 0.002"
