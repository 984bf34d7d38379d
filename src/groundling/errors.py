"""Errors that a user can cause.

Each message is one line: what was found, what was expected, what to do. `groundling` prints it and exits with a
non-zero code; any other exception is a bug and shows its traceback.
"""

from collections.abc import Collection

MAX_CHARACTERS = 1500
"""Maximum length of a message; messages quote files and requests of any length."""


class GroundlingError(Exception):
    """Base of all errors that a user can cause. Its text is one line."""

    def __str__(self) -> str:
        return legible(super().__str__())


class ConfigError(GroundlingError, ValueError):
    """A setting is invalid, alone or in combination with another."""


class DataError(GroundlingError, ValueError):
    """A text, a token file or a download is invalid."""


class CheckpointError(GroundlingError):
    """A checkpoint or a bundle is missing, damaged or does not match."""


class StorageError(GroundlingError, OSError):
    """A file cannot be written: disk full, no permission."""


class TrainingError(GroundlingError):
    """Training cannot continue, for example because a loss is not finite."""


class MissingExtraError(GroundlingError, ImportError):
    """An optional package is not installed; `command` installs it (`groundling.system.optional`)."""

    def __init__(self, package: str, extra: str, command: str) -> None:
        super().__init__(f"the package {package!r} is not installed; install the extra {extra!r}: {command}")
        self.package, self.extra, self.command = package, extra, command

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.package, self.extra, self.command)  # by default, pickle passes the message to __init__


def legible(text: str) -> str:
    """Make text printable on one line: escape control characters and shorten long text in the middle."""
    if len(text) > 4 * MAX_CHARACTERS:  # cut before escaping, which only adds characters
        n_left_out = len(text) - MAX_CHARACTERS
        head, tail = (legible(part) for part in (text[: MAX_CHARACTERS - 500], text[-500:]))
        return f"{head[: MAX_CHARACTERS - 500]} [{n_left_out:,} characters left out] {tail[-500:]}"
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    n_left_out = len(shown) - MAX_CHARACTERS
    if n_left_out <= 0:
        return shown
    return f"{shown[: MAX_CHARACTERS - 500]} [{n_left_out:,} characters left out] {shown[-500:]}"


def require(condition: bool, message: str) -> None:
    """Check a config.

    Raises:
        ConfigError: `condition` is false; `message` says what was found, what was expected, what to do.
    """
    if not condition:
        raise ConfigError(message)


def near_name(name: str, known: Collection[str], listing: str) -> str:
    """Hint for an unknown name: the closest known name, or `listing` followed by all of them."""
    import difflib  # needed only for errors

    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"{listing}: {', '.join(known)}"
