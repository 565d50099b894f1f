"""The folder of a job: one part file a unit, and the description that says what the parts belong to.

That a part exists is the whole state of a job, so any number of processes, machines and runs may work on one folder
without knowing of each other. Beside parts there are, for as long as they are of use:

    _job.json                      what is scored, and the units it was cut into
    part-00012.parquet             a finished unit; its footer has the job, counts and the rows at fault
    part-00012.progress            raw scores of a unit that was interrupted
    part-00012.lease               who has claimed the unit (--claim dynamic)
    part-00012.failed              why a unit was given up
    worker-HOST-PID.json           a process at work: touched every few seconds
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batchscore.errors import InputError, OutputError, RuntimeFailureError, first_line
from batchscore.io.parquet import unpacked_size
from batchscore.io.schema import KEEP_HINT
from batchscore.io.storage import TEMPORARY, Folder, is_over
from batchscore.io.units import Span, Unit

JOB = "_job.json"
_KEY = b"batchscore"
_AGAIN = "run the job again: what is damaged is scored again"
_PART = re.compile(r"part-\d+\.parquet")
_PASSING = re.compile(rf"part-\w+\.(progress|lease|failed)|worker-.*\.json|\..*{re.escape(TEMPORARY)}.*")
_OURS = re.compile(rf"{_PART.pattern}|_(job|run[\w-]*)\.json|_errors\.jsonl|{_PASSING.pattern}")

Fingerprint = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """What a finished unit says of itself."""

    unit: int
    counts: Mapping[str, Any]
    faults: Sequence[Mapping[str, Any]]  # rows at fault, as they are reported
    schema: pa.Schema  # of its rows
    size: int  # bytes of its rows, unpacked


class Parts:
    """The parts of one job in one folder."""

    def __init__(self, folder: Folder, description: bytes) -> None:
        job = json.loads(description)
        self.folder = folder
        self._description = description  # of the job, as it was read
        self.fingerprint: Fingerprint = job["fingerprint"]
        self.units = [Unit(i, tuple(Span(*span) for span in spans)) for i, spans in enumerate(job["units"])]
        self._id = _digest(self.fingerprint)

    @cached_property
    def rows(self) -> int:
        """Of the whole job."""
        return sum(unit.rows for unit in self.units)

    def finished(self) -> set[int]:
        """Units that have a part."""
        return {int(name[5:-8]) for name in self.folder.names() if _PART.fullmatch(name)}

    def has(self, unit: Unit) -> bool:
        """Whether a unit has a part."""
        return self.folder.has(part_name(unit.index))

    def complete(self) -> bool:
        """Whether every unit has a part."""
        return len(self.finished()) >= len(self.units)

    def is_bare(self) -> bool:
        """Whether nothing is done at all."""
        return not any(name.startswith("part-") for name in self.folder.names())

    def check(self, units: Sequence[int]) -> list[int]:
        """Remove those of the given parts that are damaged, and say which these were."""
        damaged = []
        for unit in units:
            try:
                self.part(unit)
            except InputError:
                damaged.append(unit)
                self.folder.remove(part_name(unit))
        return damaged

    def write(
        self, unit: Unit, table: pa.Table, counts: Mapping[str, Any], faults: Sequence[Mapping[str, Any]]
    ) -> None:
        """Finish a unit; OutputError if the folder is another job's by now, or gone."""
        told = {"job": self._id, "unit": unit.index, "counts": dict(counts), "faults": list(faults)}
        table = table.replace_schema_metadata({_KEY: json.dumps(told, ensure_ascii=False).encode()})
        stream = pa.BufferOutputStream()
        try:
            pq.write_table(table, stream, compression="zstd", write_page_checksum=True)
            content = stream.getvalue()
            pq.read_schema(pa.BufferReader(content))  # Arrow writes columns nested deeper than it reads
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{self.folder.path} cannot hold these values: {error}", hint=KEEP_HINT) from error
        self.require_ours()
        self.folder.write(part_name(unit.index), content)
        for passing in ("progress", "failed"):
            self.folder.remove(part_name(unit.index, passing))

    def part(self, unit: int) -> Part:
        """What a part says of itself; InputError if it is damaged or of another job."""
        return self._opened(unit)[1]

    def read(self, unit: int) -> pa.Table:
        """The rows of a part; RuntimeFailureError if it is damaged, in which case it is gone afterwards."""
        try:
            file, _ = self._opened(unit)
            return file.read().replace_schema_metadata(None)
        except (pa.ArrowException, OSError, ValueError, InputError) as error:
            self.folder.remove(part_name(unit))
            raise RuntimeFailureError(
                f"{self.folder.path}/{part_name(unit)} was damaged and has been removed: {first_line(error)}",
                hint="run the same command again: only this unit's rows will be scored again",
            ) from error

    def saved_scores(self, unit: Unit, rows: int, k: int) -> NDArray[np.float32]:
        """float32 [rows, k]: raw scores of a unit that an earlier run left half done, NaN where there is none."""
        with suppress(OSError, ValueError):
            content = memoryview(self.folder.read(part_name(unit.index, "progress")))
            header = self._header((rows, k))
            if bytes(content[: len(header)]) == header and len(content) == len(header) + 4 * rows * k:
                return np.array(np.frombuffer(content[len(header) :], np.float32)).reshape(rows, k)
        return np.full((rows, k), np.nan, np.float32)

    def save_scores(self, unit: Unit, raw: NDArray[np.float32]) -> None:
        """Keep the raw scores, float32 [rows, k], of a unit that is not finished."""
        self.folder.write(part_name(unit.index, "progress"), self._header(raw.shape) + raw.tobytes())

    def fail(self, unit: int, why: str) -> None:
        """Note why a unit was given up; the next run tries it again."""
        self.folder.write(part_name(unit, "failed"), json.dumps({"why": why}).encode())

    def failed(self) -> dict[int, str]:
        """Units that were given up, and why."""
        found = {}
        for name in self.folder.names():
            if re.fullmatch(r"part-\d+\.failed", name):
                with suppress(FileNotFoundError):  # another run has done the unit since
                    found[int(name[5:-7])] = _why(self.folder.read(name))
        return found

    def faults(self) -> list[Mapping[str, Any]]:
        """The rows at fault of all finished units, in input order."""
        return [fault for unit in sorted(self.finished()) for fault in self.part(unit).faults]

    def counts(self) -> dict[str, Any]:
        """Sums over all finished units."""
        return total([self.part(unit).counts for unit in sorted(self.finished())])

    def tidy(self) -> None:
        """Remove what is of no use once every unit has its part."""
        for name in filter(_PASSING.fullmatch, self.folder.names()):
            # one that is being written is its writer's business
            if TEMPORARY not in name or is_over(name.rpartition(TEMPORARY)[2].rpartition("-")[0]):
                self.folder.remove(name)

    def require_ours(self) -> None:
        """Raise OutputError if the folder is another job's by now, or gone."""
        try:
            description = bytes(self.folder.read(JOB))
        except FileNotFoundError as error:
            raise OutputError(
                f"{self.folder.path} is gone: another run has finished the job, or somebody removed it",
                hint="run the same command again to see",
            ) from error
        if description != self._description:
            raise OutputError(f"{self.folder.path} was taken by another job meanwhile", hint="choose another output")

    def _opened(self, unit: int) -> tuple[pq.ParquetFile, Part]:
        name = f"{self.folder.path}/{part_name(unit)}"
        try:
            file = pq.ParquetFile(pa.BufferReader(self.folder.read(part_name(unit))), page_checksum_verification=True)
            told = json.loads((file.schema_arrow.metadata or {}).get(_KEY, b'{"job": null, "unit": null}'))
            job, of = told["job"], told["unit"]
            if (job, of) == (self._id, unit):
                schema, size = file.schema_arrow.remove_metadata(), unpacked_size(file.metadata)
                return file, Part(unit, told["counts"], told["faults"], schema, size)
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{name} is damaged: {first_line(error)}", hint=_AGAIN) from error
        raise InputError(f"{name} is of another job", hint=_AGAIN)

    def _header(self, shape: tuple[int, ...]) -> bytes:
        return struct.pack("<16sqq", self._id.encode()[:16], *shape)


def _why(note: pa.Buffer) -> str:
    try:
        return str(json.loads(bytes(note))["why"])
    except (ValueError, KeyError, TypeError):  # it is for people, and the unit is tried again in any case
        return "unknown: the note of it is damaged"


def total(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums of counts, nested ones too."""
    summed: dict[str, Any] = {}
    for one in counts:
        for name, value in one.items():
            if isinstance(value, Mapping):
                summed[name] = total([summed.get(name, {}), value])
            else:
                summed[name] = summed.get(name, 0) + value
    return summed


def open_parts(folder: Folder) -> Parts | None:
    """The job in a folder, if there is one; OutputError if its description is damaged."""
    try:
        content = bytes(folder.read(JOB))
    except FileNotFoundError:
        return None
    try:
        return Parts(folder, content)
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{folder.path}/{JOB} cannot be read: {error}", hint="run the job with --overwrite to start anew"
        ) from error


def start_parts(
    folder: Folder, fingerprint: Fingerprint, cut: Callable[[], Sequence[Unit]], *, overwrite: bool
) -> Parts:
    """The folder's job if it has this fingerprint, else a new one.

    Args:
        folder: of the parts.
        fingerprint: JSON-able, what decides the scores.
        cut: makes the units of a new job.
        overwrite: throw away what another job, a damaged one, one without a description, or this one when it is
            complete, left in the folder.

    Raises:
        OutputError: the folder holds another job, a damaged one, parts of no job, or no job and other files.
    """
    there, is_stale = None, False
    try:
        there = open_parts(folder)
    except OutputError:
        if not overwrite:
            raise
        is_stale = True
    if there is not None:
        difference = first_difference(there.fingerprint, fingerprint)
        if difference is None and not (overwrite and there.complete()):
            return there
        if not overwrite:
            raise OutputError(
                f"{folder.path} holds the parts of another job: {difference}",
                hint="pass --overwrite to start anew, or choose another output",
            )
        is_stale = True
    names = folder.names()
    if (foreign := _foreign(folder, names, is_job=there is not None)) is not None:
        raise OutputError(
            f"{folder.path} is a folder with other files, such as {foreign}", hint="choose an empty or a new folder"
        )
    if not overwrite and JOB not in names and any(map(_PART.fullmatch, names)):
        raise OutputError(
            f"{folder.path} holds parts, and no {JOB} that says of what",
            hint="put it back, or pass --overwrite to start anew",
        )
    if is_stale:
        folder.remove(JOB)  # first, so that nothing takes what is left for a job
    folder.make()
    if is_stale or JOB not in names:  # else another process has just begun
        for name in names:
            if name != JOB and TEMPORARY not in name:  # which another may be writing
                folder.remove(name)
    units = [[astuple(span) for span in unit.spans] for unit in cut()]
    job = {"fingerprint": fingerprint, "units": units}
    # of several processes that begin at once one wins, and all go by what it wrote
    folder.create(JOB, json.dumps(job, ensure_ascii=False).encode())
    made = open_parts(folder)
    if made is None or (difference := first_difference(made.fingerprint, fingerprint)) is not None:
        raise OutputError(f"{folder.path} was taken by another job meanwhile", hint="choose another output")
    return made


def _foreign(folder: Folder, names: Sequence[str], *, is_job: bool) -> str | None:
    """A file that no job has written; without a description of a job, the first part is looked into."""
    foreign = next((name for name in names if not _OURS.fullmatch(name)), None)
    part = next((name for name in names if name.endswith(".parquet")), None)
    if foreign is not None or part is None or is_job:
        return foreign
    try:
        metadata = pq.read_schema(pa.BufferReader(folder.read(part))).metadata or {}
    except FileNotFoundError:  # another process that begins has removed it
        return None
    except (pa.ArrowException, OSError, ValueError):
        return part
    return None if _KEY in metadata else part


def first_difference(before: Any, now: Any, name: str = "") -> str | None:
    """The first field in which two fingerprints differ, with both values; None if they are equal."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*now, *before]):
            found = first_difference(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
            if found:
                return found
        return None
    before, now = json.loads(json.dumps(before)), json.loads(json.dumps(now))
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return next(filter(None, (first_difference(*pair, f"{name}[{place}]") for place, pair in pairs)), None)
    return None if before == now else f"{name} was {_short(before)} and is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _digest(fingerprint: Fingerprint) -> str:
    return blake2b(json.dumps(fingerprint, sort_keys=True).encode(), digest_size=16).hexdigest()


def part_name(unit: int, suffix: str = "parquet") -> str:
    """Name of a unit's part, or of what is beside it."""
    return f"part-{unit:05}.{suffix}"
