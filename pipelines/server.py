"""A Prefect API server of our own for one run, for users who have none.

Must be started before prefect is imported, because prefect reads its settings then. Faster than prefect's built-in
temporary server, and child processes share it. Uses the user's server instead where PREFECT_API_URL is set. Does not
import prefect.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cl_core.errors import ContrastError
from pipelines import leash

START_TIMEOUT = 120.0  # seconds; a first start creates the database, about 15 s on 2 cores
HOME = Path(".contrast/prefect")  # below the project


def configured() -> bool:
    """Whether the user has a Prefect server for us to report to."""
    return bool(os.environ.get("PREFECT_API_URL"))


def reach_configured(timeout: float = 5.0) -> None:
    """Raise ContrastError where the user's server cannot be reached; any answer, even a refusal, will do here."""
    url = os.environ["PREFECT_API_URL"]
    try:
        urllib.request.urlopen(f"{url}/health", timeout=timeout).close()  # noqa: S310 - the user's own address
    except urllib.error.HTTPError as refusal:
        refusal.close()
    except (OSError, ValueError) as error:
        raise ContrastError(
            f"no Prefect server answers at PREFECT_API_URL {url} ({error}); start it (`prefect server start`), or "
            f"unset the variable to run with one of our own"
        ) from None


def set_environment(project: Path) -> None:
    """Keep Prefect's state in the project, its telemetry off and its console silent; the environment's settings win.

    With a home of its own Prefect does not see the user's profiles: a server's key comes from PREFECT_API_KEY.
    """
    home = project / HOME
    home.mkdir(parents=True, exist_ok=True)
    defaults = {
        "PREFECT_HOME": str(home),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        # To a server that people look at go the stages' lines; to one that ends with the run only warnings.
        "PREFECT_LOGGING_LEVEL": "INFO" if configured() else "WARNING",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the table of stages says it, and says it once
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@contextmanager
def available(project: Path) -> Iterator[None]:
    """Have a Prefect server to talk to: the user's, or one of our own for as long as the context lasts."""
    set_environment(project)
    if configured():
        reach_configured()
        yield
        return
    own = Server(project)
    try:
        own.wait()
        yield
    finally:
        own.stop()


class Server:
    """A Prefect API server on a free port of this machine that ends with this process."""

    def __init__(self, project: Path) -> None:
        """Start it without waiting, and point PREFECT_API_URL at it."""
        set_environment(project)
        self.log = project / HOME / "server.log"
        self.url = f"http://127.0.0.1:{_free_port()}/api"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                leash.command("uvicorn", *_arguments(self.url)),
                env={**os.environ, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_FINAL": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.environ["PREFECT_API_URL"] = self.url
        atexit.register(self.stop)

    def wait(self, timeout: float = START_TIMEOUT) -> None:
        """Return when it answers. Raises ContrastError where it ends or stays silent instead."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ContrastError(f"the Prefect server ended with code {self._process.returncode}; see {self.log}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:  # noqa: S310 - http, ours
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.1)
        raise ContrastError(f"the Prefect server did not answer within {timeout:g} s; see {self.log}")

    def stop(self) -> None:
        """End the server; calling it again does no harm."""
        if os.environ.get("PREFECT_API_URL") == self.url:
            del os.environ["PREFECT_API_URL"]
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _arguments(url: str) -> list[str]:
    port = url.rpartition(":")[2].partition("/")[0]
    where = ["--host", "127.0.0.1", "--port", port, "--log-level", "error", "--lifespan", "on"]
    return ["--factory", "prefect.server.api.server:create_app", *where]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
