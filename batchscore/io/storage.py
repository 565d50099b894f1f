"""Files on disks and object stores with one interface, and folders whose files are either complete or absent.

A path with `://` goes to pyarrow's file systems, or to fsspec's where pyarrow has none. On a disk a file is written
under a temporary name, synced and renamed; an object in a store appears when its upload ends. Both need space for two
copies while a file is being replaced.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import glob
import os
import re
import shlex
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import cache
from typing import Any, Protocol
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs

from batchscore.errors import (
    BatchscoreError,
    InputError,
    MissingDependencyError,
    NotFoundError,
    OutputError,
    RuntimeFailureError,
    UsageError,
    first_line,
)

TEMPORARY = ".tmp-"  # in the name of a file that is being written
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # from file systems without hard links
_OUTERMOST = 0xEFFFFFFC  # inode of Linux's first PID namespace
_BUCKETS = {"s3", "gcs", "abfs"}  # pyarrow's names of stores without folders
_NATIVE = {"s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs"}  # schemes that pyarrow serves
_ACCESS = "check the address, the credentials and the network"


def is_url(path: str) -> bool:
    """Whether a path is not on the local file system."""
    return "://" in path


def local_path(path: str) -> str:
    """A path as the operating system takes it: without `file://`, and with the home folder for `~`."""
    return os.path.expanduser(path.removeprefix("file://"))


def target_path(path: str) -> str:
    """The path at which an output is written: links to a file stay, and the file that they lead to is replaced.

    Raises OutputError if links lead in a circle, or if the name is not UTF-8.
    """
    path = target = local_path(path)
    if not is_url(path) and os.path.islink(path) and not (os.path.isdir(path) or special_kind(path)):
        target = os.path.realpath(path)
        if os.path.islink(target):
            raise OutputError(
                f"{path} cannot be an output: its symbolic links lead in a circle", hint=f"rm {shlex.quote(path)}"
            )
    if not is_utf8(target):
        raise OutputError(f"{target} cannot be an output: its name is not UTF-8", hint="choose another name")
    return target


def is_utf8(path: str) -> bool:
    """Whether Arrow can open a path: Python reads other names from a disk too, and keeps their bytes as surrogates."""
    with contextlib.suppress(UnicodeEncodeError):
        return bool(path.encode())
    return False


def special_kind(path: str) -> str | None:
    """What a local path is, if it is there and neither a file nor a folder."""
    with contextlib.suppress(OSError):
        return _SPECIAL.get(stat.S_IFMT(os.stat(path).st_mode))
    return None


_SPECIAL = {
    stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"
}  # fmt: skip


def file_system(url: str) -> tuple[pafs.FileSystem, str]:
    """(file system, path on it); UsageError if neither pyarrow nor fsspec knows the scheme."""
    scheme = url.split("://", 1)[0]
    if not is_utf8(url):
        raise UsageError(f"{url} is not UTF-8", hint="check the URL")
    try:
        return pafs.FileSystem.from_uri(_uri(url))  # type: ignore[no-any-return]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        if scheme in _NATIVE and not isinstance(error, pa.ArrowNotImplementedError):
            raise UsageError(f"{url} cannot be used: {first_line(error)}", hint="check the URL") from error
    except OSError as error:
        raise NotFoundError(f"{url} cannot be reached: {first_line(error)}", hint=_ACCESS) from error
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MissingDependencyError(f"{url}: {first_line(error)}", hint="install the package named there") from error
    except Exception as error:
        if isinstance(error, ValueError) and scheme not in fsspec.available_protocols():
            raise UsageError(
                f"{url}: no file system is known for {scheme}://", hint="check the part before ://"
            ) from error
        raise NotFoundError(f"{url} cannot be reached: {first_line(error)}", hint=_ACCESS) from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(system)), path


def _uri(url: str) -> str:
    """The URI of a URL with literal names: as in `aws s3` and fsspec, `%`, `?` and blanks are not escaped there."""
    scheme, _, key = url.partition("://")
    if scheme not in _NATIVE:
        return url
    if re.search(r"\?\w+=", key):
        raise UsageError(
            f"{url} has options after a ?, which are not read",
            hint="set them in the environment, for example AWS_ENDPOINT_URL and AWS_REGION",
        )
    authority, slash, path = key.partition("/")
    # Google's client retries for 15 minutes by default
    options = "?retry_limit_seconds=60" if scheme in ("gs", "gcs") else ""
    return f"{scheme}://{authority}{slash}{quote(path)}{options}"


def open_file(path: str) -> Any:
    """A binary file that can seek."""
    if not is_url(path):
        return open(path, "rb")
    system, key = file_system(path)
    try:
        return system.open_input_file(key)
    except Exception as error:  # fsspec clients raise anything
        raise InputError(f"{path} cannot be read: {first_line(error)}", hint=_ACCESS) from error


def stat_file(path: str) -> tuple[int, str | None]:
    """(bytes, time of the last change in ISO 8601); InputError for an empty or unreadable file."""
    try:
        size, modified = _stat_url(path) if is_url(path) else _stat_local(path)
    except BatchscoreError:
        raise
    except Exception as error:  # fsspec clients raise anything
        raise InputError(f"{path} cannot be read: {first_line(error)}", hint="check that it is still there") from error
    if not size:
        raise InputError(f"{path} is empty", hint="leave the file out, or write it again")
    return size, modified


def _stat_local(path: str) -> tuple[int, str | None]:
    status = os.stat(path)
    if not os.access(path, os.R_OK):
        raise PermissionError("permission denied")
    return status.st_size, iso_time(status.st_mtime)


def _stat_url(url: str) -> tuple[int, str | None]:
    system, key = file_system(url)
    info = system.get_file_info(key)
    if not info.is_file:
        raise FileNotFoundError("no such file")
    modified = None if info.mtime_ns is None else iso_time(info.mtime_ns / 1e9)
    if modified is None and isinstance(system, pafs.PyFileSystem):
        modified = _version(system.handler.fs, key)
    return info.size or 0, modified


def _version(system: Any, path: str) -> str | None:
    """What changes with an fsspec file: its time, or on the Hub its hash, since there a time costs a request."""
    if (blob := system.info(path).get("blob_id")) is not None:
        return str(blob)
    with contextlib.suppress(Exception):  # many file systems have none
        return str(system.modified(path).isoformat())
    return None


def iso_time(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def list_files(url: str) -> list[str]:
    """URLs of the files that a URL stands for: itself, those in a folder, or the matches of `*` and `**`, sorted."""
    system, path = file_system(url)
    try:
        if system.get_file_info(path).is_file:
            return [url]
        wild = re.search(r"[*?\[]", path)
        base = path[: wild.start()].rpartition("/")[0] if wild else path.rstrip("/")
        deep = wild is None or "**" in path or "/" in path[wild.start() :]
        files = [entry.path for entry in system.get_file_info(pafs.FileSelector(base, recursive=deep)) if entry.is_file]
    except FileNotFoundError as error:
        raise NotFoundError(f"{url}: no such file or folder", hint="check the path and the access") from error
    except Exception as error:  # fsspec clients raise anything
        raise NotFoundError(f"{url} cannot be reached: {first_line(error)}", hint=_ACCESS) from error
    pattern = re.compile(_pattern(path)) if wild else None
    hidden = re.compile(r"(^|/)\." if wild else r"(^|/)[._]")
    kept = [name for name in files if not hidden.search(name.removeprefix(base))]
    kept = [name for name in kept if pattern is None or pattern.fullmatch(name)]
    first = re.search(r"[*?\[]", url)  # the URL of the folder is the part before
    folder = url[: first.start()].rpartition("/")[0] if wild and first else url.rstrip("/")
    scheme = url.split("://", 1)[0]
    urls = [
        f"{folder}/{name[len(base) :].lstrip('/')}" if name.startswith(base) else f"{scheme}://{name}" for name in kept
    ]
    return sorted(urls)


def _pattern(wild: str) -> str:
    """A regular expression for `*`, `**`, `?` and `[...]`."""
    translated = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]/]+\])", wild)
    classes = {part: f"(?!/){fnmatch.translate(part)[4:-3]}" for part in parts if part[:1] == "["}  # of (?s:[...])\Z
    return "".join(translated.get(part) or classes.get(part) or re.escape(part) for part in parts)


class Folder(Protocol):
    """A flat folder of files, each of them complete or absent."""

    path: str
    is_local: bool  # one of several processes can create a file, and files have a time of last use

    def make(self) -> None: ...  # with its parents
    def names(self) -> list[str]: ...  # of files, sorted, including temporary ones; [] if there is no folder
    def has(self, name: str) -> bool: ...
    def read(self, name: str) -> pa.Buffer: ...  # FileNotFoundError
    def read_start(self, name: str, size: int) -> pa.Buffer: ...  # the first `size` bytes, or all; FileNotFoundError
    def read_end(self, name: str, size: int) -> pa.Buffer: ...  # the last `size` bytes, or all; FileNotFoundError
    def write(self, name: str, content: bytes | pa.Buffer) -> None: ...  # replaces
    def create(self, name: str, content: bytes) -> bool: ...  # False: it exists
    def remove(self, name: str) -> None: ...  # it may be absent
    def discard(self) -> None: ...  # the folder and everything in it


def open_folder(path: str) -> Folder:
    """A folder on a disk or an object store; it need not exist yet."""
    path = local_path(path)
    return RemoteFolder(path) if is_url(path) else LocalFolder(path)


class LocalFolder:
    """On a disk, which several machines may share."""

    is_local = True

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/") or "/"

    def make(self) -> None:
        with write_errors_as(self.path):
            os.makedirs(self.path, exist_ok=True)

    def names(self) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.path) if entry.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def has(self, name: str) -> bool:
        return os.path.exists(os.path.join(self.path, name))

    def read(self, name: str) -> pa.Buffer:
        with pa.memory_map(os.path.join(self.path, name)) as file:
            return file.read_buffer()

    def read_start(self, name: str, size: int) -> pa.Buffer:
        return self.read(name)[:size]

    def read_end(self, name: str, size: int) -> pa.Buffer:
        content = self.read(name)
        return content.slice(max(0, content.size - size))

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a file that is complete or absent, even after a power cut."""
        with self._filled(name, content) as temporary:
            os.replace(temporary, os.path.join(self.path, name))
            sync_folder(self.path)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it exists; if several processes try at once, one succeeds."""
        try:
            with self._filled(name, content) as temporary:
                _claim(temporary, os.path.join(self.path, name))
        except FileExistsError:
            return False
        return True

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(self.path, name))

    def discard(self) -> None:
        """Remove everything. The folder is renamed first, so that no part of it is ever taken for the whole."""
        trash = f"{self.path}.trash-"
        with write_errors_as(self.path), contextlib.suppress(FileNotFoundError):
            os.rename(self.path, trash + writer_id())
        for left in glob.glob(f"{glob.escape(trash)}*"):  # also from processes that were killed while removing
            if left == trash + writer_id() or is_over(left.removeprefix(trash)):
                shutil.rmtree(left, ignore_errors=True)

    def age(self, name: str) -> float | None:
        """Seconds since a file was last touched, by the clock of its disk; None if it does not exist."""
        try:
            return self._now() - os.stat(os.path.join(self.path, name)).st_mtime
        except FileNotFoundError:
            return None

    def _now(self) -> float:
        """The disk's clock, on which all machines that share it agree."""
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
        # threads may write the same file at once, too
        return os.path.join(self.path, f".{name}{TEMPORARY}{writer_id()}-{threading.get_ident()}")

    @contextmanager
    def _filled(self, name: str, content: bytes | pa.Buffer) -> Iterator[str]:
        """A temporary file that is safe on the disk; at the end of the block it is removed, unless it was renamed."""
        temporary = self._temporary(name)
        with write_errors_as(os.path.join(self.path, name)):
            try:
                with open(temporary, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                yield temporary
            finally:
                with contextlib.suppress(OSError):  # it may have been renamed
                    os.remove(temporary)


def _claim(temporary: str, path: str) -> None:
    """Give a file a name that does not exist; else FileExistsError, where a rename would replace."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))  # for a moment it exists and is empty
        os.replace(temporary, path)


class RemoteFolder:
    """On an object store, where writing a file is one upload."""

    is_local = False

    def __init__(self, url: str) -> None:
        self.path = url if url.endswith("://") else url.rstrip("/")
        self._system, self._key = file_system(self.path)

    def make(self) -> None:
        """Create it, unless the store has no folders."""
        if self._system.type_name not in _BUCKETS:
            with _store_errors_as("write", self.path), contextlib.suppress(pa.ArrowNotImplementedError):
                self._system.create_dir(self._key, recursive=True)

    def names(self) -> list[str]:
        with _store_errors_as("list", self.path):
            entries = self._system.get_file_info(pafs.FileSelector(self._key, allow_not_found=True))
            return sorted(entry.base_name for entry in entries if entry.is_file)

    def has(self, name: str) -> bool:
        with _store_errors_as("look for", f"{self.path}/{name}"):
            return bool(self._system.get_file_info(f"{self._key}/{name}").is_file)

    def read(self, name: str) -> pa.Buffer:
        """The content. A store that does not answer is no OSError, which callers take for a damaged file."""
        with self._open(name) as file:
            return file.read_buffer()

    def read_start(self, name: str, size: int) -> pa.Buffer:
        """The first bytes, requested as a range; errors as in `read`."""
        with self._open(name) as file:
            return file.read_buffer(size)

    def read_end(self, name: str, size: int) -> pa.Buffer:
        """The last bytes, requested as a range; errors as in `read`."""
        with self._open(name) as file:
            start = max(0, file.size() - size)
            file.seek(start)
            return file.read_buffer(size)

    @contextmanager
    def _open(self, name: str) -> Iterator[pa.NativeFile]:
        with (
            _store_errors_as("read", f"{self.path}/{name}", FileNotFoundError),
            self._system.open_input_file(f"{self._key}/{name}") as file,
        ):
            yield file

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        with _store_errors_as("write", f"{self.path}/{name}"):
            _put(self._system, f"{self._key}/{name}", content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it exists; if several processes try at once, the last one succeeds."""
        if self.has(name):
            return False
        self.write(name, content)
        return True

    def remove(self, name: str) -> None:
        with _store_errors_as("remove", f"{self.path}/{name}"), contextlib.suppress(FileNotFoundError):
            self._system.delete_file(f"{self._key}/{name}")

    def discard(self) -> None:
        """Remove everything, the job's description first, so that no part of it is ever taken for the whole."""
        for name in self.names():
            if name.startswith("_"):
                self.remove(name)
        with _store_errors_as("remove", self.path), contextlib.suppress(FileNotFoundError):
            self._system.delete_dir(self._key)


def require_store(folder: str) -> None:
    """Raise UsageError or OutputError if a URL cannot be listed, and so most likely not be written to."""
    system, key = file_system(folder)
    bucket = key.split("/")[0]
    if system.type_name in _BUCKETS and not bucket:
        raise UsageError(f"cannot write into {folder}: it names no bucket", hint="write s3://bucket/name")
    try:
        RemoteFolder(folder).names()
    except RuntimeFailureError as error:
        raise OutputError(f"cannot write into {folder}: {error.message}", hint=_ACCESS) from error
    is_missing = False
    with contextlib.suppress(OSError):  # permission to write into a bucket does not imply permission to look at it
        is_missing = system.type_name in _BUCKETS and system.get_file_info(bucket).type == pafs.FileType.NotFound
    if is_missing:
        raise OutputError(f"cannot write into {folder}: there is no bucket {bucket}", hint="create it, or name another")


def split_url(path: str) -> tuple[str, str]:
    """(folder, name) of a path or URL."""
    folder, _, name = path.rpartition("/")
    if folder.endswith(":/"):
        return f"{folder}/", name  # memory://name
    return folder or ("/" if path.startswith("/") else "."), name


def upload(local: str, url: str) -> None:
    """Copy a finished local file to a URL."""
    system, key = file_system(url)
    with _store_errors_as("write", url), pa.memory_map(local) as source:
        _put(system, key, source.read_buffer())


def _put(system: pafs.FileSystem, path: str, content: bytes | pa.Buffer) -> None:
    """Upload in one call: a stream that an error ends would upload what it has so far as if it were complete."""
    with system.open_output_stream(path, compression=None) as file:
        file.write(content)


def sync_folder(path: str) -> None:
    """Make a rename survive a power cut; some network disks refuse this, since they always sync."""
    with contextlib.suppress(OSError):
        handle = os.open(path or ".", os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_over(writer: str) -> bool:
    """Whether a process is known to have ended; nothing is known of other machines."""
    machine, _, process = writer.rpartition("-")
    if machine != _machine() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def remove_orphans(folder: str, prefix: str, *, numbered: bool = False) -> None:
    """Remove what processes of this machine left behind that have ended.

    Args:
        folder: where.
        prefix: of the names, before the `writer_id`.
        numbered: whether the `writer_id` is followed by a dash and more.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            writer = entry.name.removeprefix(prefix)
            if entry.name.startswith(prefix) and is_over(writer.rpartition("-")[0] if numbered else writer):
                if entry.is_dir():
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.remove(entry.path)


def writer_id() -> str:
    """Identifies this process among all that may write to a folder."""
    return f"{_machine()}-{os.getpid()}"


@cache
def _machine() -> str:
    """The host and, in a container, its PID namespace: containers may share a host name, and each has a process 1."""
    namespace = _OUTERMOST
    with contextlib.suppress(OSError):
        namespace = os.stat("/proc/self/ns/pid").st_ino
    return socket.gethostname() + (f".{namespace:x}" if namespace != _OUTERMOST else "")


@contextmanager
def write_errors_as(path: str) -> Iterator[None]:
    """Turn an OSError into an error that says what could not be written."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise RuntimeFailureError(f"cannot write {path}: {error.strerror or error}", hint=write_hint(error)) from error


def write_hint(error: OSError) -> str:
    """What to do about an error of a disk."""
    if isinstance(error, FileNotFoundError):
        return "its folder is gone: another run may have merged it; run again to see"
    if error.errno == errno.ENAMETOOLONG:
        return "choose a shorter name"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return "get the permission to write there, or choose another output"
    return "make room on the disk, then run the same command again"


@contextmanager
def _store_errors_as(action: str, path: str, *passed: type[Exception]) -> Iterator[None]:
    """Turn any error into one that says what failed, except those that are `passed` on."""
    try:
        yield
    except Exception as error:  # fsspec clients raise anything
        if isinstance(error, (BatchscoreError, *passed)):
            raise
        message = f"cannot {action} {path}: {first_line(error)}"
        raise RuntimeFailureError(message, hint=f"{_ACCESS}, then run the same command again") from error
