"""Everything a user can get wrong, as exceptions whose message is the help.

A message names the thing, the bad value, the rule and the edit that fixes it. `ConfigError` can carry several
problems, so that one run reports them all.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ContrastError(Exception):
    """Base of all errors that are the user's to fix; the command line prints them without a traceback."""


class ConfigError(ContrastError):
    """The project files are wrong. `problems` holds one line per mistake."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class PluginError(ContrastError):
    """A plugin could not be loaded, or two plugins claim the same name."""


class DataError(ContrastError):
    """The images, the store or the features cannot be used as they are."""


class CheckpointError(ContrastError):
    """Weights do not fit the model that should take them."""


class CollapseError(ContrastError):
    """Training produced a useless representation or a loss that is not finite."""


class NoGainError(ContrastError):
    """Half of the updates have not made the representation better than the untrained encoder's."""


class Interrupted(ContrastError):  # noqa: N818 - not an error, a stop that was asked for
    """Training was asked to stop; its state is saved and the same command continues it."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: "try again later"


class FailedElsewhere(ContrastError):  # noqa: N818 - another process has the error, and tells it
    """Of the processes that train together, the first failed at what it does for all."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " - did you mean 'x'?" for the nearest known word, or "" where none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" - did you mean {close[0]!r}?" if close else ""
