"""Laws of the pages: the README is short and leads to the code, links lead somewhere, and no path is this machine's."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md", *(ROOT / ".github").rglob("*.md")]
PAGES += [*(ROOT / "src").rglob("*.md")]
PAGES += [path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts]


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def links(text: str) -> list[str]:
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)) if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """As GitHub and MyST name headings; and MyST's own targets."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    named = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return named | set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in links(page.read_text("utf-8")):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there.read_text("utf-8")), target


def test_the_readme_is_short_and_leads_to_each_rung_in_one_hop():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 110
    linked = set(links(text))
    rungs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "src/groundling/ladder").glob("s[1-9]_*.py")}
    assert len(rungs) == 9
    assert rungs <= linked
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "src/groundling").glob("*/__init__.py")}
    assert folders <= linked


def test_each_term_of_the_glossary_is_defined_where_its_link_leads():
    page = ROOT / "docs/reference/glossary.md"
    rows = re.findall(r"^\|.*\| (.*) \|$", page.read_text("utf-8"), re.MULTILINE)
    terms = [re.fullmatch(r"\[`(\w+)`\]\((.+\.py)\)", row) for row in rows if row != "in the code"]
    assert len(terms) > 40
    for row, term in zip((row for row in rows if row != "in the code"), terms, strict=True):
        assert term, row
        source = (page.parent / term[2]).read_text("utf-8")
        assert re.search(rf"^(?:(?:class|def) {term[1]}\b|{term[1]}\b.* = )", source, re.MULTILINE), row


def test_every_included_file_is_linked_above():
    """GitHub does not render `literalinclude`."""
    for page in PAGES:
        above = ""
        for block in page.read_text("utf-8").split("\n\n"):
            for name in re.findall(r"(?:^```{literalinclude}|^:diff:) (\S+)$", block, re.MULTILINE):
                assert f"]({name})" in above, (page.name, name)
            above = block


def test_no_page_names_a_path_of_a_machine():
    for page in PAGES:
        assert not re.search(r"(?<![\w.~$])/(?:tmp|home|root|work|Users)/", page.read_text("utf-8")), page.name


def test_each_folder_lists_its_files_in_its_docstring():
    """In reading order, which nobody can check; but none is left out, and none is there that has gone."""
    source = ROOT / "src/groundling"
    for init in sorted(source.rglob("__init__.py")):
        listed = re.findall(
            r"^    (\w+\.py|\w+/)  +\S", ast.get_docstring(ast.parse(init.read_text("utf-8"))), re.MULTILINE
        )
        files = {path.name for path in init.parent.glob("*.py")} - {"__init__.py", "__main__.py"}
        folders = {f"{path.name}/" for path in init.parent.iterdir() if path.is_dir() and any(path.glob("*.*"))}
        assert sorted(listed) == sorted(files | folders - {"__pycache__/"}), init.relative_to(source)
        assert len(files) <= 15, init.relative_to(source)


@pytest.mark.parametrize("page", sorted((ROOT / "docs/ladder").glob("*.md")), ids=lambda page: page.stem)
def test_each_page_of_the_ladder_shows_its_figure(page):
    shown = dict(re.findall(r"^!\[([^\]]+)\]\(([^)]+)\)$", page.read_text("utf-8"), re.MULTILINE))
    name = "../images/ladder.png" if page.stem == "index" else f"figures/{page.stem}.svg"
    assert name in shown.values()
    figure = (page.parent / name).read_bytes()
    if name.endswith(".svg"):
        assert len(figure) < 60_000
        assert not re.search(rb"<dc:date>|/home/|/tmp/|/work/", figure)
