"""`python -m groundling.system.child_process VERB ...`: run a verb as a child that never outlives its parent.

The parent holds the other end of standard input. However it ends, also by SIGKILL, that end is closed, and the child is
asked to stop as by SIGTERM; if it takes too long, it ends all the same. It is nice: whoever waits for a reply of the
parent comes first.
"""

import os
import runpy
import signal
import threading
import time

GRACE_S = 10.0
NICE = 5


def main() -> None:
    """Run the verb as `python -m groundling` does, and exit with its code."""
    if hasattr(os, "nice"):
        os.nice(NICE)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runpy.run_module("groundling", run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    # Of the descriptor itself: a thread that waits in `sys.stdin` holds a lock that the interpreter needs to end.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
