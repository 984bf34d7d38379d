"""The errors that a user can cause.

Each message is one line: what came, what was expected, what to do. `groundling` prints it and exits with a
code other than 0; anything that is not one of these is our own bug and shows its traceback.
"""

from collections.abc import Collection

MAX_SIGNS = 1500
"""Of a message: what files and requests hold may be of any length."""


class GroundlingError(Exception):
    """The base of all errors that a user can cause. As text it is one line, whatever it quotes."""

    def __str__(self) -> str:
        return legible(super().__str__())


class ConfigError(GroundlingError, ValueError):
    """A setting has a value that cannot work, alone or together with another."""


class DataError(GroundlingError, ValueError):
    """A text, a token file or a download is not what it has to be."""


class CheckpointError(GroundlingError):
    """A checkpoint or a bundle is missing, damaged, or belongs to something else."""


class StorageError(GroundlingError, OSError):
    """A file could not be written: no room, no permission."""


class TrainingError(GroundlingError):
    """Training cannot go on, for example because a loss is not finite."""


class MissingExtraError(GroundlingError, ImportError):
    """An optional package is not installed; `command` installs it (`groundling.system.optional`)."""

    def __init__(self, package: str, extra: str, command: str) -> None:
        super().__init__(f"the package {package!r} is not installed; install the extra {extra!r}: {command}")
        self.package, self.extra, self.command = package, extra, command

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.package, self.extra, self.command)  # a pickle would hand the message to __init__


def legible(text: str) -> str:
    """Text of unknown origin on one line: escapes for what does not print, and the middle of a long one left out."""
    if len(text) > 4 * MAX_SIGNS:  # escapes only make it longer
        n_left_out = len(text) - MAX_SIGNS
        head, tail = (legible(part) for part in (text[: MAX_SIGNS - 500], text[-500:]))
        return f"{head[: MAX_SIGNS - 500]} [{n_left_out:,} characters left out] {tail[-500:]}"
    shown = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
    n_left_out = len(shown) - MAX_SIGNS
    if n_left_out <= 0:
        return shown
    return f"{shown[: MAX_SIGNS - 500]} [{n_left_out:,} characters left out] {shown[-500:]}"


def require(condition: bool, message: str) -> None:
    """Check a config where it is declared.

    Raises:
        ConfigError: `condition` does not hold; `message` says what came, what was expected, what to do.
    """
    if not condition:
        raise ConfigError(message)


def near_name(name: str, known: Collection[str], listing: str) -> str:
    """What to say of a name that is not known: the one that was probably meant, or after `listing` all there are."""
    import difflib  # only where something went wrong

    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"{listing}: {', '.join(known)}"
