"""Files of a folder are there whole or not at all, on a disk and on a store, whoever writes and whatever fails."""

from __future__ import annotations

import errno
import glob
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import fsspec
import pyarrow as pa
import pytest

from batchscore.errors import InputError, NotFoundError, RuntimeFailureError, UsageError
from batchscore.io.storage import (
    Folder,
    LocalFolder,
    RemoteFolder,
    file_system,
    is_over,
    is_url,
    list_files,
    local_path,
    open_file,
    open_folder,
    stat_file,
    upload,
    writer_id,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """A folder of a store in memory, which is there with its first file."""
    yield f"memory:/{tmp_path}"
    memory = fsspec.filesystem("memory")
    if memory.exists(str(tmp_path)):
        memory.rm(str(tmp_path), recursive=True)


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, store: str) -> Folder:
    return open_folder(f"{tmp_path}/deep/job/" if request.param == "disk" else f"{store}/deep/job/")


def content(folder: Folder, name: str) -> bytes:
    return bytes(folder.read(name))


# ---- what any folder does


def test_a_folder_that_is_not_there_is_empty(folder: Folder) -> None:
    assert (folder.names(), folder.has("a")) == ([], False)
    folder.remove("a")
    folder.discard()
    with pytest.raises(FileNotFoundError):
        folder.read("a")


def test_files_are_written_replaced_and_removed(folder: Folder) -> None:
    folder.make()
    folder.make()
    folder.write("b", b"one")
    folder.write("a", pa.py_buffer(b"two"))
    folder.write("b", b"")
    assert folder.names() == ["a", "b"]
    assert (folder.has("a"), folder.has("c")) == (True, False)
    assert (content(folder, "a"), content(folder, "b")) == (b"two", b"")
    folder.remove("a")
    folder.remove("a")
    assert (folder.names(), folder.has("a")) == (["b"], False)
    with pytest.raises(FileNotFoundError):
        folder.read("a")


def test_a_file_is_created_once(folder: Folder) -> None:
    folder.make()
    assert folder.create("a", b"first")
    assert not folder.create("a", b"second")
    assert content(folder, "a") == b"first"
    folder.remove("a")
    assert folder.create("a", b"third")
    assert (folder.names(), content(folder, "a")) == (["a"], b"third")


def test_a_folder_is_discarded_with_all_in_it(folder: Folder, tmp_path: Path) -> None:
    folder.make()
    for name in ("a", "_job.json", ".hidden"):
        folder.write(name, b"1")
    folder.discard()
    assert folder.names() == []
    folder.discard()
    beside = open_folder(folder.path.rpartition("/")[0])
    assert beside.names() == []
    if folder.is_local:
        assert os.listdir(tmp_path / "deep") == []


def test_what_a_killed_process_was_discarding_goes_with_the_next(tmp_path: Path) -> None:
    folder = LocalFolder(str(tmp_path / "[parts]"))
    dead = subprocess.Popen(["true"])
    dead.wait()
    machine = writer_id().rpartition("-")[0]
    for owner in (f"{machine}-{dead.pid}", f"{machine}-{os.getppid()}", "elsewhere-1"):
        os.mkdir(f"{folder.path}.trash-{owner}")
    folder.discard()
    assert sorted(os.listdir(tmp_path)) == sorted(
        f"[parts].trash-{owner}" for owner in (f"{machine}-{os.getppid()}", "elsewhere-1")
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs namespaces")
def test_containers_of_one_host_are_told_apart() -> None:
    """Both may have a process 1, and what is over here may be at work there."""
    code = "from batchscore.io.storage import is_over, writer_id; print(writer_id(), is_over('{}'))"
    command = [sys.executable, "-c", code.format(writer_id())]
    inner = subprocess.run(["unshare", "--pid", "--fork", *command], capture_output=True, text=True, check=False)
    if inner.returncode:
        pytest.skip("needs the right to make a namespace")
    name, is_over_there = inner.stdout.split()
    assert name.rpartition("-")[0] != writer_id().rpartition("-")[0]
    assert name.endswith("-1")
    assert is_over_there == "False"
    assert not is_over(name)


def test_subfolders_are_no_files(folder: Folder) -> None:
    folder.make()
    folder.write("a", b"1")
    below = open_folder(f"{folder.path}/below")
    below.make()
    below.write("b", b"2")
    assert (folder.names(), below.names()) == (["a"], ["b"])


def test_a_path_is_a_disk_and_a_url_a_store(tmp_path: Path) -> None:
    assert isinstance(open_folder("a/b/"), LocalFolder)
    assert isinstance(open_folder("file:///a/b"), LocalFolder)
    assert isinstance(open_folder("memory://a"), RemoteFolder)
    assert [open_folder(path).path for path in ("a/b/", "file:///a/b", "/", "memory://a/")] == [
        *("a/b", "/a/b", "/", "memory://a")
    ]
    assert [is_url(path) for path in ("s3://b/x", "a/b", "hf:org/name", "C:/x")] == [True, False, False, False]
    assert (local_path("file:///a b"), local_path("/a b")) == ("/a b", "/a b")


# ---- on a disk


FAILURES: dict[str, BaseException] = {
    "fsync": OSError(5, "Input/output error"),
    "replace": OSError(28, "No space left on device"),
}


@pytest.mark.parametrize("call", FAILURES)
@pytest.mark.parametrize("interrupt", [False, True])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, call: str, interrupt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = LocalFolder(str(tmp_path))
    folder.write("a", b"old")
    error = KeyboardInterrupt() if interrupt else FAILURES[call]

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(KeyboardInterrupt if interrupt else RuntimeFailureError) as caught:
            folder.write("a", b"new")
    if isinstance(caught.value, RuntimeFailureError):
        assert caught.value.message == f"cannot write {tmp_path}/a: {FAILURES[call].args[1]}"
        assert (caught.value.exit_code, bool(caught.value.hint)) == (6, True)
    assert os.listdir(tmp_path) == ["a"]
    assert content(folder, "a") == b"old"
    folder.write("a", b"new")
    assert content(folder, "a") == b"new"


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_creation_that_fails_leaves_nothing(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(RuntimeFailureError, match="cannot write .*a: Input/output error"):
        LocalFolder(str(tmp_path)).create("a", b"new")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_is_created_once_where_there_are_no_hard_links(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fail)
    folder = LocalFolder(str(tmp_path))
    assert folder.create("a", b"first")
    assert not folder.create("a", b"second")
    assert content(folder, "a") == b"first"
    assert os.listdir(tmp_path) == ["a"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    folder = LocalFolder(str(tmp_path))
    folder.write("a", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    calls: list[Callable[[], object]] = [
        lambda: folder.write("a", bytes(200_000)),
        lambda: folder.create("b", bytes(200_000)),
    ]
    try:
        for call in calls:
            with pytest.raises(RuntimeFailureError, match="File too large"):
                call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (os.listdir(tmp_path), content(folder, "a")) == (["a"], b"old")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = LocalFolder(str(tmp_path / "none"))
    for call in (folder.write, folder.create):
        with pytest.raises(RuntimeFailureError, match="cannot write .*none/a: No such file or directory"):
            call("a", b"1")


def test_what_was_read_stays_as_it_was_when_the_file_is_replaced(tmp_path: Path) -> None:
    folder = LocalFolder(str(tmp_path))
    folder.write("a", b"old" * 5000)
    found = folder.read("a")
    folder.write("a", b"new")
    folder.remove("a")
    assert bytes(found) == b"old" * 5000


def test_whoever_reads_while_others_write_finds_one_of_their_files_whole(tmp_path: Path) -> None:
    folder, size = LocalFolder(str(tmp_path)), 300_000
    folder.write("a", b"0" * size)

    def write(mark: bytes) -> None:
        for _ in range(15):
            folder.write("a", mark * size)

    with ThreadPoolExecutor(4) as threads:
        writers = [threads.submit(write, mark) for mark in (b"1", b"2", b"3")]
        seen = set()
        while not all(writer.done() for writer in writers):
            found = content(folder, "a")
            assert found == found[:1] * size
            seen.add(found[:1])
        for writer in writers:
            writer.result()
    assert len(seen) > 1
    assert os.listdir(tmp_path) == ["a"]


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from batchscore.io.storage import LocalFolder\n"
        "folder = LocalFolder(sys.argv[1])\n"
        "while True:\n"
        "    for mark in (b'1', b'2'):\n"
        "        folder.write('a', mark * 3_000_000)\n"
        "        print(flush=True)\n"
    )
    folder = LocalFolder(str(tmp_path))
    for delay in (0.0, 0.002, 0.005):
        command = [sys.executable, "-c", code, str(tmp_path)]
        with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        found = content(folder, "a")
        assert found == found[:1] * 3_000_000
        assert [name for name in folder.names() if not name.startswith(".a.tmp-")] == ["a"]


def test_of_threads_that_create_a_file_at_once_one_wins(tmp_path: Path) -> None:
    folder, count = LocalFolder(str(tmp_path)), 6
    barrier = Barrier(count)

    def create(mark: int) -> list[bool]:
        found = []
        for number in range(40):
            barrier.wait()
            found.append(folder.create(str(number), bytes([mark]) * 1000))
            assert len(content(folder, str(number))) == 1000  # whole as soon as it is there
        return found

    with ThreadPoolExecutor(count) as threads:
        won = list(threads.map(create, range(count)))
    for number in range(40):
        (winner,) = [mark for mark in range(count) if won[mark][number]]
        assert content(folder, str(number)) == bytes([winner]) * 1000
    assert len(os.listdir(tmp_path)) == 40


def test_of_processes_that_create_a_file_at_once_one_wins(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from batchscore.io.storage import LocalFolder\n"
        "folder = LocalFolder(sys.argv[1])\n"
        "for name in sys.stdin:\n"
        "    print(int(folder.create(name.strip(), sys.argv[2].encode())), flush=True)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), mark],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for mark in "abc"
    ]
    pipes = [(process.stdin, process.stdout) for process in processes]
    try:
        for number in range(50):
            for ours, _ in pipes:
                print(number, file=ours, flush=True)
            won = [theirs.readline().strip() for _, theirs in pipes if theirs is not None]
            assert sorted(won) == ["0", "0", "1"]
            assert content(LocalFolder(str(tmp_path)), str(number)) == b"abc"[won.index("1") :][:1]
    finally:
        for process in processes:
            process.communicate()


def test_a_file_is_as_old_as_its_last_touch_by_the_clock_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = LocalFolder(str(tmp_path))
    folder.write("a", b"1")
    then = time.time() - 5000
    os.utime(tmp_path / "a", (then, then))
    monkeypatch.setattr(time, "time", lambda: 0.0)  # this machine's clock is wrong
    assert 4900 < (folder.age("a") or 0) < 5100
    assert folder.age("b") is None
    assert os.listdir(tmp_path) == ["a"]


# ---- files and patterns of a store


TREE = [
    "x.jsonl",
    "y.jsonl",
    "z.parquet",
    ".hidden.jsonl",
    "a/x.jsonl",
    "a/b/c/x.jsonl",
    "a/b/[1].jsonl",
    "a/.b/x.jsonl",
    "a/_c/x.jsonl",
    "b+c/x y.jsonl",
    "b+c/é.jsonl",
]


@pytest.fixture
def tree(tmp_path: Path, store: str) -> str:
    """The same files on a disk and on a store."""
    memory = fsspec.filesystem("memory")
    for name in TREE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
        memory.pipe(f"{tmp_path}/{name}", b"1")
    return store


@pytest.mark.parametrize(
    "pattern",
    [
        *("*.jsonl", "**/*.jsonl", "*/x.jsonl", "**/x*", "a/**", "a/**/x.jsonl", "?.jsonl", "[xz].*", "[!x].jsonl"),
        *("*/*/*.jsonl", "b+c/*", "a/b/[[]1].jsonl", "**/[w-y].jsonl", "*.none", "a/*/x.jsonl"),
    ],
)
def test_a_pattern_means_the_same_on_a_store_as_on_a_disk(tmp_path: Path, tree: str, pattern: str) -> None:
    local = [os.path.relpath(name, tmp_path) for name in glob.glob(f"{tmp_path}/{pattern}", recursive=True)]
    expected = sorted({name for name in local if (tmp_path / name).is_file()})
    assert list_files(f"{tree}/{pattern}") == [f"{tree}/{name}" for name in expected]


def test_a_folder_of_a_store_is_its_files_that_are_not_hidden(tree: str) -> None:
    expected = ["a/b/[1].jsonl", "a/b/c/x.jsonl", "a/x.jsonl", "b+c/x y.jsonl", "b+c/é.jsonl"]
    expected += ["x.jsonl", "y.jsonl", "z.parquet"]
    assert list_files(tree) == list_files(f"{tree}/") == [f"{tree}/{name}" for name in expected]


@pytest.mark.parametrize("name", ["x.jsonl", "a/b/[1].jsonl", "b+c/x y.jsonl", ".hidden.jsonl"])
def test_a_file_of_a_store_is_itself(tree: str, name: str) -> None:
    assert list_files(f"{tree}/{name}") == [f"{tree}/{name}"]


@pytest.mark.parametrize("path", ["none", "none.jsonl", "none/*.jsonl", "none/**/x.jsonl"])
def test_what_a_store_does_not_have_is_named(tree: str, path: str) -> None:
    with pytest.raises(NotFoundError, match="no such file or folder") as caught:
        list_files(f"{tree}/{path}")
    assert caught.value.message.startswith(f"{tree}/{path}: ")


def test_a_scheme_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UsageError, match="nosuch://x/y: no file system is known for nosuch://"):
        file_system("nosuch://x/y")


def test_files_of_a_store_are_told_by_bytes_and_time(tree: str, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe(f"{tmp_path}/x.jsonl", b"12345")
    size, modified = stat_file(f"{tree}/x.jsonl")
    assert size == 5
    assert modified is not None
    assert stat_file(f"{tree}/x.jsonl") == (5, modified)
    memory.pipe(f"{tmp_path}/x.jsonl", b"54321")
    assert stat_file(f"{tree}/x.jsonl") != (5, modified)
    with pytest.raises(InputError, match="empty.jsonl is empty"):
        stat_file(upload_to(f"{tree}/empty.jsonl", b"", tmp_path))
    with pytest.raises(InputError, match="none.jsonl cannot be read"):
        stat_file(f"{tree}/none.jsonl")


def upload_to(url: str, given: bytes, tmp_path: Path) -> str:
    (tmp_path / "local").write_bytes(given)
    upload(str(tmp_path / "local"), url)
    return url


@pytest.mark.parametrize("size", [1, 3_000_000])
def test_an_upload_is_read_from_any_place(store: str, tmp_path: Path, size: int) -> None:
    given = os.urandom(size)
    with open_file(upload_to(f"{store}/deep/x", given, tmp_path)) as file:
        assert file.read() == given
        file.seek(size // 2)
        assert file.read() == given[size // 2 :]
    with pytest.raises(InputError, match="none cannot be read"):
        open_file(f"{store}/none")


def test_a_store_that_does_not_answer_is_named_and_is_no_missing_file(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RemoteFolder(f"{store}/job")
    folder.write("a", b"1")

    class Down:
        type_name = "py::down"

        def __getattr__(self, name: str) -> Callable[..., None]:
            def fail(*_: object, **__: object) -> None:
                raise ConnectionError("the line is dead\nand more")

            return fail

    monkeypatch.setattr(folder, "_system", Down())
    calls: list[Callable[[], object]] = [
        folder.names,
        folder.make,
        folder.discard,
        lambda: folder.has("a"),
        lambda: folder.read("a"),
        lambda: folder.write("a", b"2"),
        lambda: folder.create("b", b"2"),
        lambda: folder.remove("a"),
    ]
    for call in calls:
        with pytest.raises(RuntimeFailureError) as caught:
            call()
        assert caught.value.message.startswith("cannot ")
        assert caught.value.message.endswith(": the line is dead")
