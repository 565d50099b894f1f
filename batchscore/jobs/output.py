"""Where a run's output, its parts, its record and its list of errors lie.

If the output is a file, its parts are in a hidden folder beside it until it is assembled. If it is a folder, the
parts are in it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from batchscore.errors import InputError, OutputError
from batchscore.io.forms import Lines, OutFormat
from batchscore.io.outputs import Format, chosen_format
from batchscore.io.sink import require_writable
from batchscore.io.storage import is_url, open_folder, require_store, target_path
from batchscore.jobs.parts import JOB, Parts, open_parts
from batchscore.jobs.records import exists, read_record


@dataclass(frozen=True, slots=True)
class Output:
    """What `--out` means."""

    path: str  # without a slash at the end
    is_folder: bool
    asked: OutFormat | Lines = "auto"  # format of the file
    tag: str | None = None  # of a TREC run

    @property
    def parts(self) -> str:
        """The folder of the parts."""
        if self.is_folder:
            return self.path
        folder, slash, name = self.path.rpartition("/")
        return f"{folder}{slash}.{name}.parts"

    @property
    def format(self) -> Format:
        """What the parts are assembled as; raises as `chosen_format`."""
        return chosen_format(None if self.is_folder else self.path, self.asked, self.tag)

    @property
    def written(self) -> dict[str, str | None]:
        """The format as the record has it, by the names of its options."""
        return {"out_format": self.format.name, "run_tag": self.format.tag}

    @property
    def file(self) -> str:
        """What the parts are assembled to."""
        return target_path(f"{self.path}{self.format.kind.suffix}") if self.is_folder else self.path

    @property
    def errors(self) -> str:
        """The list of bad rows."""
        return f"{self.path}/_errors.jsonl" if self.is_folder else f"{self.path}.errors.jsonl"

    def record(self, shard: str = "") -> str:
        """The run record, or that of one shard."""
        return f"{self.path}/_run{shard}.json" if self.is_folder else f"{self.path}.run{shard}.json"

    def owns(self, path: str) -> bool:
        """Whether a run with this output writes this file."""
        names = path, self.path, self.file, self.errors
        path, own, *others = (name if is_url(name) else os.path.realpath(name) for name in names)
        is_record = path.startswith(f"{own}.run") and path.endswith(".json")
        return path in (own, *others) or (path.startswith(f"{own}/") if self.is_folder else is_record)

    def check(self) -> None:
        """Raise UsageError or OutputError if the output cannot be written."""
        if self.is_folder and is_url(self.path):
            require_store(self.path)
        elif self.is_folder:
            if os.path.lexists(self.path) and not os.path.isdir(self.path):
                kind = "file" if os.path.exists(self.path) else "link that leads to no folder"
                raise OutputError(f"cannot write into {self.path}: it is a {kind}", hint="choose another folder")
            existing = self.path  # or the nearest parent that exists: the folder itself is made later
            while not os.path.exists(existing):
                existing = os.path.dirname(existing) or "."
            if not os.access(existing, os.W_OK | os.X_OK):
                raise OutputError(
                    f"cannot write into {self.path}: no permission to write in {existing}", hint="choose another folder"
                )
        else:
            require_writable(self.path)


def open_output(path: str, form: OutFormat | Lines = "auto", tag: str | None = None) -> Output:
    """A folder if the path ends with a slash or is an existing folder, else a file."""
    path = target_path(path)
    name = path if path.endswith("://") else path.rstrip("/") or "/"
    return Output(name, path.endswith("/") or os.path.isdir(path), form, tag)


def find_parts(path: str) -> Parts | None:
    """The parts of the job whose output is `path`, if there are any."""
    output = open_output(path)
    if not output.is_folder and is_url(path) and open_folder(path).has(JOB):
        output = replace(output, is_folder=True)
    return open_parts(open_folder(output.parts))


def require_finished(path: str) -> None:
    """Raise InputError for the folder of a job that has not finished: what it lacks would count as bad results."""
    if not open_output(path).is_folder or (parts := find_parts(path)) is None:
        return
    if (done := len(parts.finished())) < (units := len(parts.units)):
        raise InputError(
            f"{path} is not finished: {done:,} of {units:,} units", hint="see `batchscore status`, and resume the job"
        )


def find_record(path: str) -> dict[str, Any]:
    """The record of the finished job that wrote the file `path`; OutputError if there is none."""
    output = open_output(path)
    record = read_record(output.record()) if not output.is_folder and exists(output.file) else None
    if record is None or "fingerprint" not in record:
        raise OutputError(f"{path} has no parts of a job", hint="name the --out of a run")
    return record
