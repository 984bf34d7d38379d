"""What raters are asked to rank replies to."""

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
"""After which what could not be fetched is tried again."""


class Prompts:
    """What is asked: the lines of a file, or what is said in Tiny Shakespeare's plays.

    Of these the training part: what is said in the other one is kept for measuring what has been learned.

    Raises:
        DataError: the file is none.
    """

    def __init__(self, file: Path | None) -> None:
        self.source = "Tiny Shakespeare" if file is None else file.name
        self._known: dict[Messages, None] = {} if file is None else dict.fromkeys(read_prompts(file))
        self._failed_at, self._failure = -RETRY_S, ""

    @property
    def n_known(self) -> int | None:
        """How many there are, as far as they were looked for."""
        return len(self._known) or None

    def n_among(self, answered: "Counter[Messages]") -> int:
        """How many different ones somebody has answered; while it is not known which there are, any count."""
        return len(answered.keys() & self._known.keys() if self._known else answered)

    def get(self) -> Sequence[Messages]:
        """All of them; in a thread, for they may have to be fetched.

        Raises:
            ApiError: 409: there are none.
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
