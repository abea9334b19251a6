"""The two questions that images cannot answer, and what is taken for an answer where nobody is there to give one.

Does a mirrored image mean the same? Does colour carry meaning? Flags answer them, else a person at a terminal, else the
images' kind suggests something, which is then said to be a guess.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.project.look import Images

Ask = Callable[[str, bool], bool]  # question, default -> answer


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What holds, and why. guessed: whether nobody was asked, so that it should be looked at."""

    holds: bool
    why: str
    guessed: bool = False


@dataclass(frozen=True, kw_only=True)
class Answers:
    """mirror: a mirrored image means the same. colour: colour carries meaning."""

    mirror: Answer
    colour: Answer

    def told(self) -> list[str]:
        """Lines for the screen: what was guessed, and how to say it."""
        means, carries = self.mirror, self.colour
        lines = []
        if means.guessed:
            same, other = ("the same", "--no-mirror") if means.holds else ("something else", "--mirror")
            lines.append(f"a mirrored image means {same} ({means.why}); if not, repeat with {other} --force")
        if carries.guessed:
            does, other = ("means something", "--no-colour") if carries.holds else ("means nothing", "--colour")
            lines.append(f"colour {does} by itself ({carries.why}); if not so, repeat with {other} --force")
        return lines


def answers(images: Images, *, mirror: bool | None, colour: bool | None, ask: Ask | None) -> Answers:
    """mirror, colour: as given by flags, None where not. ask: puts a question to a person; None where there is none."""
    return Answers(mirror=_mirror(images, mirror, ask), colour=_colour(images, colour, ask))


def person() -> Ask | None:
    """Asks at the terminal; None where input or output is none."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    import click

    return lambda question, default: click.confirm(question, default=default)


def _mirror(images: Images, given: bool | None, ask: Ask | None) -> Answer:
    likely = images.kind != "drawings"
    why = "line drawings may be letters or digits" if not likely else f"as in most {images.look}"
    question = "Does an image mean the same when it is mirrored, left for right? (letters and digits: no)"
    return _answer(given, ask, question, Answer(holds=likely, why=why, guessed=True))


def _colour(images: Images, given: bool | None, ask: Ask | None) -> Answer:
    if images.is_grey and given is None:
        return Answer(holds=False, why="the images are grey")
    question = "Does colour by itself carry meaning, as in ripe and unripe fruit? (mere light and surroundings: no)"
    return _answer(given, ask, question, Answer(holds=False, why="what things are seldom hangs on it", guessed=True))


def _answer(given: bool | None, ask: Ask | None, question: str, likely: Answer) -> Answer:
    if given is not None:
        return Answer(holds=given, why="as you said")
    if ask is not None:
        return Answer(holds=ask(question, likely.holds), why="as you said")
    return likely
