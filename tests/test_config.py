"""One config story: defaults under a preset under flags, each complaint one line, and back to TOML without loss."""

import dataclasses
import io
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from groundling.config import (
    differences,
    from_dict,
    load_preset,
    parse,
    run_subcommand,
    shipped_presets,
    to_dict,
    to_toml,
)
from groundling.errors import ConfigError, require


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What drives it."""

    power: float = 1.5
    """In kilowatts."""
    kind: Literal["steam", "electric"] = "steam"
    """How it works."""
    quiet: bool = False
    """Whether it can be heard."""
    gears: tuple[int, int] = (1, 2)
    """How many, forwards and back."""

    def __post_init__(self) -> None:
        require(self.power > 0, f"engine.power is {self.power}; it must be positive")


@dataclass(frozen=True, kw_only=True)
class Car:
    """Something with wheels."""

    n_wheels: int = 4
    """On the ground."""
    name: str = ""
    """What it is called."""
    owner: str | None = None
    """Whose it is; None: nobody's."""
    top_speed: float | None = 99.5
    """In km/h."""
    garage: Path = Path("garage")
    """Where it stands."""
    extras: tuple[str, ...] = ()
    """What else it has."""
    loud: bool = True
    """Whether it has a horn."""
    engine: Engine = field(default_factory=Engine)


def parsed(*words: str) -> Car:
    return parse(Car, words, "make car")


@pytest.fixture
def preset(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "p.toml").write_text(text, encoding="utf-8")
        return str(tmp_path / "p.toml")

    return write


def test_no_flags_give_the_defaults():
    assert parsed() == Car()


def test_a_preset_overrides_defaults_and_a_flag_overrides_it(preset):
    path = preset('n_wheels = 3\nname = "Trike"\nloud = false\n[engine]\npower = 2.5\nquiet = true\ngears = [5, 1]\n')
    trike = Car(n_wheels=3, name="Trike", loud=False, engine=Engine(power=2.5, quiet=True, gears=(5, 1)))
    assert parsed(path) == trike
    flags = ["--n-wheels", "6", "--loud", "--engine.no-quiet", "--engine.gears", "7", "2"]
    engine = dataclasses.replace(trike.engine, quiet=False, gears=(7, 2))
    assert parsed(path, *flags) == dataclasses.replace(trike, n_wheels=6, loud=True, engine=engine)


def test_both_spellings_of_a_flag():
    assert parsed("--n_wheels", "3") == parsed("--n-wheels=3") == Car(n_wheels=3)


def test_none_is_absent(preset):
    path = preset('owner = "None"\ntop_speed = "None"')
    assert parsed(path) == parsed("--top-speed", "None") == Car(top_speed=None)
    assert parsed(path, "--top-speed", "3", "--owner", "me") == Car(top_speed=3.0, owner="me")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--wheels 3", r"--wheels.*did you mean --n-wheels\?"),
        ("--engine.powr 3", r"--engine\.powr.*did you mean --engine\.power\?"),
        ("--n-wheels three", r"n-wheels.*three"),
        ("--engine.kind diesel", r"diesel.*engine\.kind.*steam"),
        ("--engine.power -1", r"engine\.power is -1\.0; it must be positive"),
        ("--zzz", "--zzz"),
        ("--n-wheels", "n-wheels"),
        ("stray", "stray"),
    ],
)
def test_a_wrong_flag_is_one_line_with_the_value_and_the_fix(words, said, encoding, monkeypatch):
    """Where the terminal is not UTF-8, tyro draws its frames of other signs."""
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(ConfigError, match=said) as refused:
        parsed(*words.split())
    assert not set("\n│─╭") & set(str(refused.value))
    assert "----" not in str(refused.value)
    assert str(refused.value).endswith("; see make car --help")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wheels = 3", r"there is no setting 'wheels'; did you mean n_wheels\?$"),
        ("[engine]\npowr = 3", r"there is no setting 'engine\.powr'; did you mean engine\.power\?$"),
        ("[motor]\npower = 3", r"there is no setting 'motor'; choose from: n_wheels, name, .*engine$"),
        ("engine = 3", "engine is 3; expected a table"),
        ('n_wheels = "three"', "n_wheels is 'three': Expected `int`, got `str`"),
        ("n_wheels = true", "n_wheels is True: Expected `int`, got `bool`"),
        ("n_wheels = 3.5", "n_wheels is 3.5: Expected `int`, got `float`"),
        ('loud = "yes"', "loud is 'yes': Expected `bool`, got `str`"),
        ('garage = ""', r'garage is \'\': it is empty; give a path \("\." is this folder\)'),
        ('[engine]\nkind = "diesel"', "engine.kind is 'diesel': Invalid enum value 'diesel'"),
        ("[engine]\ngears = [1, 2, 3]", r"engine.gears is \[1, 2, 3\]: Expected `array` of length 2"),
        ("[engine]\npower = -1", r"engine.power is -1.0; it must be positive"),
        ("help = true", "there is no setting 'help'"),
        ('tyro-write-completion = ["bash", "x"]', "there is no setting 'tyro-write-completion'"),
        ("n_wheels = ", "not valid TOML"),
    ],
)
def test_a_wrong_key_in_a_preset_is_one_line_too(preset, text, said):
    with pytest.raises(ConfigError, match=said) as refused:
        parsed(preset(text))
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"preset {preset('')}: ") or "not valid TOML" in str(refused.value)


def test_a_preset_with_a_byte_order_mark_is_read_as_without(tmp_path):
    """Windows' editors put one there."""
    for name, mark in (("plain.toml", b""), ("marked.toml", b"\xef\xbb\xbf")):
        (tmp_path / name).write_bytes(mark + b"n_wheels = 7\r\n")
    assert parsed(str(tmp_path / "marked.toml")) == parsed(str(tmp_path / "plain.toml"))


def test_a_missing_or_binary_preset(tmp_path):
    with pytest.raises(ConfigError, match=r"no preset 'x\.toml'; give the path .*shakespeare_char\.toml"):
        parsed("x.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid TOML"):
        parsed(str(tmp_path / "binary.toml"))


def test_a_preset_of_the_package_is_found_by_its_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = shipped_presets()["shakespeare_char.toml"]
    expected = tomllib.loads(path.read_text("utf-8"))
    assert load_preset("shakespeare_char.toml") == load_preset("configs/shakespeare_char.toml") == expected
    with pytest.raises(ConfigError):
        load_preset("elsewhere/shakespeare_char.toml")


def test_a_verb_may_have_a_preset_of_its_own(preset):
    path = preset('n_wheels = 3\nname = "Trike"')
    assert parse(Car, [], "make car", default_preset=path) == Car(n_wheels=3, name="Trike")
    assert parse(Car, ["--name", "x"], "make car", default_preset=path) == Car(n_wheels=3, name="x")
    with pytest.raises(ConfigError, match="no preset 'other"):
        parse(Car, ["other.toml"], "make car", default_preset=path)


def test_help_shows_the_values_of_the_preset(preset, capsys):
    with pytest.raises(SystemExit):
        parsed(preset("n_wheels = 17"), "--help")
    assert "default: 17" in capsys.readouterr().out


def test_help_is_printed_with_types_and_defaults_and_ends_with_0(capsys):
    with pytest.raises(SystemExit) as stopped:
        parsed("--help")
    assert not stopped.value.code
    out = capsys.readouterr().out
    assert "Something with wheels." in out
    for word in ("--n-wheels INT", "default: 4", "On the ground.", "--engine.kind", "steam", "In kilowatts."):
        assert word in out


texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
longs = st.integers(-(2**63), 2**63 - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
engines = st.builds(
    Engine,
    power=numbers.filter(lambda x: x > 0),
    kind=st.sampled_from(["steam", "electric"]),
    quiet=st.booleans(),
    gears=st.tuples(longs, longs),
)
cars = st.builds(
    Car,
    n_wheels=st.integers(-(2**62), 2**62),
    name=texts,
    owner=st.none() | texts.filter(lambda text: text != "None"),
    top_speed=st.none() | numbers,
    garage=texts.map(Path),
    extras=st.lists(texts.filter(lambda text: not text.startswith("-")), max_size=3).map(tuple),
    loud=st.booleans(),
    engine=engines,
)


@settings(deadline=None, max_examples=150)
@given(cars)
@example(Car(name="--loud", owner="-1", garage=Path("--n-wheels"), extras=("", "x y")))
@example(Car(name="-", top_speed=-1e-300, n_wheels=-3))
@example(Car(name="p.toml", owner="", engine=Engine(gears=(-1, -2))))
def test_a_config_round_trips_through_plain_data_and_toml(car):
    assert from_dict(Car, to_dict(car)) == car
    assert from_dict(Car, tomllib.loads(to_toml(car))) == car


def test_plain_data_with_an_unknown_key_is_refused():
    with pytest.raises(ConfigError, match="n_doors") as refused:
        from_dict(Car, {"n_doors": 3})
    assert "--help" not in str(refused.value), "no command is called Car"
    assert from_dict(Car, {"engine": {"power": 3.0}}) == Car(engine=Engine(power=3.0))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_no_setting_is_infinite_or_nan(preset, value):
    """`not x > 0` refuses NaN, `x <= 0` does not: each config would have to remember."""
    with pytest.raises(ConfigError, match=r"^top_speed is -?(nan|inf); give a finite number"):
        parsed("--top-speed", value)
    if value != "1e999":
        with pytest.raises(ConfigError, match=r"top_speed is -?(nan|inf); give a finite number"):
            parsed(preset(f"top_speed = {value}"))
    with pytest.raises(ConfigError, match=r"^engine\.gears is 9{57}\.\.\.; give a number of at most 63 bits"):
        parsed("--engine.gears", "1", "9" * 100)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["help", "tyro-write-completion", "h", "tyro_print_completion", "engine", "garage", "n-wheels"])


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(keys | st.sampled_from(list(to_dict(Car()))) | texts, json_values, max_size=4))
@example({"tyro-write-completion": ["bash", "written"]})
@example({"help": True})
@example({"n_wheels": 10**400, "top_speed": 10**400})
def test_data_is_a_config_or_one_line_and_never_a_flag(values):
    """Nothing in it prints, ends the process or names a file to write."""
    said, car = "", None
    try:
        car = from_dict(Car, values)
    except ConfigError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 400
    if car is not None:
        assert from_dict(Car, to_dict(car)) == car
        assert {name.replace("-", "_") for name in values} <= set(to_dict(car))


def test_differences_are_readable_lines():
    ours, theirs = Car(), Car(n_wheels=3, owner="me", engine=Engine(quiet=True))
    lines = ["n_wheels: 4 -> 3", "owner: None -> me", "engine.quiet: False -> True"]
    assert differences(ours, theirs) == differences(to_dict(ours), to_dict(theirs)) == lines
    assert differences(ours, Car()) == []
    assert differences({"a": 1}, {"b": 2}) == ["a: 1 -> None", "b: None -> 2"]


def test_sub_commands(capsys):
    seen = []
    commands = {"go": (lambda words: seen.append(words) or 7, "sets it in motion")}
    assert run_subcommand(["go", "far", "--fast"], commands, "car") == 7
    assert seen == [["far", "--fast"]]
    assert run_subcommand([], commands, "car") == run_subcommand(["--help"], commands, "car") == 0
    assert "go         sets it in motion" in capsys.readouterr().out
    assert run_subcommand(["stop"], commands, "car") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "groundling: error: car has no command 'stop'; it has: go\n"
