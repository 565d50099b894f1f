"""How far a job is, read from its folder alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchscore.jobs.checks import bad_rows
from batchscore.jobs.leases import workers
from batchscore.jobs.output import find_parts, find_record
from batchscore.jobs.parts import total


def job_status(path: str) -> dict[str, Any]:
    """JSON-able state of the job that writes `path`.

    `running` are units that a live process works on, `failed` those that were given up, `missing` all others without a
    part. The time to go is for the rows that are neither finished nor scored in a running unit, at the summed speed of
    the live processes. If the parts are gone, the state comes from the run record, which does not list units.

    Raises:
        OutputError: there are neither parts nor a record.
    """
    parts = find_parts(path)
    if parts is None:
        return _finished(find_record(path))
    done, failed, live = parts.finished(), parts.failed(), workers(parts)
    running = {unit for worker in live for unit in worker["units"]} - done
    counts = total([parts.part(unit).counts for unit in sorted(done)])
    rows = counts.get("rows", 0)
    speed = sum(worker["rows_per_second"] for worker in live)
    left = max(0, parts.rows - rows - sum(worker["rows_in_work"] for worker in live))
    gone = set(failed) - done - running
    return {
        "folder": parts.folder.path,
        "command": parts.fingerprint["command"],
        "inputs": [file["name"] for file in parts.fingerprint["inputs"]],
        "complete": len(done) >= len(parts.units),
        "units": {
            "total": len(parts.units),
            "done": len(done),
            "running": len(running),
            "missing": len(parts.units) - len(done | running | gone),
            "failed": len(gone),
        },
        "rows": {"total": parts.rows, "done": rows, "faulty": bad_rows(counts)},
        "failed": {str(unit): failed[unit] for unit in sorted(gone)},
        "workers": live,
        "eta_seconds": round(left / speed) if speed else None,
    }


def _finished(record: Mapping[str, Any]) -> dict[str, Any]:
    counts = record["counts"]
    return {
        "folder": None,
        "command": record["command"],
        "inputs": [file["name"] for file in record["inputs"]],
        "complete": True,
        "units": None,
        "rows": {"total": counts["rows"], "done": counts["rows"], "faulty": bad_rows(counts)},
        "failed": {},
        "workers": [],
        "eta_seconds": None,
    }
