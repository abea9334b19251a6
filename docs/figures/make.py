"""Make the figures of docs/story.md: `python docs/figures/make.py [NAME ...]`, all of them without a name.

Each figure is a function of the name of its file, in `pretext`, `joint` and `charts`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import charts
import joint
import numpy as np
import pretext
from canvas import save

HERE = Path(__file__).parent

FIGURES: dict[str, Callable[[], np.ndarray]] = {
    name: getattr(module, name) for module in (charts, pretext, joint) for name in module.__all__
}


def main(names: list[str]) -> None:
    """Make the named figures, or all."""
    for name in names or FIGURES:
        save(FIGURES[name](), HERE / f"{name}.png")
        print(f"{name}.png  {(HERE / f'{name}.png').stat().st_size / 1000:.1f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
