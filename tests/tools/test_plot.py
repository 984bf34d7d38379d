"""`groundling plot`: a picture of real records, or a line that says what is missing."""

import shutil

import pytest

from groundling.config import parse
from groundling.errors import ConfigError, DataError, MissingExtraError, StorageError
from groundling.tools import plot
from groundling.tools.plot import PlotConfig, _position
from groundling.train.pretrain import pretrain


def size_of_png(path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.rstrip().endswith(b"IEND\xaeB`\x82")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


@pytest.mark.slow
def test_one_run_or_several_become_a_png(finished_run, tmp_path, capsys):
    assert plot.main([str(finished_run), "--out", str(tmp_path / "one.png")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'one.png'}\n"
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    plot.main([str(finished_run), str(copy), "--out", str(tmp_path / "two.png")])
    assert size_of_png(tmp_path / "one.png") == size_of_png(tmp_path / "two.png") == (1170, 650)
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()


def test_the_curves_are_the_records(finished_run, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plot, "save_figure", lambda figure, path: figures.append(figure))
    for by in ("step", "n_tokens", "train_s"):
        plot.draw(PlotConfig(runs=(finished_run,), by=by))
    training, validation, estimate = figures[0].axes[0].get_lines()
    assert list(training.get_xdata()) == [1, 2, 3, 4, 5, 6]
    assert list(validation.get_xdata()) == [3, 6]
    assert list(figures[1].axes[0].get_lines()[1].get_xdata()) == [3 * 64, 6 * 64]
    records = plot.read_records(finished_run / "metrics.jsonl")
    assert list(training.get_ydata()) == [r["loss"] for r in records if "loss" in r]
    assert list(estimate.get_xdata()) == [3, 6]
    assert list(estimate.get_ydata()) == [r["train_loss"] for r in records if "train_loss" in r]
    assert list(validation.get_ydata()) == [r["val_loss"] for r in records if "val_loss" in r]


def test_a_run_without_evaluations_has_one_curve(finished_run, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    lines = (finished_run / "metrics.jsonl").read_text("utf-8").splitlines()
    (run / "metrics.jsonl").write_text("\n".join(line for line in lines if "val_loss" not in line), "utf-8")
    plot.draw(PlotConfig(runs=(run,), out=tmp_path / "one.png"))
    assert size_of_png(tmp_path / "one.png")


@pytest.mark.slow
def test_samples_leave_the_curves_as_they_are(tiny_config, tmp_path):
    pictures = []
    for name, every in (("silent", None), ("speaks", 2)):
        config = tiny_config(name, sample_every=every, seed=1)
        pretrain(config)
        shutil.copyfile(config.out_dir / "metrics.jsonl", tmp_path / "metrics.jsonl")
        plot.draw(PlotConfig(runs=(tmp_path,), out=tmp_path / f"{name}.png"))
        pictures.append((tmp_path / f"{name}.png").read_bytes())
    assert pictures[0] == pictures[1]


def test_an_evaluation_lies_between_the_records_around_it():
    along = {1: 10.0, 3: 30.0, 7: 110.0}
    assert [_position(along, step) for step in (1, 2, 3, 5, 7, 9)] == [10, 20, 30, 70, 110, 110]
    assert _position(along, 0) == 10


def test_a_folder_without_records(tmp_path):
    with pytest.raises(DataError, match=r"no records of losses.*give the folder of a run"):
        plot.main([str(tmp_path), "--out", str(tmp_path / "x.png")])
    assert not (tmp_path / "x.png").exists()


def test_a_picture_that_cannot_be_written(finished_run, tmp_path):
    with pytest.raises(StorageError, match=r"nowhere/x\.png"):
        plot.main([str(finished_run), "--out", str(tmp_path / "nowhere" / "x.png")])


@pytest.mark.parametrize("words", ["", "run --by hours"])
def test_what_cannot_be_drawn(words):
    with pytest.raises(ConfigError):
        parse(PlotConfig, words.split(), "groundling plot")


def test_without_matplotlib_it_names_the_extra(finished_run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"extra 'plot': .*pip install"):
        plot.draw(PlotConfig(runs=(finished_run,)))
