"""Damaged and hostile files, drawn from a seed: what every loader has to take."""

import copy
import json
import random
from pathlib import Path
from typing import Any

from groundling.storage.manifest import MANIFEST, write_manifest

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 255, 65_536, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**30, 10**9, 10_000,
    0.0, -0.0, 0.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"),
    "", "x", "None", "\u0000", "\ud800", "a\r\nb\u001b[2J", "9" * 50, "../../x", "/etc/passwd", "a" * 20_000,
    [], [[]], {}, [None], [0], [1.5], ["x"], [["a", "b"]], [0] * 10_000, {"help": True}, {"": 0}, {"x": {"x": []}},
]  # fmt: skip
KEYS = [
    "",
    "help",
    "tyro-write-completion",
    "__class__",
    "n_layer",
    "type",
    "model",
    "files",
    "x" * 5000,
    "\u0000",
    "0",
]


def deep(n: int) -> str:
    """JSON that is n lists deep."""
    return "[" * n + "]" * n


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a piece of JSON; of a long list, the first few."""
    found = [path]
    if isinstance(value, dict):
        for key in list(value)[:50]:
            found += places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 5)):
            found += places(value[index], (*path, index))
    return found


def changed(value: Any, chance: random.Random) -> str:
    """JSON text of a value that differs in one to three places."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        *path, last = chance.choice(places(value)) or (None,)
        if last is None:
            value = copy.deepcopy(chance.choice(VALUES)) if chance.random() < 0.2 else value
            continue
        around = value
        for key in path:
            around = around[key]
        kind = chance.randrange(6)
        if kind == 0:
            del around[last]
        elif kind == 1 and isinstance(around, dict):
            around[chance.choice(KEYS)] = copy.deepcopy(chance.choice(VALUES))
        elif kind == 2 and isinstance(around[last], int) and not isinstance(around[last], bool):
            around[last] = around[last] * chance.choice([2, 10, 1000]) + chance.choice([-1, 0, 1])
        elif kind == 3 and isinstance(around, dict):
            others = [other for other in around.values() if other is not around]
            around[last] = copy.deepcopy(chance.choice(others))
        else:
            around[last] = copy.deepcopy(chance.choice(VALUES))
    return json.dumps(value)


def damaged(text: bytes, chance: random.Random) -> bytes:
    """A file's bytes with some of them changed, cut off, doubled or put in."""
    place = chance.randrange(len(text) + 1)
    kind = chance.randrange(5)
    if kind == 0:
        return text[:place]
    if kind == 1:
        return text[:place] + bytes(chance.choices(range(256), k=chance.choice([1, 3, 100]))) + text[place:]
    if kind == 2:
        return text[:place] + text[place + chance.choice([1, 2, 50]) :]
    if kind == 3:
        return text + text[place:]
    flipped = bytearray(text or b"x")
    flipped[place % len(flipped)] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def with_header(before: bytes, chance: random.Random) -> bytes:
    """A file of safetensors whose header promises something else: other types, shapes, places or names."""
    n_header = int.from_bytes(before[:8], "little")
    header = json.loads(before[8 : 8 + n_header])
    name = chance.choice([name for name in header if name != "__metadata__"])
    if chance.random() < 0.5:
        header[name]["dtype"] = chance.choice(
            ["I64", "I32", "I16", "U8", "BOOL", "C64", "F64", "F16", "F8_E4M3", "F4", "X"]
        )
        text = json.dumps(header)
    else:
        text = changed(header, chance)
    made = text.encode("utf-8", "surrogatepass")
    return len(made).to_bytes(8, "little") + made + before[8 + n_header :]


def attack(file: Path, chance: random.Random, sealed_in: Path | None) -> str:
    """Change a file, seal its folder's manifest again where there is one, and say how to make the same."""
    before = file.read_bytes()
    if file.suffix == ".json" and chance.random() < 0.75:
        after = changed(json.loads(before), chance).encode("utf-8", "surrogatepass")
    elif file.suffix == ".json" and chance.random() < 0.2:
        after = deep(chance.choice([600, 100_000])).encode()
    elif file.suffix == ".toml" and chance.random() < 0.5:
        after = f"{json.dumps(chance.choice(KEYS))} = {json.dumps(chance.choice(VALUES))}\n".encode() + before
    elif file.suffix == ".safetensors" and chance.random() < 0.5:
        after = with_header(before, chance)
    else:
        after = damaged(before, chance)
    file.write_bytes(after)
    if sealed_in is not None and file.name != MANIFEST:
        facts = json.loads((sealed_in / MANIFEST).read_bytes())
        facts = {name: value for name, value in facts.items() if name not in ("files", "sha256")}
        write_manifest(sealed_in, facts)
    return f"{file.name}: {after[:300]!r}"
