"""Row 29: replies are shown in random order, the order is kept with the answer, and export and import keep it too."""

import io
import json
import math
import sys

import pytest

from groundling.align.preferences import terminal
from groundling.align.preferences.agreement import position_bias
from groundling.align.preferences.store import Rankings

N = 1000


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """A thousand questions of four replies, answered by one who always takes what stands first."""
    folder = tmp_path_factory.mktemp("order")
    candidates = [{"text": f"reply {number}", "model": "m"} for number in range(4)]
    rows = [{"prompt": f"prompt {number}", "candidates": candidates} for number in range(N)]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO("1\n" * N))
        patch.setattr(sys, "stdout", io.StringIO())
        terminal.main([str(folder / "r.db"), "--candidates", str(folder / "q.jsonl"), "--rater", "ann"])
    return folder / "r.db"


def test_positions_of_replies_are_uniform(rated):
    with Rankings(rated) as rankings:
        orders = [item.shown for item in rankings]
    assert len(orders) == N
    four_sigma = 4 * math.sqrt(N * 0.25 * 0.75)
    for place in range(4):
        for candidate in range(4):
            count = sum(order[place] == candidate for order in orders)
            assert abs(count - N / 4) < four_sigma, (place, candidate)
    assert len(set(orders)) == 24


def test_a_rater_who_always_picks_the_first_shows_as_position_bias(rated):
    with Rankings(rated) as rankings:
        items = list(rankings)
    wins = [sum(item.choice[0] == (candidate,) for item in items) for candidate in range(4)]
    assert max(abs(count - N / 4) for count in wins) < 4 * math.sqrt(N * 0.25 * 0.75)
    bias = position_bias(items)
    assert bias is not None
    assert (bias.share, bias.by_chance) == (1.0, 0.25)
    assert bias.low > 0.99


def test_export_and_import_keep_the_order_of_each_row(rated, tmp_path):
    with Rankings(rated) as rankings, Rankings(tmp_path / "other.db") as other:
        rankings.export_jsonl(tmp_path / "all.jsonl")
        other.import_jsonl(tmp_path / "all.jsonl")
        assert [item.shown for item in other] == [item.shown for item in rankings]
        assert list(other) == list(rankings)
    exported = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [row["choice"] for row in exported] == [[[row["shown"][0]]] for row in exported]
