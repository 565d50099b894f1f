"""How far a job is, read from its folder alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchscore.jobs.leases import workers
from batchscore.jobs.output import find_parts, find_record
from batchscore.jobs.parts import total


def job_status(path: str) -> dict[str, Any]:
    """JSON-able state of the job that writes `path`.

    `running` are units that a live process has in work, `failed` those that were given up, `missing` all others without
    a part. The time to go is that of the rows without a part at the summed speed of the live processes. Of a file
    that is finished, and whose parts are gone, the record tells, which says nothing of units.

    Raises:
        OutputError: there is neither.
    """
    parts = find_parts(path)
    if parts is None:
        return _finished(find_record(path))
    done, failed, at_work = parts.finished(), parts.failed(), workers(parts)
    running = {unit for worker in at_work for unit in worker["units"]} - done
    counts = total([parts.part(unit).counts for unit in sorted(done)])
    rows = counts.get("rows", 0)
    speed = sum(worker["rows_per_second"] for worker in at_work)
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
        "rows": {"total": parts.rows, "done": rows, "faulty": counts.get("faulty", 0)},
        "failed": {str(unit): failed[unit] for unit in sorted(gone)},
        "workers": at_work,
        "eta_seconds": round((parts.rows - rows) / speed) if speed else None,
    }


def _finished(record: Mapping[str, Any]) -> dict[str, Any]:
    counts = record["counts"]
    return {
        "folder": None,
        "command": record["command"],
        "inputs": [file["name"] for file in record["inputs"]],
        "complete": True,
        "units": None,
        "rows": {"total": counts["rows"], "done": counts["rows"], "faulty": counts.get("faulty", 0)},
        "failed": {},
        "workers": [],
        "eta_seconds": None,
    }
