"""`python -m groundling.system.child_process VERB ...`: run a verb as a child that never outlives its parent.

The parent holds the other end of standard input, which closes however the parent ends, even by SIGKILL. The child then
sends itself SIGTERM, and exits after a grace period. Its priority is lower than that of the parent, a server.

Why not a process pool: a verb is a whole command, with its own signal handlers, output and exit code.
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
    # Read the descriptor: a thread blocked in `sys.stdin` holds a lock that the interpreter needs at exit.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
