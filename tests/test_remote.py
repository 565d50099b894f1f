"""Input and output on stores: an S3 server in this process, and fsspec's files in memory."""

from __future__ import annotations

import gzip
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import fsspec
import pyarrow.fs as pafs
import pytest
from typer.testing import CliRunner, Result

import jobs
from batchscore.cli.main import app
from batchscore.errors import NotFoundError, UsageError
from batchscore.io import storage
from threads import one_thread

# moto's server and botocore, on newer Pythons
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:moto.*",
    "ignore::DeprecationWarning:botocore.*",
    "ignore::DeprecationWarning:werkzeug.*",
)

Tiny = Callable[[str], str]
ROWS = jobs.random_rows(90)
FAULTY = [{**row, "document": None} if number in (7, 50) else row for number, row in enumerate(ROWS)]
CUT = ["--window-rows", "16"]  # into 6 units


class Store:
    """A bucket on a local S3 server."""

    def __init__(self, address: str) -> None:
        import boto3

        self.address = address
        self.client: Any = boto3.client("s3")

    def put(self, key: str, content: bytes) -> str:
        self.client.put_object(Bucket="bucket", Key=key, Body=content)
        return f"s3://bucket/{key}"

    def get(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket="bucket", Key=key)["Body"].read()
        return content

    def names(self, folder: str) -> set[str]:
        """Of all objects below a folder, but for S3's mark of the folder itself."""
        found = self.client.list_objects_v2(Bucket="bucket", Prefix=f"{folder}/").get("Contents", [])
        return {entry["Key"].removeprefix(f"{folder}/") for entry in found} - {""}

    def versions(self, folder: str) -> dict[str, str]:
        """Which upload each part is; a bucket that keeps versions numbers them."""
        found = self.client.list_object_versions(Bucket="bucket", Prefix=f"{folder}/part-").get("Versions", [])
        latest = {entry["Key"]: entry["VersionId"] for entry in found if entry["IsLatest"]}
        return {key: version for key, version in latest.items() if key.endswith(".parquet")}

    def check_credentials(self, wanted: bool) -> None:
        """Whether the server looks at them from now on."""
        self._tell("reset-auth", b"0" if wanted else b"inf")

    def empty(self) -> None:
        """Leave nothing but the bucket."""
        self._tell("reset")
        self.client.create_bucket(Bucket="bucket")

    def _tell(self, what: str, how: bytes = b"") -> None:
        urlopen(Request(f"{self.address}/moto-api/{what}", how, {"Content-Type": "text/plain"})).close()


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        yield Store(f"http://{host}:{port}")
    running.stop()


@pytest.fixture
def s3(server: Store) -> Store:
    """The bucket, empty."""
    server.empty()
    return server


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's files in memory, none at first."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture(params=["s3", "memory"])
def folder(request: pytest.FixtureRequest) -> storage.Folder:
    """A folder on each kind of store."""
    request.getfixturevalue(request.param)
    return storage.open_folder(f"{request.param}://bucket/deep/folder/")


@pytest.fixture(autouse=True)
def alone(here: Path) -> Iterator[None]:
    with one_thread():
        yield


def run(command: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, [command, *arguments])


def score(model: str, source: str, out: str, *options: str) -> Result:
    return run("score", "--model", model, "--in", source, "--out", out, *CUT, *options)


def succeeded(result: Result, code: int = 0) -> Result:
    assert result.exit_code == code, result.output
    return result


def refused(result: Result) -> tuple[int, str]:
    """(exit code, what is said) of a call that was refused in one line and a hint."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    said = [line for line in result.stderr.splitlines() if not line.startswith("loading ")]
    assert [line.split(":")[0] for line in said] == ["error", "hint"], said
    return result.exit_code, said[0]


def local_input(name: str, rows: list[dict[str, Any]] = ROWS) -> bytes:
    """The bytes of a file of rows, which is written too."""
    if name.endswith(".gz"):
        plain = local_input(name.removesuffix(".gz"), rows)
        Path(name).write_bytes(gzip.compress(plain))
    else:
        jobs.write_rows(name, rows)
    return Path(name).read_bytes()


# ---- files


@pytest.mark.parametrize(
    ("source", "target"),
    [("in.parquet", "out.parquet"), ("in.jsonl", "out.jsonl"), ("in.jsonl.gz", "out.jsonl.zst")],
)
def test_a_file_of_a_store_becomes_one_with_the_bytes_of_a_local_run(
    tiny: Tiny, s3: Store, source: str, target: str
) -> None:
    url = s3.put(source, local_input(source, FAULTY))
    succeeded(score(tiny("bert_ce"), source, target), 7)
    result = succeeded(score(tiny("bert_ce"), url, f"s3://bucket/results/{target}"), 7)

    assert s3.get(f"results/{target}") == Path(target).read_bytes()
    assert s3.names("results") == {target, f"{target}.run.json", f"{target}.errors.jsonl"}
    assert result.stderr.splitlines()[-1].endswith(f"-> s3://bucket/results/{target}")
    record = json.loads(s3.get(f"results/{target}.run.json"))
    assert record["inputs"][0]["name"] == url
    assert record["output"] == f"s3://bucket/results/{target}"
    faults = [json.loads(line) for line in s3.get(f"results/{target}.errors.jsonl").splitlines()]
    assert [(fault["file"], fault["row"]) for fault in faults] == [(url, 7), (url, 50)]


@pytest.mark.parametrize("url", ["s3://bucket/in/", "s3://bucket/i*/**/*.jsonl"])
def test_folders_and_patterns_of_a_store_mean_their_files_in_order(tiny: Tiny, s3: Store, url: str) -> None:
    names = ["a 1.jsonl", "b%20é.jsonl", "c/d#e.jsonl"]
    for number, name in enumerate(names):
        s3.put(f"in/{name}", local_input(f"{number}.jsonl", ROWS[30 * number :][:30]))
    s3.put("in/.hidden/x.jsonl", b"no input")
    s3.put("in/readme.txt", b"no input")
    local_input("all.jsonl")
    succeeded(score(tiny("bert_ce"), "all.jsonl", "out.jsonl"))
    succeeded(score(tiny("bert_ce"), url, "s3://bucket/out.jsonl"))

    assert s3.get("out.jsonl") == Path("out.jsonl").read_bytes()
    record = json.loads(s3.get("out.jsonl.run.json"))
    assert [file["name"] for file in record["inputs"]] == [f"s3://bucket/in/{name}" for name in names]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("in/*.jsonl", ["_b.jsonl", "a.jsonl"]),
        ("in/[!_]*", ["a.jsonl"]),
        ("in/?/*", ["c/a.jsonl", "c/z.parquet"]),
        ("in/**/a.jsonl", ["a.jsonl", "c/a.jsonl"]),
        ("in/[.jsonl", ["[.jsonl"]),
        ("in", ["[.jsonl", "a.jsonl", "c/a.jsonl", "c/z.parquet"]),
    ],
)
@pytest.mark.parametrize("scheme", ["s3", "memory"])
def test_patterns_are_those_of_a_shell(
    request: pytest.FixtureRequest, scheme: str, pattern: str, found: list[str]
) -> None:
    request.getfixturevalue(scheme)
    names = ["_b.jsonl", "a.jsonl", "c/a.jsonl", "c/z.parquet", ".d/e.jsonl"]
    for name in [*names, "[.jsonl"] if "[.j" in pattern or pattern == "in" else names:
        place, _, last = f"{scheme}://bucket/in/{name}".rpartition("/")
        storage.open_folder(place).write(last, b"{}")

    assert storage.list_files(f"{scheme}://bucket/{pattern}") == [f"{scheme}://bucket/in/{name}" for name in found]


# ---- folders


def test_a_folder_holds_files_that_are_whole(folder: storage.Folder) -> None:
    assert folder.names() == []
    folder.discard()  # of nothing
    folder.make()
    folder.write("b", b"1")
    folder.write("b", b"22")
    storage.open_folder(f"{folder.path}/below").write("c", b"3")

    assert folder.create("a", b"4")
    assert not folder.create("a", b"5")
    assert folder.names() == ["a", "b"]  # not what is in folders of it
    assert (bytes(folder.read("a")), bytes(folder.read("b"))) == (b"4", b"22")
    assert (folder.has("a"), folder.has("c"), folder.has("below")) == (True, False, False)
    with pytest.raises(FileNotFoundError):
        folder.read("c")
    folder.remove("a")
    folder.remove("a")
    assert folder.names() == ["b"]
    folder.discard()
    assert folder.names() == []


def test_parts_on_a_store_are_merged_there_or_here(tiny: Tiny, s3: Store) -> None:
    url = s3.put("in.jsonl", local_input("in.jsonl", FAULTY))
    succeeded(score(tiny("bert_ce"), "in.jsonl", "out.parquet"), 7)
    succeeded(score(tiny("bert_ce"), url, "s3://bucket/parts/"), 7)

    parts = {f"part-{unit:05}.parquet" for unit in range(6)}
    assert s3.names("parts") == parts | {"_job.json", "_run.json", "_errors.jsonl"}
    for name in ("s3://bucket/parts/", "s3://bucket/parts"):
        told = json.loads(succeeded(run("status", name, "--json")).stdout)
        assert told["complete"]
        assert told["units"] == {"total": 6, "done": 6, "running": 0, "missing": 0, "failed": 0}
        assert told["rows"] == {"total": 90, "done": 90, "faulty": 2}
        assert told["inputs"] == [url]
    succeeded(run("merge", "s3://bucket/parts/", "--out", "here.parquet"))
    succeeded(run("merge", "s3://bucket/parts/", "--out", "s3://bucket/there.parquet"))
    assert Path("here.parquet").read_bytes() == Path("out.parquet").read_bytes() == s3.get("there.parquet")


def test_rankings_on_a_store_are_those_of_a_local_run(tiny: Tiny, s3: Store) -> None:
    url = s3.put("in.jsonl", local_input("in.jsonl"))
    options = ["--model", tiny("bert_ce"), "--query-id-column", "query", "--top-n", "3", *CUT]
    succeeded(run("rerank", *options, "--in", "in.jsonl", "--out", "out.jsonl"))
    succeeded(run("rerank", *options, "--in", url, "--out", "s3://bucket/out.jsonl"))
    succeeded(run("rerank", *options, "--in", url, "--out", "s3://bucket/parts/"))
    succeeded(run("merge", "s3://bucket/parts/", "--out", "s3://bucket/merged.jsonl"))

    assert Path("out.jsonl").read_bytes() == s3.get("out.jsonl") == s3.get("merged.jsonl")


def test_shards_fill_one_folder_and_the_last_merges(tiny: Tiny, s3: Store) -> None:
    url = s3.put("in.parquet", local_input("in.parquet"))
    succeeded(score(tiny("bert_ce"), "in.parquet", "out.parquet"))
    result = succeeded(score(tiny("bert_ce"), url, "s3://bucket/parts/", "--shard", "0/2", "--merge"))
    assert "3 of 6 units are not done yet" in result.stderr
    assert sorted(s3.versions("parts")) == [f"parts/part-{unit:05}.parquet" for unit in (0, 2, 4)]
    succeeded(score(tiny("bert_ce"), url, "s3://bucket/parts/", "--shard", "1/2", "--merge"))

    assert s3.get("parts.parquet") == Path("out.parquet").read_bytes()


def test_a_finished_run_is_not_done_again(tiny: Tiny, s3: Store) -> None:
    url = s3.put("in.parquet", local_input("in.parquet"))
    s3.client.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
    for out, said in (("s3://bucket/out.parquet", "nothing to do"), ("s3://bucket/parts/", "to do    0 rows")):
        succeeded(score(tiny("bert_ce"), url, out))
        again = succeeded(score(tiny("bert_ce"), url, out))
        assert said in again.stderr

    versions = s3.client.list_object_versions(Bucket="bucket")["Versions"]
    assert sum(entry["Key"] == "out.parquet" for entry in versions) == 1
    assert sum(entry["Key"].startswith("parts/part-") for entry in versions) == 6


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tiny: Tiny, s3: Store) -> None:
    s3.client.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
    url, out = s3.put("in.parquet", local_input("in.parquet", jobs.random_rows(320))), "s3://bucket/out.parquet"
    parts = [f".out.parquet.parts/part-{unit:05}.parquet" for unit in range(20)]
    killed = jobs.start("score", "--model", tiny("bert_ce"), "--in", url, "--out", out, "--quiet", *CUT)
    try:
        succeeded(score(tiny("bert_ce"), "in.parquet", "undisturbed.parquet"))
        jobs.wait_until(lambda: killed.poll() is not None or len(s3.versions(".out.parquet.parts")) >= 2, 240)
    finally:
        killed.kill()
        said = killed.communicate()[1]
    assert killed.returncode == -signal.SIGKILL, said
    done = len(s3.versions(".out.parquet.parts"))
    result = succeeded(score(tiny("bert_ce"), url, out))

    assert 2 <= done < 20
    assert f"to do    {320 - 16 * done} rows in {20 - done} units" in result.stderr
    uploads = s3.client.list_object_versions(Bucket="bucket", Prefix=".out.parquet.parts/part-")["Versions"]
    assert sorted(entry["Key"] for entry in uploads) == parts  # each once, whichever run it is of
    assert s3.names(".out.parquet.parts") == set()
    assert s3.get("out.parquet") == Path("undisturbed.parquet").read_bytes()


def test_parts_that_are_there_are_kept(tiny: Tiny, s3: Store) -> None:
    """And what a killed run leaves beside them goes when the job is done."""
    url = s3.put("in.parquet", local_input("in.parquet"))
    succeeded(score(tiny("bert_ce"), "in.parquet", "undisturbed.parquet"))
    succeeded(score(tiny("bert_ce"), url, "s3://bucket/parts/"))
    s3.client.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
    folder, before = storage.open_folder("s3://bucket/parts"), s3.versions("parts")
    lost = [f"part-{unit:05}.parquet" for unit in (1, 4)]
    for name in lost:
        folder.remove(name)
    folder.write("part-00001.progress", b"of another job")
    folder.write("worker-elsewhere-1.json", b"{}")
    result = succeeded(score(tiny("bert_ce"), url, "s3://bucket/parts/", "--merge"))

    assert "to do    32 rows in 2 units" in result.stderr
    after = s3.versions("parts")
    assert {key for key in before if before[key] != after[key]} == {f"parts/{name}" for name in lost}
    assert s3.names("parts") == {*(f"part-{unit:05}.parquet" for unit in range(6)), "_job.json", "_run.json"}
    assert s3.get("parts.parquet") == Path("undisturbed.parquet").read_bytes()


# ---- files in memory


@pytest.mark.parametrize("deep", ["", "deep/down/"])
def test_files_in_memory_are_read_and_written(tiny: Tiny, memory: Any, deep: str) -> None:
    memory.pipe(f"/{deep}in.jsonl.gz", local_input("in.jsonl.gz", FAULTY))
    succeeded(score(tiny("bert_ce"), "in.jsonl", "out.jsonl"), 7)
    succeeded(score(tiny("bert_ce"), f"memory://{deep}in.jsonl.gz", f"memory://{deep}out.jsonl"), 7)

    assert memory.cat(f"/{deep}out.jsonl") == Path("out.jsonl").read_bytes()
    names = ["in.jsonl.gz", "out.jsonl", "out.jsonl.errors.jsonl", "out.jsonl.run.json"]
    assert sorted(memory.find("/")) == [f"/{deep}{name}" for name in names]


def test_parts_in_memory_are_merged(tiny: Tiny, memory: Any) -> None:
    memory.pipe(
        {"/in/a.parquet": local_input("a.parquet", ROWS[:50]), "/in/b.jsonl": local_input("b.jsonl", ROWS[50:])}
    )
    local_input("all.jsonl")
    succeeded(score(tiny("bert_ce"), "all.jsonl", "out.jsonl"))
    succeeded(score(tiny("bert_ce"), "memory://in/", "memory://parts/"))
    succeeded(run("merge", "memory://parts/", "--out", "memory://merged.jsonl"))

    assert json.loads(run("status", "memory://parts", "--json").stdout)["units"]["done"] == 6
    assert memory.cat("/merged.jsonl") == Path("out.jsonl").read_bytes()
    assert not os.path.exists("memory:")


# ---- what goes wrong


@pytest.mark.parametrize(
    ("source", "out", "code", "said"),
    [
        ("s3://bucket/none.parquet", "o.parquet", 4, "s3://bucket/none.parquet: no such file or folder"),
        ("s3://bucket/none/*.parquet", "o.parquet", 4, "s3://bucket/none/*.parquet: no such file or folder"),
        ("s3://nobody-has-this/in.parquet", "o.parquet", 4, "nobody-has-this"),
        ("s3://bucket/texts/", "o.parquet", 4, "no input files in s3://bucket/texts/"),
        ("s3://bucket/texts/a.txt", "o.parquet", 2, "its suffix is none of"),
        ("s3://bucket/empty.parquet", "o.parquet", 5, "s3://bucket/empty.parquet is empty"),
        ("s3://bucket/bad.parquet", "o.parquet", 5, "s3://bucket/bad.parquet is not a readable Parquet file"),
        ("s3://bucket/in.parquet?region=x", "o.parquet", 2, "options after a ?"),
        ("s3:///in.parquet", "o.parquet", 2, "s3:///in.parquet cannot be used: Missing bucket name"),
        ("foo://x/in.parquet", "o.parquet", 2, "no file system is known for foo://"),
        ("memory://none.parquet", "o.parquet", 4, "memory://none.parquet: no such file or folder"),
        ("s3://bucket/in.parquet", "s3://nobody-has-this/o.parquet", 8, "there is no bucket nobody-has-this"),
        ("s3://bucket/in.parquet", "s3://nobody-has-this/o/", 8, "there is no bucket nobody-has-this"),
        ("s3://bucket/in.parquet", "s3://o.parquet", 2, "names no bucket"),
        ("s3://bucket/in.parquet", "s3://", 2, "names no bucket"),
        ("s3://bucket/in.parquet", "s3://bucket/o", 2, "its suffix is none of"),
        ("s3://bucket/in.parquet", "s3://bucket/texts/", 8, "has other files in it, for example a.txt"),
        ("s3://bucket/in.parquet", "foo://x/o.parquet", 2, "no file system is known for foo://"),
        ("s3://bucket/in.parquet", "foo://x/o/", 2, "no file system is known for foo://"),
    ],
)
def test_a_wrong_place_is_named(tiny: Tiny, s3: Store, source: str, out: str, code: int, said: str) -> None:
    s3.put("in.parquet", local_input("in.parquet"))
    s3.put("bad.parquet", b"PAR1 not really")
    s3.put("empty.parquet", b"")
    s3.put("texts/a.txt", b"text")
    found = refused(score(tiny("bert_ce"), source, out))

    assert (found[0], said in found[1]) == (code, True), found
    assert s3.client.list_objects_v2(Bucket="bucket")["KeyCount"] == 4


def test_a_merge_into_no_bucket_is_refused(tiny: Tiny, s3: Store) -> None:
    url = s3.put("in.parquet", local_input("in.parquet"))
    succeeded(score(tiny("bert_ce"), url, "s3://bucket/parts/"))

    assert refused(run("merge", "s3://bucket/parts/", "--out", "s3://nobody-has-this/o.parquet"))[0] == 8
    assert refused(run("status", "s3://nobody-has-this/parts/"))[0] == 8
    assert refused(run("status", "s3://bucket/other/"))[0] == 8


def test_units_cannot_be_claimed_on_a_store(tiny: Tiny, s3: Store) -> None:
    url = s3.put("in.parquet", local_input("in.parquet"))
    code, said = refused(score(tiny("bert_ce"), url, "s3://bucket/parts/", "--claim", "dynamic"))

    assert code == 2
    assert "--claim dynamic" in said
    assert s3.names("parts") == set()


def test_an_object_that_is_the_input_is_not_overwritten(tiny: Tiny, s3: Store) -> None:
    url = s3.put("in.parquet", local_input("in.parquet"))
    code, said = refused(score(tiny("bert_ce"), url, url, "--overwrite"))

    assert code == 2
    assert "is one of the inputs" in said


def test_wrong_credentials_are_told(tiny: Tiny, s3: Store) -> None:
    url = s3.put("in.parquet", local_input("in.parquet"))
    s3.check_credentials(True)
    try:
        assert refused(score(tiny("bert_ce"), url, "o.parquet"))[0] == 4
        assert refused(score(tiny("bert_ce"), "in.parquet", "s3://bucket/o.parquet"))[0] == 8
        assert refused(score(tiny("bert_ce"), "in.parquet", "s3://bucket/o/"))[0] == 8
        assert refused(run("status", "s3://bucket/o/"))[0] == 6
    finally:
        s3.check_credentials(False)


@pytest.mark.slow
def test_a_server_that_is_down_is_told_soon(tiny: Tiny, s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    code, said = refused(score(tiny("bert_ce"), "s3://bucket/in.parquet", "o.parquet"))

    assert (code, "Could not connect to server" in said) == (4, True), said
    assert time.monotonic() - began < 30


def test_a_store_that_does_not_answer_is_no_damage(tiny: Tiny, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that cannot be read just now stay; those that hold something else go."""
    local_input("in.parquet")
    succeeded(score(tiny("bert_ce"), "in.parquet", "memory://parts/"))
    with monkeypatch.context() as patch:
        opened = type(memory)._open

        def refuse(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
            if "part-00003" in path:
                raise TimeoutError("no answer")
            return opened(self, path, mode, **options)

        patch.setattr(type(memory), "_open", refuse)
        code, said = refused(score(tiny("bert_ce"), "in.parquet", "memory://parts/"))
        assert (code, said) == (6, "error: cannot read memory://parts/part-00003.parquet: no answer")
        assert refused(run("merge", "memory://parts/", "--out", "o.parquet"))[0] == 6
    memory.pipe("/parts/part-00002.parquet", b"PAR1 not really")
    result = succeeded(score(tiny("bert_ce"), "in.parquet", "memory://parts/"))

    assert "parts 2 were damaged: scored again" in result.stderr
    assert "to do    16 rows in 1 units" in result.stderr


def test_an_upload_is_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow completes what is uploaded when an error leaves its stream: nothing may come between two writes."""
    calls: list[bytes] = []

    class Stream:
        def __enter__(self) -> Stream:
            return self

        def __exit__(self, *_: object) -> None:
            calls.append(b"closed")

        def write(self, content: Any) -> None:
            calls.append(bytes(content))

    class System:
        def open_output_stream(self, path: str, compression: str | None) -> Stream:
            return Stream()

    monkeypatch.setattr(storage, "file_system", lambda url: (System(), url))
    for content in (b"0123456789" * 400_000, b""):
        Path("file").write_bytes(content)
        storage.upload("file", "s3://bucket/file")
        assert calls == [content, b"closed"]
        calls.clear()


# ---- input that changes


@pytest.mark.parametrize("scheme", ["s3", "memory"])
@pytest.mark.parametrize("change", ["size", "time"])
def test_input_that_changed_is_refused(request: pytest.FixtureRequest, tiny: Tiny, scheme: str, change: str) -> None:
    request.getfixturevalue(scheme)
    place, url = storage.open_folder(f"{scheme}://bucket"), f"{scheme}://bucket/in.jsonl"
    place.write("in.jsonl", local_input("in.jsonl"))
    succeeded(score(tiny("bert_ce"), url, f"{scheme}://bucket/parts/"))
    if change == "time":
        time.sleep(1.1)  # S3 tells seconds
    place.write("in.jsonl", local_input("in.jsonl", ROWS[::-1] if change == "time" else ROWS[1:]))
    code, said = refused(score(tiny("bert_ce"), url, f"{scheme}://bucket/parts/"))

    assert code == 8
    assert ("inputs[0].modified was" if change == "time" else "inputs[0].") in said


# ---- other stores, without a network


def test_hub_files_are_read_by_the_hub_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the Hub a hash stands for the time of a file, which would cost a call."""
    from huggingface_hub import HfFileSystem

    url = "hf://datasets/org/name/file.parquet"
    system, path = storage.file_system(url)
    assert isinstance(system, pafs.PyFileSystem)
    assert isinstance(system.handler.fs, HfFileSystem)
    assert path == "datasets/org/name/file.parquet"

    file = {"name": path, "type": "file", "size": 5, "blob_id": "abc", "last_commit": None}
    monkeypatch.setattr(HfFileSystem, "info", lambda self, path, **_: {**file, "name": path})
    assert storage.list_files(url) == [url]
    assert storage.stat_file(url) == (5, "abc")


def test_a_hub_that_cannot_be_asked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfFileSystem

    def ask(self: Any, path: str, **_: Any) -> Any:
        raise RuntimeError("429 Too Many Requests")

    monkeypatch.setattr(HfFileSystem, "info", ask)
    with pytest.raises(NotFoundError, match="hf://datasets/org/name/x.parquet cannot be reached: 429 Too Many"):
        storage.list_files("hf://datasets/org/name/x.parquet")


@pytest.mark.parametrize(
    ("url", "kind", "path"),
    [
        ("gs://bucket/a b.parquet", "gcs", "bucket/a b.parquet"),
        ("s3://bucket/100%25#é?.parquet", "s3", "bucket/100%25#é?.parquet"),
        ("abfs://container@account.dfs.core.windows.net/a%20b", "abfs", "container/a%20b"),
        ("memory://a/b", "py::fsspec+memory", "/a/b"),
    ],
)
def test_names_in_a_url_are_literal(url: str, kind: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # else Arrow asks Amazon for the bucket's region
    system, place = storage.file_system(url)

    assert (system.type_name, place) == (kind, path)


def test_a_scheme_nobody_knows_is_a_wrong_call() -> None:
    with pytest.raises(UsageError, match="no file system is known for foo://"):
        storage.file_system("foo://x")
