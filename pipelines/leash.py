"""Run a Python module that ends when the process that started it ends: `python -m pipelines.leash PID MODULE ARGS...`.

DVC and the Prefect server are started through this, each as the leader of a process group of its own. When process PID
is no longer the parent, the group gets what Ctrl-C would send it, so that a training stage saves and DVC releases its
locks; what does not end in time is ended by force. Works on every Unix: Linux's own parent-death signal reaches one
process only, fires when the starting *thread* ends, and does not exist on macOS. Refuses to outlive its parent.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

PERIOD = 0.5  # seconds between looks at the parent
ESCALATION = ((signal.SIGINT, 30.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))  # seconds of grace after each


def command(module: str, *arguments: str) -> list[str]:
    """The argument list that runs a module on a leash held by this process; start it in a new session."""
    # -P: a folder of the user's project that happens to be called `pipelines` must not be imported for ours
    return [sys.executable, "-P", "-m", "pipelines.leash", str(os.getpid()), module, *arguments]


def main() -> None:
    """Watch the parent in the background and become the module."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    # A run in the background (nohup, cron, `&` in a script) hands down that Ctrl-C is to be ignored. Here it is how we
    # ask a stage to save, and it reaches this group from us alone.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PERIOD)
    for sign, grace in ESCALATION:
        os.killpg(0, sign)
        time.sleep(grace)


if __name__ == "__main__":
    main()
