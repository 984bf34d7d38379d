"""The gold measures say what a person finds who counts with a finger."""

import sys
import threading

import pytest

from groundling.align.preferences import measures
from groundling.align.preferences.measures import MEASURES, estimate, measure_by_name, possible_syllables, verse, warm
from groundling.errors import ConfigError, MissingExtraError

SONNET = """\
Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date:"""


@pytest.mark.parametrize(
    ("line", "n_syllables"),
    [
        ("Shall I compare thee to a summer's day?", 10),
        ("But, soft! what light through yonder window breaks?", 10),
        ("Now is the winter of our discontent", 10),
        ("To be, or not to be, that is the question:", 11),
        ("'Tis but thy name that is my enemy", 10),
        ("\N{RIGHT SINGLE QUOTATION MARK}Tis but thy name that is my enemy", 10),
        ("The cat sat on the mat.", 6),
    ],
)
def test_lines_whose_syllables_are_known_are_counted(line, n_syllables):
    assert (10 in possible_syllables(line)) == (n_syllables == 10)
    if n_syllables < 10:
        assert possible_syllables(line) == {n_syllables}


def test_verse_is_the_share_of_lines_of_ten():
    assert verse(SONNET) == 1.0
    assert verse(SONNET + "\n\n   \nThe cat sat on the mat.\nNo.\n") == 4 / 6
    assert verse("No.") == 0.0
    assert verse("one " * 9) == verse("one " * 11) == 0.0
    assert verse("one " * 10) == 1.0


def test_a_line_counts_when_some_way_of_saying_it_makes_ten():
    """The dictionary has "fire" with one syllable and with two."""
    assert measures.syllables("fire") == {1, 2}
    assert verse("one two three four five six eight nine fire") == 1.0  # 8 + 2
    assert verse("one two three four five six eight nine ten fire") == 1.0  # 9 + 1
    assert verse("one two three four five six eight fire") == 0.0  # 7 + 1 or 2


@pytest.mark.parametrize("text", ["", " ", "\n\n \t\n"])
@pytest.mark.parametrize("name", MEASURES)
def test_an_empty_text_has_measure_0(name, text):
    assert MEASURES[name](text) == 0.0


def test_lines_without_words_are_lines_without_syllables():
    assert verse("1 2 3 4 5 6 7 8 9 10\n***\n" + SONNET) == 4 / 6


@pytest.mark.parametrize(
    ("word", "n_syllables"),
    [
        ("zounds", 1),
        ("banish'd", 2),
        ("banished", 2),
        ("waited", 2),
        ("gleamed", 1),
        ("table", 2),
        ("roses", 2),
        ("churches", 2),
        ("names", 1),
        ("the", 1),
        ("brr", 1),
    ],
)
def test_the_estimate_counts_groups_of_vowels(word, n_syllables):
    assert estimate(word) == n_syllables


def test_apostrophes_belong_to_a_word_where_the_dictionary_has_it_so():
    """It has "goin'" with two syllables, and "goin" as a name with one; it has no "'summer'"."""
    assert measures.syllables("goin'") == {2}
    assert measures.syllables("'summer'") == measures.syllables("summer") == {2}


def test_a_word_of_no_dictionary_is_estimated():
    assert measures.syllables("flimberous") == {estimate("flimberous")} == {3}


def test_the_estimate_agrees_with_the_dictionary_on_most_words_of_it():
    """It stands in for the dictionary, so it has to be near it: 88 % of its 117,493 words."""
    import pronouncing

    pronouncing.init_cmu()
    words = sorted(word for word in pronouncing.lookup if word.isalpha())[::50]
    assert len(words) > 2000
    right = sum(estimate(word) in measures.syllables(word) for word in words)
    assert right / len(words) > 0.8


def test_warm_follows_the_sense_of_the_words():
    assert warm("What a lovely, wonderful day, my dear friend!") > 0.8
    assert warm("I hate you, you horrible, stupid liar.") < -0.8
    assert warm("The table has four legs.") == 0.0
    assert warm("This is not good.") < 0 < warm("This is good.")


def test_measures_are_found_by_name():
    assert measure_by_name("verse") is verse
    assert measure_by_name("warm") is warm
    with pytest.raises(ConfigError, match="no measure 'vers'; did you mean 'verse'"):
        measure_by_name("vers")
    with pytest.raises(ConfigError, match="the measures are: verse, warm"):
        measure_by_name("truth")


@pytest.mark.parametrize(("name", "package"), [("verse", "pronouncing"), ("warm", "vaderSentiment")])
def test_a_missing_package_is_named_with_its_extra(name, package, monkeypatch):
    for cached in (measures._pronouncing, measures._vader, measures.syllables):
        cached.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.{package}", None)
    with pytest.raises(MissingExtraError, match=rf"'{package}' is not installed.*extra 'align': .*pip install"):
        MEASURES[name]("some words")


def test_threads_that_ask_first_at_the_same_time_get_the_same_answer(monkeypatch):
    """The package fills a global while it loads: who does not wait sees half a dictionary."""
    import pronouncing

    for cached in (measures._pronouncing, measures.syllables):
        cached.cache_clear()
    for table in ("pronunciations", "lookup", "rhyme_lookup"):
        monkeypatch.setattr(pronouncing, table, None)
    start, answers = threading.Barrier(4), []

    def ask() -> None:
        start.wait()
        answers.append(measures._pronouncing().phones_for_word("zoo"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [["Z UW1"]] * 4
