"""`groundling data dialogues`: write the dialogues of plays as JSON lines."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from groundling import config
from groundling.data.corpus import TextConfig
from groundling.data.examples import shakespeare
from groundling.storage import atomic


@dataclass(frozen=True, kw_only=True)
class DialoguesConfig:
    """Write the dialogues of plays as JSON lines for fine-tuning."""

    out: tyro.conf.Positional[Path]
    """Output file, for example train.jsonl."""
    split: shakespeare.Split = "train"
    """Split of the text: the one used for pretraining, or the held-out one."""
    max_prompt: int = shakespeare.MAX_PROMPT
    """Maximum length of a user message in characters."""
    max_reply: int = shakespeare.MAX_REPLY
    """Maximum length of an assistant message in characters."""
    max_turns: int = 3
    """Maximum number of prompt-reply pairs in a dialogue."""
    data: TextConfig = field(default_factory=TextConfig)


def main(argv: list[str]) -> int:
    """Run `groundling data dialogues`."""
    chosen = config.parse(DialoguesConfig, argv, "groundling data dialogues")
    found = shakespeare.dialogues(
        "".join(chosen.data.text_files().pieces()),
        chosen.split,
        max_prompt=chosen.max_prompt,
        max_reply=chosen.max_reply,
        max_turns=chosen.max_turns,
        val_fraction=chosen.data.val_fraction,
    )
    lines = (json.dumps(conversation.to_row(), ensure_ascii=False) + "\n" for conversation in found)
    atomic.write_text(chosen.out, "".join(lines))
    print(f"{chosen.out}: {len(found):,} dialogues of the {chosen.split} part")
    return 0
