"""Read a foreign `config.json`; errors name the key with a wrong value."""

from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from groundling.errors import CheckpointError

MAX_SIZE = 10**7
"""Maximum of a size; a larger model cannot be built."""


class ForeignConfig:
    """Values of a `config.json`; an absent or null key takes the family's default in `transformers`.

    Args:
        values: content of the file.
        where: name of the file in errors.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def _refuse(self, key: str, expected: str) -> NoReturn:
        raise CheckpointError(f"{self.where}: {key} is {self.values.get(key)!r}; {expected}")

    def size(self, key: str, default: int | None = None) -> int:
        """Return an integer. Raises CheckpointError if it is missing without a default, or is something else."""
        value = self._get(key, default)
        if type(value) is not int or abs(value) > MAX_SIZE:
            self._refuse(key, f"it must be a whole number of at most {MAX_SIZE:,}, or the model cannot be built")
        return value

    def number(self, key: str, default: float) -> float:
        """Return a number. Raises CheckpointError for anything else."""
        value = self._get(key, default)
        return self._finite(key, value)

    def _finite(self, key: str, value: Any) -> float:
        if type(value) not in (int, float) or not abs(value) < 1e30:
            self._refuse(key, "it must be a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean. Raises CheckpointError for anything else."""
        value = self._get(key, default)
        if type(value) is not bool:
            self._refuse(key, "it must be true or false")
        return value

    def choice(self, key: str, default: str, known: Collection[str], synonyms: Mapping[str, str]) -> str:
        """Return one of the known words, resolving synonyms. Raises CheckpointError for any other."""
        value = self._get(key, default)
        value = synonyms.get(value, value) if isinstance(value, str) else value
        if value not in known:
            self._refuse(key, f"our model has only {', '.join(known)}, so this one cannot be imported exactly")
        return str(value)

    def require(self, key: str, default: Any, expected: Any) -> None:
        """Check a key that our model fixes. Raises CheckpointError unless it is `expected`."""
        if self._get(key, default) != expected:
            self._refuse(key, f"our model is built for {expected!r} only, so this one cannot be imported exactly")

    def rope_theta(self) -> float:
        """Return the base of the rotary angles, at its place in transformers 4 or 5.

        Raises:
            CheckpointError: the angles are scaled or partial, which our model does not support.
        """
        self.require("partial_rotary_factor", 1.0, 1.0)
        theta: Any = self.number("rope_theta", 10_000.0)
        for key in ("rope_scaling", "rope_parameters"):
            rope = self._get(key, {})
            if not isinstance(rope, dict):
                self._refuse(key, "it must be an object")
            kind = rope.get("rope_type", rope.get("type", "default"))
            if kind != "default":
                raise CheckpointError(
                    f"{self.where}: {key} is of type {kind!r}; our rotary angles are never scaled, "
                    "so only a model with default ones can be imported exactly"
                )
            if rope.get("partial_rotary_factor", 1.0) != 1.0:
                self._refuse(key, "our rotary angles turn whole heads, so this one cannot be imported exactly")
            theta = rope.get("rope_theta", theta)
        return self._finite("rope_parameters", theta)
