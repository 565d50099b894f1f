"""The folder of a job: a part file for each finished unit, and a description of what the parts belong to.

The state of a job is which parts exist and nothing else, so any number of processes, machines and runs can work on one
folder without talking to each other. Other files are there while they are needed:

    _job.json                      what is scored, and the units that it was divided into
    _quantization.json             what --quantize does to scores, measured by the first process
    part-00012.parquet             a finished unit; its footer has the job, counts and bad rows
    part-00012.progress            raw scores of a unit that was interrupted
    part-00012.lease               who has claimed the unit (--claim dynamic)
    part-00012.failed              why a unit was given up
    worker-HOST-PID.json           a process that is working: touched every few seconds

    corpus-3F00.sqlite             the index of a corpus whose texts are joined to ids

Where texts are encoded once a job, its texts and their encodings are there as well (`jobs/blocks.py`).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batchscore.errors import InputError, OutputError, RuntimeFailureError, first_line
from batchscore.io.collection import INDEX
from batchscore.io.outputs import Origin
from batchscore.io.parquet import unpacked_size
from batchscore.io.sink import parquet_options
from batchscore.io.storage import TEMPORARY, Folder, is_over, remove_orphans
from batchscore.io.units import Span, Unit
from batchscore.io.values import KEEP_HINT, readable
from batchscore.jobs.progress import Progress
from batchscore.jobs.records import as_json

JOB, TEXTS, QUANTIZATION = "_job.json", "texts.json", "_quantization.json"
SCRATCH = ".texts-"  # begins the name of a folder for one process
_KEY = b"batchscore"  # of the footer's metadata
# The end of a part that is read first. A footer has some 100 bytes for each column of each row group, and about 100 for
# each bad row: this is nearly always all of it, in one request of a size that costs no more than its latency.
_FOOTER_BYTES = 1 << 16
_AGAIN = "run the job again: damaged parts are scored again"
_PART = re.compile(r"part-\d+\.parquet")
_TEXTS = (
    rf"{INDEX}|corpus\.lease|texts\.(json|lease)|texts-\w+\.index|block-\d+\.(texts|safetensors|counts|progress|lease)"
)
_STEPS = r"part-\w+\.(progress|lease|failed|pass-\d+)|worker-.*\.json"
_PASSING = re.compile(rf"{_STEPS}|{_TEXTS}|\..*{re.escape(TEMPORARY)}.*")
_OURS = re.compile(rf"{_PART.pattern}|_(job|texts|quantization|run[\w-]*)\.json|_errors\.jsonl|{_PASSING.pattern}")

Fingerprint = Mapping[str, Any]
Encode = Literal["once", "unit"]  # how often a text is read by the model: once a job, or once in each unit that has it


@dataclass(frozen=True, slots=True)
class Division:
    """How the work of a job is divided, decided once."""

    units: Sequence[Unit]
    encode: Encode = "unit"
    reason: str = ""  # for the choice of `encode`


@dataclass(frozen=True, slots=True)
class Part:
    """What the footer of a finished unit says."""

    unit: int
    counts: Mapping[str, Any]
    schema: pa.Schema  # of its rows
    size: int  # bytes of its rows, not compressed
    note: bytes  # what batchscore wrote into the footer, as JSON

    @property
    def faults(self) -> Sequence[Mapping[str, Any]]:
        """The bad rows, as they are reported. Parsed when needed: as bytes, many of them take far less memory."""
        faults: Sequence[Mapping[str, Any]] = json.loads(self.note)["faults"]
        return faults


class Parts:
    """The parts of one job in one folder."""

    in_order: ClassVar[bool] = False  # units are finished in any order, so a bad row may end the run at once

    def __init__(self, folder: Folder, description: bytes) -> None:
        job = json.loads(description)
        self.folder = folder
        self._description = description  # as it was read
        self.fingerprint: Fingerprint = job["fingerprint"]
        self.units = [Unit(i, tuple(Span(*span) for span in spans)) for i, spans in enumerate(job["units"])]
        self.encode: Encode = job.get("encode", "unit")
        self.encode_reason: str = job.get("encode_reason", "")
        self.origin = Origin(**job.get("origin", {}))
        self.id = _digest(self.fingerprint)
        self._known: dict[int, Part] = {}  # parts whose footers were read

    @cached_property
    def rows(self) -> int:
        """Rows of the whole job."""
        return sum(unit.rows for unit in self.units)

    @property
    def quantization(self) -> dict[str, Any] | None:
        """What was measured of `--quantize`, if it was."""
        try:
            return json.loads(bytes(self.folder.read(QUANTIZATION)))  # type: ignore[no-any-return]
        except (OSError, ValueError):
            return None

    def finished(self) -> set[int]:
        """Units with a part."""
        return {int(name[5:-8]) for name in self.folder.names() if _PART.fullmatch(name)}

    def has(self, unit: Unit) -> bool:
        """Whether a unit has a part."""
        return self.folder.has(part_name(unit.index))

    def complete(self) -> bool:
        """Whether every unit has a part."""
        return len(self.finished()) >= len(self.units)

    def is_bare(self) -> bool:
        """Whether nothing has been finished or begun."""
        kept = re.compile(r"part-.*|block-\d+\.(safetensors|progress)")
        return not any(map(kept.fullmatch, self.folder.names()))

    def check(self, units: Sequence[int]) -> list[int]:
        """Remove those of these parts whose footers are damaged; returns which."""
        damaged = []
        for unit in units:
            self._known.pop(unit, None)
            try:
                self.part(unit)
            except InputError:
                damaged.append(unit)
                self._remove(unit)
        return damaged

    def write(
        self, unit: Unit, table: pa.Table, counts: Mapping[str, Any], faults: Sequence[Mapping[str, Any]]
    ) -> None:
        """Finish a unit; OutputError if the folder is gone or belongs to another job by now."""
        note = {"job": self.id, "unit": unit.index, "counts": dict(counts), "faults": list(faults)}
        try:
            content = packed(table, as_json(note))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{self.folder.path} cannot hold these values: {error}", hint=KEEP_HINT) from error
        self.require_ours()
        self.folder.write(part_name(unit.index), content)
        for suffix in ("progress", "failed"):
            self.folder.remove(part_name(unit.index, suffix))

    def part(self, unit: int) -> Part:
        """What a part's footer says; InputError if it is damaged or belongs to another job.

        A finished part does not change, so its footer is read once. `check` reads it again, and `read` the whole part.
        """
        if unit not in self._known:
            try:
                self._known[unit] = self._described(unit, _read_footer(self.folder, part_name(unit)))
            except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
                path = f"{self.folder.path}/{part_name(unit)}"
                raise InputError(f"{path} is damaged: {first_line(error)}", hint=_AGAIN) from error
        return self._known[unit]

    def read(self, unit: int) -> pa.Table:
        """The rows of a part; RuntimeFailureError if it is damaged, in which case it is removed."""
        try:
            file = pq.ParquetFile(pa.BufferReader(self.folder.read(part_name(unit))), page_checksum_verification=True)
            self._described(unit, file)
            return file.read().replace_schema_metadata(None)
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, InputError) as error:
            self._remove(unit)
            raise RuntimeFailureError(
                f"{self.folder.path}/{part_name(unit)} was damaged and has been removed: {first_line(error)}",
                hint="run the same command again: only this unit's rows will be scored again",
            ) from error

    def progress(self, unit: Unit) -> Progress:
        """Where encodings of a unit that is not finished are kept."""
        return Progress(self.folder, part_name(unit.index, "progress"), {"unit": unit.index, "job": self.id})

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
        """Record why a unit was given up; the next run tries it again."""
        self.folder.write(part_name(unit, "failed"), json.dumps({"why": why}).encode())

    def failed(self) -> dict[int, str]:
        """Units that were given up, and why."""
        reasons = {}
        for name in self.folder.names():
            if re.fullmatch(r"part-\d+\.failed", name):
                with suppress(FileNotFoundError):  # another run has finished the unit since
                    reasons[int(name[5:-7])] = _why(self.folder.read(name))
        return reasons

    def faults(self) -> list[Mapping[str, Any]]:
        """The bad rows of all finished units, in input order."""
        return [fault for unit in sorted(self.finished()) for fault in self.part(unit).faults]

    def counts(self) -> dict[str, Any]:
        """Sums over all finished units."""
        return total([self.part(unit).counts for unit in sorted(self.finished())])

    def tidy(self, *, keep_texts: bool = False) -> None:
        """Remove what is not needed once every unit has its part; what other processes still read only without them."""
        if not keep_texts:
            self.folder.remove(TEXTS)  # first, so that no later run takes the rest for what it needs
        for name in filter(_PASSING.fullmatch, self.folder.names()):
            is_kept = keep_texts and re.fullmatch(_TEXTS, name)
            # a temporary file belongs to its writer as long as that lives
            is_free = TEMPORARY not in name or is_over(name.rpartition(TEMPORARY)[2].rpartition("-")[0])
            if is_free and not is_kept:
                self.folder.remove(name)
        if self.folder.is_local:
            remove_orphans(self.folder.path, SCRATCH, numbered=True)

    def require_ours(self) -> None:
        """Raise OutputError if the folder is gone or belongs to another job by now."""
        try:
            description = bytes(self.folder.read(JOB))
        except FileNotFoundError as error:
            raise OutputError(
                f"{self.folder.path} is gone: another run has finished the job, or it was removed",
                hint="run the same command again to see",
            ) from error
        if description != self._description:
            raise OutputError(f"{self.folder.path} now holds another job", hint="choose another output")

    def _described(self, unit: int, file: pq.ParquetFile) -> Part:
        note = (file.metadata.metadata or {}).get(_KEY, b'{"job": null, "unit": null}')
        values = json.loads(note)
        if (values["job"], values["unit"]) != (self.id, unit):
            raise InputError(f"{self.folder.path}/{part_name(unit)} belongs to another job", hint=_AGAIN)
        return Part(unit, values["counts"], file.schema_arrow.remove_metadata(), unpacked_size(file.metadata), note)

    def _remove(self, unit: int) -> None:
        self._known.pop(unit, None)
        self.folder.remove(part_name(unit))

    def _header(self, shape: tuple[int, ...]) -> bytes:
        return struct.pack("<16sqq", self.id.encode()[:16], *shape)


def packed(table: pa.Table, note: bytes) -> pa.Buffer:
    """A part file: a unit's rows, with the note in its footer; errors of Arrow where it cannot hold them."""
    table, stream = readable(table.replace_schema_metadata(None)), pa.BufferOutputStream()
    with pq.ParquetWriter(stream, table.schema, **parquet_options(table.schema), write_page_checksum=True) as writer:
        writer.write_table(table)
        # not as metadata of the schema: Arrow would store that a second time, with its own description of it
        writer.add_key_value_metadata({_KEY: note})
    content = stream.getvalue()
    pq.read_schema(pa.BufferReader(content))  # Arrow can write deeper nesting than it can read
    return content


def _read_footer(folder: Folder, name: str) -> pq.ParquetFile:
    """A Parquet file without its rows, of which only the end was read.

    Arrow finds a footer from the end of a file, so it takes the last bytes for a whole one.
    """
    end = folder.read_end(name, _FOOTER_BYTES)
    # the last eight bytes are the footer's length and a mark
    size = int.from_bytes(end.slice(max(0, end.size - 8), 4).to_pybytes(), "little") + 8
    return pq.ParquetFile(pa.BufferReader(end if size <= end.size else folder.read_end(name, size)))


def _why(note: pa.Buffer) -> str:
    try:
        return str(json.loads(bytes(note))["why"])
    except (ValueError, KeyError, TypeError):  # only people read it, and the unit is tried again in any case
        return "unknown: its file is damaged"


def total(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums of counts, including nested ones."""
    summed: dict[str, Any] = {}
    for one in counts:
        for name, value in one.items():
            if isinstance(value, Mapping):
                summed[name] = total([summed.get(name, {}), value])
            else:
                summed[name] = summed.get(name, 0) + value
    return summed


def open_parts(folder: Folder) -> Parts | None:
    """The job of a folder, if it has one; OutputError if its description is damaged."""
    try:
        content = bytes(folder.read(JOB))
    except FileNotFoundError:
        return None
    try:
        return Parts(folder, content)
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{folder.path}/{JOB} cannot be read: {error}", hint="run the job with --overwrite to start again"
        ) from error


def start_parts(
    folder: Folder,
    fingerprint: Fingerprint,
    divide: Callable[[], Division],
    *,
    overwrite: bool,
    origin: Origin | None = None,
) -> Parts:
    """The job of the folder if it has this fingerprint, else a new one.

    Args:
        folder: of the parts.
        fingerprint: JSON-able: everything that decides the scores.
        divide: divides the work of a new job.
        overwrite: remove another job, a damaged one, parts without a description, or this job if it is complete.
        origin: of the scores, for whoever merges the parts.

    Raises:
        OutputError: the folder holds another job, a damaged one, parts without a description, or other files.
    """
    parts, is_stale = _resumed(folder, fingerprint, overwrite=overwrite)
    if parts is not None:
        return parts
    division = divide()
    # nothing was removed or made so far, since dividing can fail; it takes minutes, in which another process may begin
    parts, is_stale = _resumed(folder, fingerprint, overwrite=overwrite)
    if parts is not None:
        return parts
    _clear(folder, is_stale=is_stale)
    folder.make()
    units = [[astuple(span) for span in unit.spans] for unit in division.units]
    choice = {"encode": division.encode, "encode_reason": division.reason}
    job = {"fingerprint": fingerprint, "origin": asdict(origin or Origin()), **choice, "units": units}
    # if several processes begin at once, one of them creates the description and all of them use it
    folder.create(JOB, as_json(job))
    made = open_parts(folder)
    if made is None or first_difference(made.fingerprint, fingerprint) is not None:
        raise OutputError(f"{folder.path} now holds another job", hint="choose another output")
    return made


def _resumed(folder: Folder, fingerprint: Fingerprint, *, overwrite: bool) -> tuple[Parts | None, bool]:
    """(the job in the folder if it is to be resumed, whether there is one to remove); raises as `start_parts`."""
    parts, is_stale = None, False
    try:
        parts = open_parts(folder)
    except OutputError:
        if not overwrite:
            raise
        is_stale = True
    if parts is not None:
        difference = first_difference(parts.fingerprint, fingerprint)
        if difference is not None and not overwrite:
            raise OutputError(
                f"{folder.path} holds the parts of another job: {difference}",
                hint="pass --overwrite to start again, or choose another output",
            )
        if difference is None and not (overwrite and parts.complete()):
            return parts, False
        is_stale = True
    names = folder.names()
    if (foreign := _foreign(folder, names, is_job=parts is not None)) is not None:
        raise OutputError(
            f"{folder.path} has other files in it, for example {foreign}", hint="choose an empty or a new folder"
        )
    if not overwrite and JOB not in names and any(map(_PART.fullmatch, names)):
        raise OutputError(
            f"{folder.path} has parts but no {JOB}, which says what they belong to",
            hint="restore it, or pass --overwrite to start again",
        )
    return None, is_stale


def _clear(folder: Folder, *, is_stale: bool) -> None:
    """Remove what is left of earlier jobs."""
    names = folder.names()
    if is_stale:
        folder.remove(JOB)  # first, so that no process takes the rest for a job
    if is_stale or JOB not in names:  # otherwise another process has just begun
        for name in names:
            if name != JOB and TEMPORARY not in name:  # another process may be writing that
                folder.remove(name)


def _foreign(folder: Folder, names: Sequence[str], *, is_job: bool) -> str | None:
    """A file that no job has written. Without a description of a job, the first part is opened to see whose it is."""
    foreign = next((name for name in names if not _OURS.fullmatch(name)), None)
    part = next((name for name in names if name.endswith(".parquet")), None)
    if foreign is not None or part is None or is_job:
        return foreign
    try:
        metadata = _read_footer(folder, part).metadata.metadata or {}
    except FileNotFoundError:  # another process that is starting has removed it
        return None
    except (pa.ArrowException, OSError, ValueError):
        return part
    return None if _KEY in metadata else part


_OTHER_SIDE = {  # fields of the spec that do not change what the model makes of a side
    "query": ("document_prompt", "document_length", "max_tokens_per_doc", "similarity"),
    "document": ("query_prompt", "query_length", "max_tokens_per_query", "similarity"),
    "pair": (),
}


def encoding_fingerprint(job: Fingerprint, side: str) -> dict[str, Any]:
    """What must be equal for encodings of a side's texts, or raw scores of pairs, to be the same: JSON-able.

    It is a part of the job's fingerprint, without what is said about the other side alone.
    """
    fields = {name: value for name, value in job["model"].items() if name not in _OTHER_SIDE[side]}
    numbers = {name: job[name] for name in ("dtype", "quantize") if name in job}
    return {"side": side, "model": fields, "files": job["files"], **numbers}


def first_difference(before: Any, now: Any, name: str = "") -> str | None:
    """The first field in which two fingerprints differ, with both values; None if they are equal."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*now, *before]):
            difference = first_difference(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
            if difference:
                return difference
        return None
    before, now = json.loads(json.dumps(before)), json.loads(json.dumps(now))
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return next(filter(None, (first_difference(*pair, f"{name}[{index}]") for index, pair in pairs)), None)
    return None if before == now else f"{name} was {_short(before)} and is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _digest(fingerprint: Fingerprint) -> str:
    return blake2b(json.dumps(fingerprint, sort_keys=True).encode(), digest_size=16).hexdigest()


def part_name(unit: int, suffix: str = "parquet") -> str:
    """Name of a unit's part, or of another file of the unit."""
    return f"part-{unit:05}.{suffix}"
