"""The classifier learns what it is told, says without scikit-learn what scikit-learn would, and judges by sentences."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from faultkit import DAMAGE
from groundling.cli import main
from groundling.errors import CheckpointError, DataError
from groundling.safety.classifier import N_BUCKETS, Classifier, features
from groundling.safety.stream import Safety
from groundling.safety.training import read_labelled, split, train

FOUL = ["knave", "villain", "rogue", "dog", "slave", "wretch"]
FAIR = ["friend", "lady", "brother", "cousin", "lord", "sweet"]


def write_data(path: Path, n: int = 400) -> Path:
    draw = np.random.Generator(np.random.Philox(3))
    rows = []
    for number in range(n):
        words = draw.choice(FOUL if number % 2 else FAIR, 2).tolist()
        filler = " ".join(draw.choice(["you", "the", "is", "what", "come", "now"], 4).tolist())
        rows.append({"text": f"{filler} {words[0]} and {words[1]} {number}", "label": "unsafe" if number % 2 else "ok"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("labelled") / "data.jsonl")


@pytest.fixture(scope="module")
def classifier(data: Path) -> Classifier:
    return train(split(read_labelled(data))[0])


@pytest.mark.slow
def test_it_learns_the_labels(classifier: Classifier, data: Path) -> None:
    known, held_out = split(read_labelled(data))
    assert not {one.text for one in known} & {one.text for one in held_out}
    assert len(held_out) > 40
    right = [classifier.is_unsafe(one.text) == one.unsafe for one in held_out]
    assert np.mean(right) > 0.95
    assert classifier.is_unsafe("THOU KNÁVE and villain")
    assert not classifier.is_unsafe("")


@pytest.mark.slow
def test_it_agrees_with_scikit_learn(data: Path) -> None:
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    labelled = read_labelled(data)[:120]
    ours = train(labelled)
    matrix = np.zeros((len(labelled), N_BUCKETS))
    for number, one in enumerate(labelled):
        buckets, values = features(one.text, ours.idf)
        matrix[number, buckets] = values
    theirs = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000, random_state=0)
    theirs.fit(csr_matrix(matrix), [one.unsafe for one in labelled])
    expected = theirs.predict_proba(csr_matrix(matrix))[:, 1]
    assert np.abs(expected - [ours.probability(one.text) for one in labelled]).max() < 1e-6


@pytest.mark.slow
def test_save_and_load_round_trip(classifier: Classifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "kept")
    again = Classifier.load(tmp_path / "kept")
    assert again.probability("you dog") == classifier.probability("you dog")
    assert again.threshold == classifier.threshold
    assert not [path for path in (tmp_path / "kept").iterdir() if path.suffix in (".pkl", ".joblib", ".pickle")]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["weights.safetensors", "classifier.json"])
def test_damage_is_noticed(classifier: Classifier, tmp_path: Path, name: str, damage) -> None:
    classifier.save(tmp_path / "kept")
    damage(tmp_path / "kept" / name)
    with pytest.raises(CheckpointError):
        Classifier.load(tmp_path / "kept")


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_a_sentence_is_classified_before_it_is_shown(classifier: Classifier, size: int) -> None:
    text = "Good morrow, sweet lady. Come now, you knave and villain! What is the matter, cousin?"
    reply = Safety([classifier.rule()]).reply()
    shown = ""
    for at in range(0, len(text), size):
        shown += "".join(segment.text for segment in reply.push(text[at : at + size]))
        assert "knave" not in shown
        assert "Come" not in shown
    shown += "".join(segment.text for segment in reply.finish())
    assert shown == "Good morrow, sweet lady."
    assert [finding.rule for finding in reply.findings] == ["classifier"]


@pytest.mark.slow
def test_an_unfinished_last_sentence_is_classified(classifier: Classifier) -> None:
    reply = Safety([classifier.rule()]).reply()
    shown = [*reply.push("Sweet lady. You villain, you slave and dog"), *reply.finish()]
    assert "".join(segment.text for segment in shown) == "Sweet lady."
    assert reply.blocked
    fair = Safety([classifier.rule()]).reply()
    shown = [*fair.push("Sweet lady and cousin, my friend"), *fair.finish()]
    assert "".join(segment.text for segment in shown) == "Sweet lady and cousin, my friend"


@pytest.mark.slow
def test_the_command_trains_and_measures(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["safety", "train", str(data), "--out", str(tmp_path / "kept")]) == 0
    said = capsys.readouterr().out
    assert "held out: " in said
    assert "precision 1.000" in said or "precision 0.9" in said
    assert main(["safety", "test", str(data), "--rules", "off", "--classifier", str(tmp_path / "kept"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["texts"] == 400
    assert found["recall"] > 0.95
    assert found["hits"] + found["false_alarms"] + found["misses"] + found["passes"] == 400
    assert found["rules"]["classifier"]["right"] == found["hits"]
    assert main(["safety", "test", str(data)]) == 0
    assert "precision 0.000, recall 0.000" in capsys.readouterr().out
    assert main(["safety", "train", str(data), "--out", str(tmp_path / "kept")]) == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"text": "a", "label": "bad"}', "a line is"),
        ('{"text": "", "label": true}', "a line is"),
        ('{"text": "a", "label": 1}', "a line is"),
        ('{"label": true}', "a line is"),
        ("", "empty"),
        ("no json", "data.jsonl:1"),
    ],
)
def test_invalid_lines(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=complaint):
        read_labelled(path)


def test_one_label_is_not_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": f"line {n}", "label": "ok"}) + "\n" for n in range(30)))
    assert main(["safety", "train", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "only 0 training texts of one label" in capsys.readouterr().err


@pytest.mark.slow
def test_it_classifies_without_scikit_learn(classifier: Classifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "kept")
    code = (
        "import sys; sys.modules['sklearn'] = sys.modules['scipy'] = None\n"
        "from pathlib import Path\n"
        "from groundling.safety.classifier import Classifier\n"
        f"print(Classifier.load(Path({str(tmp_path / 'kept')!r})).is_unsafe('you knave and villain'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
