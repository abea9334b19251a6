"""What the speed benchmarks share: the peers' environment, timing side by side, and the table in RESULTS.md.

A script of this folder measures one claim:

    harness.with_peers("lightly==1.5.22")             # at the top, before the peer is imported
    args = harness.arguments(__doc__)                 # --smoke: seconds instead of minutes
    times = harness.side_by_side({"contrast": ours, "lightly": theirs}, rounds=args.rounds(9))
    row = harness.faster("two views at 32 px", times, per="views", count=2 * 512, target=10)
    harness.finish(__file__, "How it was measured.", [row], args)

Both sides run in one process, one after the other in every round, so that a busy machine slows both; what counts is the
median over rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
MEASURED = HERE / "measured"  # one JSON file per script; RESULTS.md is made of them
RESULTS = HERE / "RESULTS.md"
ENVIRONMENTS = ROOT / ".contrast" / "benchmarks"

#: A smoke run is too short for a figure; it fails only where less than this share of the target is left.
COLLAPSE = 0.4

_BEGIN, _END = "<!-- speed: written by `make bench` -->", "<!-- /speed -->"
_NAMED = ("torch", "torchvision", "numpy", "simplejpeg", "pillow", "scikit-learn")
_MIB = 2**20

sys.path.insert(0, str(ROOT))  # what is measured is this checkout

Times = Mapping[str, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: how many times better ours is, in the median, lowest and highest over the rounds.

    ours, theirs: what was measured, with its unit. target: the ratio that is asked for; None for a figure that is only
    reported.
    """

    claim: str
    peer: str
    ours: str
    theirs: str
    ratio: float
    low: float
    high: float
    rounds: int
    target: float | None = None

    @property
    def outcome(self) -> str:
        """Met, missed, or nothing where there is no target."""
        if self.target is None:
            return ""
        return "met" if self.ratio >= self.target else "missed"


@dataclass(frozen=True)
class Arguments:
    """How a script was called."""

    smoke: bool

    def rounds(self, full: int) -> int:
        """Rounds to measure: `full`, or 3 in a smoke run."""
        return min(full, 3) if self.smoke else full


def with_peers(*requirements: str) -> None:
    """Go on in an environment that has these packages on top of ours; the script starts once more in there.

    The environment sees the packages of the one that called, so both sides use the same torch.
    """
    python = _environment(requirements) / "bin" / "python"
    if Path(sys.prefix) != python.parents[1]:
        sys.stdout.flush()
        os.execv(python, [python, *sys.argv])  # noqa: S606 - our own interpreter, no shell needed


def arguments(description: str | None) -> Arguments:
    """Read the command line that all scripts share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes; fails only on a collapse")
    return Arguments(smoke=parser.parse_args().smoke)


def side_by_side(sides: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """{side: seconds per round}; in every round each side runs once, in an order that changes from round to round."""
    for _ in range(warmup):
        for run in sides.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    order = random.Random(0)  # noqa: S311 - an order, not a secret
    for _ in range(rounds):
        for name in order.sample(list(sides), len(sides)):
            gc.collect()
            began = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def faster(
    claim: str, times: Times, *, per: str, count: float, target: float | None = None, ours: str = "contrast"
) -> Row:
    """How many times faster `ours` is than the other side of `times`, which has two; count: of `per` in a round."""
    (peer,) = (name for name in times if name != ours)
    ratios = [theirs / mine for mine, theirs in zip(times[ours], times[peer], strict=True)]
    speeds = {name: f"{count / statistics.median(values):,.0f} {per}/s" for name, values in times.items()}
    return _row(claim, peer, (speeds[ours], speeds[peer]), ratios, target)


def less(
    claim: str, amounts: Times, *, unit: str, target: float | None = None, ours: str = "contrast", digits: int = 1
) -> Row:
    """How many times less `ours` takes (seconds, MiB ...) than the other side of `amounts`, which has two."""
    (peer,) = (name for name in amounts if name != ours)
    ratios = [theirs / mine for mine, theirs in zip(amounts[ours], amounts[peer], strict=True)]
    shown = {name: f"{statistics.median(values):,.{digits}f} {unit}" for name, values in amounts.items()}
    return _row(claim, peer, (shown[ours], shown[peer]), ratios, target)


def within(claim: str, amounts: Sequence[float], limit: float, *, unit: str, digits: int = 1) -> Row:
    """A figure of ours against a limit instead of a peer; the ratio is how often it fits, the target 1."""
    shown = f"{statistics.median(amounts):,.{digits}f} {unit}"
    limits = f"at most {limit:,g} {unit}"
    return _row(claim, "the limit", (shown, limits), [limit / amount for amount in amounts], 1.0)


def memory_growth(run: Callable[[], object]) -> float:
    """MiB by which the resident memory of this process rises at its peak while `run` runs (Linux).

    Memory that earlier calls have left to the allocator would hide growth: call this early, or in a fresh process.
    """
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / _MIB


def finish(script: str, protocol: str, rows: Sequence[Row], args: Arguments) -> None:
    """Print the rows; keep them and renew RESULTS.md after a full run, judge them after a smoke run.

    Exits with status 1 where a smoke run finds less than COLLAPSE of a target.
    """
    print(_table(rows), flush=True)
    if args.smoke:
        collapsed = [row for row in rows if row.target is not None and row.ratio < COLLAPSE * row.target]
        for row in collapsed:
            print(f"collapsed: {row.claim}: {row.ratio:.2f} times {row.peer}, target {row.target:g}")
        sys.exit(1 if collapsed else 0)
    name = Path(script).stem
    kept = {"protocol": " ".join(protocol.split()), "machine": machine(), "rows": [asdict(row) for row in rows]}
    MEASURED.mkdir(exist_ok=True)
    (MEASURED / f"{name}.json").write_text(json.dumps(kept, indent=2) + "\n")
    write_results()


def write_results() -> None:
    """Renew the tables of RESULTS.md from everything that was measured."""
    text = RESULTS.read_text()
    head, _, rest = text.partition(_BEGIN)
    tail = rest.partition(_END)[2]
    sections = [_section(path) for path in sorted(MEASURED.glob("*.json"))]
    RESULTS.write_text("\n\n".join([head + _BEGIN, *sections, _END + tail]))


def machine() -> str:
    """Processor, cores, libraries and commit, in one line."""
    import torch

    from cl_core.training.precision import cpu_model

    parts = [f"{cpu_model()} ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores, {platform.system()}"]
    parts.append(f"Python {platform.python_version()}")
    parts += [f"{name} {found}" for name in _NAMED if (found := installed(name))]
    return ", ".join(parts) + f"; commit {_commit()}"


def installed(package: str) -> str:
    """The version of a package, empty where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def named(package: str) -> str:
    """A peer with its version, as the tables show it."""
    return f"{package} {installed(package)}"


def _row(claim: str, peer: str, shown: tuple[str, str], ratios: Sequence[float], target: float | None) -> Row:
    return Row(
        claim=claim,
        peer=peer,
        ours=shown[0],
        theirs=shown[1],
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        rounds=len(ratios),
        target=target,
    )


def _environment(requirements: Sequence[str]) -> Path:
    """The environment of these packages, made if it is not there."""
    key = hashlib.sha256("\n".join([sys.version, *sorted(requirements)]).encode()).hexdigest()[:12]
    folder = ENVIRONMENTS / key
    if Path(sys.prefix) == folder or (folder / "ready").exists():
        return folder
    print(f"installing {', '.join(requirements)} into {folder.relative_to(ROOT)}", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    # addsitedir, and not a plain line with the path: it reads the path files in there too.
    ours = sysconfig.get_path("purelib")
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *requirements], check=True)
    (folder / "ready").touch()
    return folder


def _status(name: str) -> int:
    """Bytes that the kernel states under this name for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def _section(path: Path) -> str:
    kept = json.loads(path.read_text())
    rows = [Row(**row) for row in kept["rows"]]
    return f"### {path.stem}.py\n\n{kept['protocol']}\n\n{_table(rows)}\n\nMachine: {kept['machine']}."


def _table(rows: Sequence[Row]) -> str:
    head = "| claim | contrast | against | it takes | ratio | lowest to highest | asked | outcome |"
    lines = [head, "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        asked = "" if row.target is None else f"{row.target:.2f}"
        spread = f"{row.low:.2f} to {row.high:.2f}, n={row.rounds}"
        cells = [row.claim, row.ours, row.peer, row.theirs, f"**{row.ratio:.2f}**", spread, asked, row.outcome]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "cl_core", "plugins", "pipelines")
    return git("rev-parse", "--short", "HEAD") + (" with uncommitted changes" if changed else "")
