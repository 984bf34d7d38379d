"""`groundling tokenizer train|show|compare`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, get_args

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from groundling import config
from groundling.data.corpus import Corpus, DataConfig, TextConfig, prepare
from groundling.errors import DataError, MissingExtraError
from groundling.flags import any_text
from groundling.storage import atomic, files
from groundling.text.build import Kind, TokenizerConfig
from groundling.text.serialize import FILE_NAME, load_tokenizer, save_tokenizer
from groundling.text.tokenizer import Tokenizer

COLOURS = ("black on bright_cyan", "black on bright_yellow", "black on bright_green", "black on bright_magenta")
SIGNS = {"\n": "↵", "\t": "→", "\r": "←"}
N_PIECES_SHOWN = 64


def main(argv: Sequence[str]) -> int:
    """Run `groundling tokenizer train|show|compare`."""
    commands = {
        "train": (_train, "train a tokenizer on a text and save it as tokenizer.json"),
        "show": (_show, "describe a saved tokenizer and tokenize a line"),
        "compare": (_compare, "compare tokenizers on one text"),
    }
    return config.run_subcommand(argv, commands, "groundling tokenizer")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a tokenizer on the training split of a text and save it as tokenizer.json."""

    out_dir: Path
    """Folder for tokenizer.json; --data.tokenizer.path of `groundling pretrain` takes it."""
    tokenizer: Annotated[TokenizerConfig, tyro.conf.arg(name="")] = field(default_factory=TokenizerConfig)
    data: TextConfig = field(default_factory=TextConfig)


def _train(argv: list[str]) -> int:
    chosen = config.parse(TrainConfig, argv, "groundling tokenizer train")
    corpus = _prepare(chosen.data, chosen.tokenizer)
    save_tokenizer(corpus.tokenizer, atomic.make_folder(chosen.out_dir))
    print(
        f"{chosen.out_dir / FILE_NAME}: {corpus.tokenizer.kind}, {corpus.tokenizer.vocab_size:,} ids, "
        f"{corpus.val_part.chars_per_token:.2f} characters per token on the validation part"
    )
    return 0


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Describe a saved tokenizer and tokenize a line."""

    folder: tyro.conf.Positional[Path]
    """Folder with tokenizer.json, or a run or bundle."""
    text: str = "The quick brown fox said: \N{LATIN SMALL LETTER E WITH ACUTE}tude no. 10!"
    """Line to tokenize."""


def _show(argv: list[str]) -> int:
    chosen = config.parse(ShowConfig, argv, "groundling tokenizer show")
    is_named = chosen.folder.name == FILE_NAME
    tokenizer = load_tokenizer(_home_of_tokenizer(chosen.folder), links=is_named)
    console = Console()
    console.print(f"{tokenizer.kind}, {tokenizer.vocab_size:,} ids; a sample of its pieces:", highlight=False)
    step = max(1, tokenizer.vocab_size // N_PIECES_SHOWN)
    console.print(_coloured([tokenizer.piece(token) for token in range(0, tokenizer.vocab_size, step)], console))
    console.print(_cut(tokenizer, chosen.text, console))
    return 0


def _home_of_tokenizer(folder: Path) -> Path:
    """Return the folder of the tokenizer in a tokenizer's folder, a bundle or a run."""
    if folder.name == FILE_NAME:
        return folder.parent
    found = [folder / FILE_NAME, *sorted(folder.glob(f"*/{FILE_NAME}")), *sorted(folder.glob(f"*/*/{FILE_NAME}"))]
    return next((path.parent for path in found if files.is_regular(path)), folder)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Tokenize the validation split of a text with each tokenizer, and compare."""

    data: TextConfig = field(default_factory=TextConfig)
    vocab_size: int = TokenizerConfig.vocab_size
    """Vocabulary size of trained tokenizers: bpe, unigram, sp_bpe."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    """Tokenizers to compare."""
    text: Annotated[str | None, any_text()] = None
    """Line to tokenize; None: the first long line of the validation split."""


def _compare(argv: list[str]) -> int:
    chosen = config.parse(CompareConfig, argv, "groundling tokenizer compare")
    console = Console(markup=False)  # an extra in brackets is not markup
    table = Table("tokenizer", show_lines=True)
    for heading in ("vocabulary", "tokens", "characters / token"):
        table.add_column(heading, justify="right")
    table.add_column("a line of it")
    line = chosen.text
    for kind in chosen.kinds:
        try:
            corpus = _prepare(chosen.data, TokenizerConfig(kind=kind, vocab_size=chosen.vocab_size))
        except MissingExtraError as error:
            table.add_row(kind, "", "", "", str(error))
            continue
        line = line if line is not None else _first_long_line(corpus)
        table.add_row(
            kind,
            f"{corpus.tokenizer.vocab_size:,}",
            f"{corpus.val_part.n_tokens:,}",
            f"{corpus.val_part.chars_per_token:.2f}",
            _cut(corpus.tokenizer, line, console),
        )
    console.print(table)
    return 0


def _prepare(text: TextConfig, tokenizer: TokenizerConfig) -> Corpus:
    fields = {item.name: getattr(text, item.name) for item in dataclasses.fields(text)}
    return prepare(DataConfig(**fields, tokenizer=tokenizer), block_size=1)


def _first_long_line(corpus: Corpus) -> str:
    lines = corpus.tokenizer.decode(corpus.val.ids[:1000].tolist()).splitlines()
    return next((line for line in lines[1:] if len(line) >= 30), max(lines, key=len))


def _cut(tokenizer: Tokenizer, line: str, console: Console) -> Text:
    """Return the pieces of a line, or the reason why it cannot be encoded."""
    try:
        return _coloured([tokenizer.piece(token) for token in tokenizer.encode(line)], console)
    except DataError as error:
        return Text(str(error), style="red")


def _coloured(pieces: Sequence[str], console: Console) -> Text:
    """Show pieces in alternating colours, or separated by bars without colours."""
    shown = ["".join(map(visible, piece)) for piece in pieces]
    if console.color_system is None:
        return Text("|".join(shown))
    return Text.assemble(*((piece, COLOURS[place % len(COLOURS)]) for place, piece in enumerate(shown)))


def visible(character: str) -> str:
    """Return a printable stand-in for a character that a terminal would not show, or would interpret."""
    return SIGNS.get(character) or (character if character.isprintable() else f"<U+{ord(character):04X}>")
