"""Files on disks and object stores behind one door, and folders whose files are there whole or not at all.

A path with `://` goes to pyarrow's file systems, and to fsspec's where pyarrow has none. On a disk a file is written
under a temporary name, synced and renamed; an object of a store appears when its upload ends. Both cost room
for a file twice while it is being replaced.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.fs as pafs

from batchscore.errors import InputError, MissingDependencyError, NotFoundError, RuntimeFailureError, UsageError

TEMPORARY = ".tmp-"  # in the name of a file that is being written


def is_url(path: str) -> bool:
    """Whether a path names another file system than the local one."""
    return "://" in path


def local_path(path: str) -> str:
    """A path without the `file://` that says it is local."""
    return path.removeprefix("file://")


def file_system(url: str) -> tuple[pafs.FileSystem, str]:
    """(file system, path on it); UsageError for a scheme that neither pyarrow nor fsspec knows."""
    scheme = url.split("://", 1)[0]
    try:
        return pafs.FileSystem.from_uri(url)  # type: ignore[no-any-return]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MissingDependencyError(f"{url}: {error}", hint="install the package named there") from error
    except ValueError as error:
        raise UsageError(f"{url}: no file system is known for {scheme}://: {error}") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(system)), path


def open_file(path: str) -> Any:
    """A file of bytes that can seek."""
    if not is_url(path):
        return open(path, "rb")
    system, place = file_system(path)
    return system.open_input_file(place)


def stat_file(path: str) -> tuple[int, str | None]:
    """(bytes, time of the last change in ISO 8601); InputError for an empty or unreadable file."""
    try:
        if is_url(path):
            system, place = file_system(path)
            found = system.get_file_info(place)
            size, modified = found.size, None if found.mtime_ns is None else found.mtime_ns / 1e9
        else:
            stat = os.stat(path)
            size, modified = stat.st_size, stat.st_mtime
            if not os.access(path, os.R_OK):
                raise InputError(f"{path} cannot be read: permission denied")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}", hint="check that it is still there") from error
    if not size:
        raise InputError(f"{path} is empty", hint="leave the file out, or write it again")
    return size, None if modified is None else iso_time(modified)


def iso_time(seconds: float) -> str:
    """Seconds since the epoch, as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def list_files(url: str) -> list[str]:
    """URLs of the files that a URL means: itself, those of a folder, or those that match its `*` and `**`, sorted."""
    system, path = file_system(url)
    prefix = url[: len(url) - len(path)] if url.endswith(path) else url.split("://", 1)[0] + "://"
    wild = re.search(r"[*?\[]", path)
    try:
        if wild is None and system.get_file_info(path).type == pafs.FileType.File:
            return [url]
        base = path[: wild.start()].rpartition("/")[0] if wild else path.rstrip("/")
        found = [entry.path for entry in system.get_file_info(pafs.FileSelector(base, recursive=True)) if entry.is_file]
    except OSError as error:
        raise NotFoundError(f"{url}: no such file or folder: {error}", hint="check the path and the access") from error
    pattern = re.compile(_pattern(path)) if wild else None
    hidden = re.compile(r"(^|/)[._]")
    kept = [
        name for name in found if (pattern.fullmatch(name) if pattern else not hidden.search(name.removeprefix(base)))
    ]
    return sorted(prefix + name for name in kept)


def _pattern(glob: str) -> str:
    """A regular expression for `*`, `**` and `?`."""
    translated = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(translated.get(part) or re.escape(part) for part in re.split(r"(\*\*/|\*\*|\*|\?)", glob))


class Folder(Protocol):
    """A flat folder of files, each there whole or not at all."""

    path: str
    is_local: bool  # files can be created by one of several at once, and carry a time that moves

    def make(self) -> None: ...
    def names(self) -> list[str]: ...  # of files, temporary ones included; [] if there is no folder
    def has(self, name: str) -> bool: ...
    def read(self, name: str) -> pa.Buffer: ...  # FileNotFoundError
    def write(self, name: str, content: bytes | pa.Buffer) -> None: ...  # replaces
    def create(self, name: str, content: bytes) -> bool: ...  # False: it was there
    def remove(self, name: str) -> None: ...  # fine if it is not there
    def discard(self) -> None: ...  # the folder and all in it


def open_folder(path: str) -> Folder:
    """A folder on a disk or an object store; it need not be there yet."""
    return RemoteFolder(path) if is_url(path) else LocalFolder(local_path(path))


class LocalFolder:
    """On a disk, maybe one that several machines share."""

    is_local = True

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/") or "/"

    def make(self) -> None:
        """Create it with its parents."""
        with explained(self.path):
            os.makedirs(self.path, exist_ok=True)

    def names(self) -> list[str]:
        """Files in it, sorted."""
        try:
            return sorted(entry.name for entry in os.scandir(self.path) if entry.is_file())
        except FileNotFoundError:
            return []

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return os.path.exists(os.path.join(self.path, name))

    def read(self, name: str) -> pa.Buffer:
        """The content, mapped."""
        with pa.memory_map(os.path.join(self.path, name)) as file:
            return file.read_buffer()

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a file that is there whole or not at all, also after a power cut."""
        temporary = self._temporary(name)
        with explained(os.path.join(self.path, name)):
            try:
                self._fill(temporary, content)
                os.replace(temporary, os.path.join(self.path, name))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.remove(temporary)
                raise
            sync_folder(self.path)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it is there; of several that try at once one wins."""
        temporary = self._temporary(name)
        with explained(os.path.join(self.path, name)):
            try:
                self._fill(temporary, content)
                os.link(temporary, os.path.join(self.path, name))  # fails where rename would replace
            except FileExistsError:
                return False
            finally:
                with contextlib.suppress(OSError):
                    os.remove(temporary)
        return True

    def remove(self, name: str) -> None:
        """Remove a file."""
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(self.path, name))

    def discard(self) -> None:
        """Remove all of it: renamed first, so that no half of it is ever taken for the whole."""
        trash = f"{self.path}.trash-{writer_id()}"
        with contextlib.suppress(FileNotFoundError), explained(self.path):
            os.rename(self.path, trash)
        shutil.rmtree(trash, ignore_errors=True)

    def age(self, name: str) -> float | None:
        """Seconds since a file was last touched, by the clock of the disk it is on; None if it is not there."""
        try:
            return self._now() - os.stat(os.path.join(self.path, name)).st_mtime
        except FileNotFoundError:
            return None

    def _now(self) -> float:
        """The disk's clock, which every machine that shares it agrees on."""
        probe = self._temporary("clock")
        try:
            with open(probe, "wb"):
                return os.stat(probe).st_mtime
        except OSError:
            return time.time()
        finally:
            with contextlib.suppress(OSError):
                os.remove(probe)

    def _temporary(self, name: str) -> str:
        return os.path.join(self.path, f".{name}{TEMPORARY}{writer_id()}")

    def _fill(self, path: str, content: bytes | pa.Buffer) -> None:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


class RemoteFolder:
    """On an object store, where a file is one upload."""

    is_local = False

    def __init__(self, url: str) -> None:
        self.path = url.rstrip("/")
        self._system, self._place = file_system(self.path)

    def make(self) -> None:
        """Nothing on a store of objects; a folder where there are folders."""
        with explained(self.path), contextlib.suppress(pa.ArrowNotImplementedError):
            self._system.create_dir(self._place, recursive=True)

    def names(self) -> list[str]:
        """Files in it, sorted."""
        with explained(self.path):
            found = self._system.get_file_info(pafs.FileSelector(self._place, allow_not_found=True))
            return sorted(entry.base_name for entry in found if entry.is_file)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self._system.get_file_info(f"{self._place}/{name}").is_file)

    def read(self, name: str) -> pa.Buffer:
        """The content."""
        with self._system.open_input_file(f"{self._place}/{name}") as file:
            return file.read_buffer()

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Upload a file."""
        with (
            explained(f"{self.path}/{name}"),
            self._system.open_output_stream(f"{self._place}/{name}", compression=None) as file,
        ):
            file.write(content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it is there; of several that try at once the last wins."""
        if name in self.names():
            return False
        self.write(name, content)
        return True

    def remove(self, name: str) -> None:
        """Remove a file."""
        with contextlib.suppress(FileNotFoundError):
            self._system.delete_file(f"{self._place}/{name}")

    def discard(self) -> None:
        """Remove all of it, the job's description last, so that a half of it is never taken for the whole."""
        with explained(self.path), contextlib.suppress(FileNotFoundError):
            self._system.delete_dir(self._place)


def upload(local: str, url: str) -> None:
    """Copy a finished local file to a URL."""
    system, place = file_system(url)
    with (
        explained(url),
        open(local, "rb") as source,
        system.open_output_stream(place, compression=None) as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)


def sync_folder(path: str) -> None:
    """Have a rename survive a power cut; some network disks cannot, and sync by themselves."""
    with contextlib.suppress(OSError):
        handle = os.open(path or ".", os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def writer_id() -> str:
    """Names this process among all that may write to one folder."""
    return f"{socket.gethostname()}-{os.getpid()}"


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Say what could not be written."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise RuntimeFailureError(
            f"cannot write {path}: {error.strerror or error}", hint="make room on the disk, then run again to go on"
        ) from error
