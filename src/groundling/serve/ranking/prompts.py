"""Prompts to rank replies to."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from groundling.data.examples import shakespeare
from groundling.data.examples.conversations import read_prompts
from groundling.errors import DataError, StorageError
from groundling.serve.http.errors import ApiError
from groundling.serve.ranking.question_queue import Messages

RETRY_S = 60.0
"""Retry a failed download after this time."""


class Prompts:
    """Prompts from a file, or from Tiny Shakespeare's dialogues.

    Only the training split: the validation split is for evaluation.

    Raises:
        DataError: the file cannot be read or is invalid.
    """

    def __init__(self, file: Path | None) -> None:
        self.source = "Tiny Shakespeare" if file is None else file.name
        self._known: dict[Messages, None] = {} if file is None else dict.fromkeys(read_prompts(file))
        self._failed_at, self._failure = -RETRY_S, ""

    @property
    def n_known(self) -> int | None:
        """Number of prompts; None: not loaded yet."""
        return len(self._known) or None

    def n_among(self, answered: "Counter[Messages]") -> int:
        """How many of the prompts are among the answered ones; before they are loaded, the number of answered ones."""
        return len(answered.keys() & self._known.keys() if self._known else answered)

    def get(self) -> Sequence[Messages]:
        """All prompts. May download them: call it in a thread.

        Raises:
            ApiError: 409: no prompts are available.
        """
        if not self._known and time.monotonic() - self._failed_at > RETRY_S:
            try:
                found = shakespeare.prompts(shakespeare.shakespeare_dialogues()[0])
                self._known = dict.fromkeys(tuple(messages) for messages in found)
            except (DataError, StorageError) as error:
                self._failed_at, self._failure = time.monotonic(), " ".join(str(error).split())
        if not self._known:
            raise ApiError(409, f"there are no prompts ({self._failure}); type one, or give --prompts", "no_prompts")
        return list(self._known)
