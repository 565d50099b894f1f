"""`batchscore store`: what is in a store of encodings, less of it, and whether it is still right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from batchscore.cli import options as o
from batchscore.cli.text import print_result, table_lines
from batchscore.errors import UsageError

if TYPE_CHECKING:
    from batchscore.jobs.stored import ShelfCheck

app = typer.Typer(no_args_is_help=True, help="Look into a store of encodings, make it smaller, or check it.")

_SIZES = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}  # powers of 1000, or of 1024 with an i
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


@app.command()
def stats(store: o.StoreArgument, as_json: o.AsJson = False) -> None:
    """Show what a store has: texts, bytes and age for each model and side.

    batchscore store stats store/
    """
    from batchscore.cli.display import exit_on_error

    with exit_on_error():
        from batchscore.io.upkeep import shelves

        found = [shelf.describe() for shelf in shelves(store)]
        lines = [*_table(found), f"{_total(found)} in {store}"]
        print_result({"store": store, "shelves": found}, lines, as_json=as_json)


@app.command()
def prune(
    store: o.StoreArgument,
    model: o.OfModel = None,
    older_than: o.OlderThan = None,
    max_size: o.MaxSize = None,
    dry_run: o.DryRun = False,
    as_json: o.AsJson = False,
) -> None:
    """Remove encodings from a store: of one model, old ones, or the oldest beyond a size. Running jobs may go on.

    What interrupted and damaged writes have left is removed in any case.

    batchscore store prune store/ --older-than 90d --max-size 100GB
    """
    from batchscore.cli.display import exit_on_error

    with exit_on_error():
        age = None if older_than is None else _seconds(older_than)
        size = None if max_size is None else _bytes(max_size)
        from batchscore.io import upkeep

        pruned = upkeep.prune(store, model=model, older_than=age, max_bytes=size, dry_run=dry_run)
        removed = [one.describe() for one in pruned]
        lines = [*_table(removed), f"{_total(removed)} {'would be ' * dry_run}removed from {store}"]
        print_result({"store": store, "dry_run": dry_run, "removed": removed}, lines, as_json=as_json)


@app.command()
def verify(store: o.StoreArgument, sample: o.Sample = 8, as_json: o.AsJson = False) -> None:
    """Read all of a store to find damage, and encode again some of the texts that it keeps for this purpose.

    The exit code is 9 if a file is damaged, or if a model now encodes a text differently.

    batchscore store verify store/
    """
    from batchscore.cli.display import Display, exit_on_error

    display = Display(quiet=as_json, log_format="text")
    with exit_on_error(display):
        from batchscore.jobs.stored import check_store, problem

        checks = check_store(store, sample, display.note)
        error = problem(checks)
        total = _total([check.shelf.describe() for check in checks])
        lines = [*_check_lines(checks), *([] if error else [f"verified: {total} in {store}"])]
        print_result({"store": store, "shelves": [check.describe() for check in checks]}, lines, as_json=as_json)
        if error is not None:
            raise error


def _table(shelves: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each shelf, under a line of heads; then damaged files."""
    rows = []
    for shelf in shelves:
        row = {"model": shelf["model"], "side": shelf["side"], "texts": f"{shelf['texts']:,}"}
        row |= {"size": _size(shelf["bytes"]), "segments": f"{shelf['segments']:,}"}
        row |= {name: str(shelf[name] or "")[:10] for name in ("oldest", "newest") if name in shelf}
        rows.append(row)
    damaged = [f"damaged  {path}: {why}" for shelf in shelves for path, why in shelf.get("damaged", {}).items()]
    return [*(table_lines(rows, "text") if rows else []), *damaged]


def _total(shelves: Sequence[Mapping[str, Any]]) -> str:
    return f"{sum(shelf['texts'] for shelf in shelves):,} texts, {_size(sum(shelf['bytes'] for shelf in shelves))}"


def _check_lines(checks: Sequence[ShelfCheck]) -> list[str]:
    lines = []
    for check in checks:
        if check.obstacle is not None:
            outcome = f"none encoded again: {check.obstacle}"
        elif check.differences:
            largest = f"largest difference {max(check.differences):.1e}, tolerance {check.tolerance:g}"
            outcome = f"{len(check.differences)} encoded again, {largest}"
        else:
            outcome = "none encoded again"
        lines.append(f"{check.shelf.model} ({check.shelf.side}): {len(check.damaged)} damaged segments, {outcome}")
        lines += [f"damaged  {path}: {why}" for path, why in check.damaged.items()]
    return lines


def _size(count: float) -> str:
    """Bytes for people: 1.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _bytes(size: str) -> int:
    """10GB is 10 * 1000^3, 10GiB 10 * 1024^3."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", size.strip(), re.IGNORECASE | re.ASCII)
    if found is None or (found[3] and not found[2]):
        raise UsageError(f"--max-size {size!r}: must be a size such as 500MB, 10GB or 1.5TiB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _SIZES[found[2].lower()])


def _seconds(age: str) -> float:
    """30d is 30 days."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhdw])", age.strip(), re.ASCII)
    if found is None:
        raise UsageError(f"--older-than {age!r}: must be minutes, hours, days or weeks, such as 90m, 12h, 30d or 8w")
    return float(found[1]) * _SECONDS[found[2]]
