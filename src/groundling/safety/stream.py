"""Safety filter for prompts and streamed replies.

Every action is reported with its rule and reason. Blocked or redacted text is never shown, not even in part: the filter
holds back the end of a stream while it could be the beginning of a match. Results do not depend on how the text was cut
into pieces. The rules are simple, and no guarantee.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from groundling.safety.finders import CONTEXT, Finder
from groundling.safety.rules import Action, Rule, Where, read_rules

PIECE = 256
"""Characters to search at a time: each match costs another search of its piece."""
DEFAULT = Path(str(resources.files("groundling.safety") / "default.toml"))


@dataclass(frozen=True)
class Finding:
    """A match, and the action taken."""

    rule: str
    reason: str
    action: Action
    where: Where


class Segment(NamedTuple):
    """Text to show for the next `n_raw` characters."""

    text: str
    n_raw: int
    redacted: bool


class Find(NamedTuple):
    """First match of a rule in the rest of a text."""

    start: int
    end: int
    rule: Rule
    finder: Finder

    @property
    def blocks(self) -> bool:
        """Whether nothing is shown from its start on."""
        return self.rule.action == "block"


class Safety:
    """A set of rules, safe to share between threads."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)

    @classmethod
    def from_file(cls, path: Path = DEFAULT) -> "Safety":
        """Read rules from a TOML file.

        Raises:
            ConfigError: the file cannot be read, or a rule is invalid.
        """
        return cls(read_rules(path))

    def with_rule(self, rule: Rule) -> "Safety":
        """A copy with one more rule."""
        return Safety([*self._rules, rule])

    def check_prompt(self, text: str) -> tuple[str, list[Finding]]:
        """The filtered prompt, and the findings. If one blocks, do not run the model."""
        prompt_filter = ReplyFilter(self._rules, "prompt")
        shown = [*prompt_filter.push(text), *prompt_filter.finish()]
        return "".join(segment.text for segment in shown), prompt_filter.findings

    def reply(self) -> "ReplyFilter":
        """A filter for one reply."""
        return ReplyFilter(self._rules, "reply")


class ReplyFilter:
    """Filters one streamed text.

    `findings` are those so far; once `blocked`, nothing more is shown.
    """

    def __init__(self, rules: Sequence[Rule], where: Where) -> None:
        self.findings: list[Finding] = []
        self.blocked = False
        self._where = where
        self._finders: list[tuple[Rule, Finder]] = [(rule, rule.finder()) for rule in rules if where in rule.where]
        self._searched = [0] * len(self._finders)  # no match of a finder begins before
        self._text, self._place = "", 0  # left context, then from `_place` on the text held back
        self._carried: Find | None = None  # the rest of a match that begins in redacted text

    def push(self, text: str) -> list[Segment]:
        """Add a piece; return the segments that can be shown now."""
        segments: list[Segment] = []
        for at in range(0, len(text), PIECE):
            if self.blocked:
                break
            self._text += text[at : at + PIECE]
            segments += self._process(ended=False)
        return segments

    def finish(self) -> list[Segment]:
        """End the text; return the segments that were held back."""
        if self.blocked:
            return []
        for _, finder in self._finders:
            if hasattr(finder, "end"):
                finder.end(self._text)
        return self._process(ended=True)

    def _process(self, *, ended: bool) -> list[Segment]:
        """Process everything that more text cannot change."""
        segments: list[Segment] = []
        while not self.blocked:
            decided, finds = self._search()
            undecided = len(self._text) + 1 if ended else decided
            # The first match; of several, the longest; of these, the first rule's.
            first = self._carried or min(finds, key=lambda find: (find.start, -find.end), default=None)
            # Before redacting, wait for matches that could begin inside and end after it.
            if first is None or (first.start >= undecided if first.blocks else first.end > undecided):
                until = len(self._text) if first is None else first.start
                self._release(min(undecided, until, len(self._text)), segments)
                break
            self._release(first.start, segments)
            rule = first.rule
            self.findings.append(Finding(rule.name, rule.reason, rule.action, self._where))
            if first.blocks:
                self.blocked = True
            else:
                segments.append(Segment(rule.mark, first.end - first.start, True))
                self._hide(first, finds)
        self._forget()
        return segments

    def _search(self) -> tuple[int, list[Find]]:
        """The position up to which more text changes nothing, and the first match of each rule."""
        decided, finds = len(self._text), []
        for number, (rule, finder) in enumerate(self._finders):
            until = finder.undecided(self._text, self._place)
            find = self._find(rule, finder, max(self._place, self._searched[number]))
            if find is not None:
                finds.append(find)
            self._searched[number] = until if find is None else min(until, find.start)
            decided = min(decided, until)
        return decided, finds

    def _find(self, rule: Rule, finder: Finder, start: int) -> Find | None:
        span = finder.first(self._text, start)
        if span is None:
            return None
        return Find(span.start, len(self._text) if span.end is None else span.end, rule, finder)

    def _hide(self, first: Find, finds: Sequence[Find]) -> None:
        """Redact a match, and continue after it as if the text began there.

        Matches that begin inside it and end after it are carried over, so that their rest is not shown.
        """
        start, end = first.start, first.end
        beyond = [find for each in finds for find in self._within(each, end) if find.end > end]
        self._carried = None
        if beyond:
            self._carried = max(beyond, key=lambda find: (find.blocks, find.end))._replace(start=end)
        self._text = self._text[:start] + " " * (end - start) + self._text[end:]
        self._place = end
        self._searched = [end] * len(self._finders)
        for _, finder in self._finders:
            if hasattr(finder, "hidden"):
                finder.hidden(end)

    def _within(self, find: Find | None, end: int) -> Iterator[Find]:
        """All matches of a rule that begin before `end`."""
        while find is not None and find.start < end:
            yield find
            find = self._find(find.rule, find.finder, find.start + 1)

    def _release(self, end: int, segments: list[Segment]) -> None:
        if end > self._place:
            segments.append(Segment(self._text[self._place : end], end - self._place, False))
            self._place = end

    def _forget(self) -> None:
        n = self._place - 4 * CONTEXT
        if n > 0:
            self._text, self._place = self._text[n:], self._place - n
            self._searched = [place - n for place in self._searched]
            if self._carried is not None:
                self._carried = self._carried._replace(start=self._carried.start - n, end=self._carried.end - n)
            for _, finder in self._finders:
                if hasattr(finder, "forget"):
                    finder.forget(n)
