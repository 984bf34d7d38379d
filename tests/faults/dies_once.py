"""Run by torchrun: `groundling`, one rank of which is killed (kill -9) before one of its updates, at the first attempt.

DIES_RANK and DIES_AT say which rank, and before which update.
"""

import os
import signal

from groundling.cli import console
from groundling.train import loop

_train_step, _made = loop.train_step, [0]


def _dying(*args, **kwargs):
    if _made[0] == int(os.environ["DIES_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    _made[0] += 1
    return _train_step(*args, **kwargs)


if os.environ["RANK"] == os.environ["DIES_RANK"] and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    loop.train_step = _dying
console()
