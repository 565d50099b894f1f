"""`-`: rows from standard input and to standard output, in order and as they come."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from batchscore import encode_files, rerank_files, score_files
from batchscore.errors import BatchscoreError, ClosedPipeError, InputError, OutputError, StoppedError, UsageError
from batchscore.io import stream as streams
from batchscore.io.stream import LineWriter, StreamSource
from batchscore.io.units import Unit
from batchscore.jobs.events import Outcome, Silent
from batchscore.media.policy import MediaPolicy
from batchscore.stop import Stop
from jobs import WORDS, Run, random_rows, start, wait_until, write_rows

Tiny = Callable[[str], str]
Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Told(Silent):
    """Keeps the bad rows."""

    def __init__(self) -> None:
        self.bad: list[tuple[str, Any, str]] = []

    def bad_row(self, record: Any) -> None:
        self.bad.append((record["file"], record["line"], record["message"]))


def lines(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@contextmanager
def piped(content: bytes) -> Iterator[None]:
    """Standard input with this in it, and standard output into the file `out`."""
    Path("in").write_bytes(content)
    was = sys.stdin, sys.stdout
    with open("in", encoding="utf-8") as sys.stdin, open("out", "w", encoding="utf-8") as sys.stdout:
        try:
            yield
        finally:
            sys.stdin, sys.stdout = was


def stream(
    run: Callable[..., Outcome], model: str, content: bytes, out: str = "-", **options: Any
) -> tuple[Rows, Outcome, Told]:
    """(what is on standard output, the outcome, what was told)."""
    told = Told()
    with piped(content):
        outcome = run(model, "-", out, dtype="float32", events=told, **options)
    return read("out"), outcome, told


def read(path: str) -> Rows:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


# ---- the same as with files


def test_rows_come_in_order_with_the_scores_of_a_file(tiny: Tiny) -> None:
    """The first 32 rows are a unit there too, and so the same bit for bit."""
    rows = random_rows(300)
    out, outcome, _ = stream(score_files, tiny("bert_ce"), lines(rows))
    score_files(tiny("bert_ce"), write_rows("in.jsonl", rows), "file.jsonl", dtype="float32", unit_rows=32)

    expected = read("file.jsonl")
    assert out[:32] == expected[:32]
    assert [{**row, "score": 0} for row in out] == [{**row, "score": 0} for row in expected]
    assert [row["score"] for row in out] == pytest.approx([row["score"] for row in expected], abs=1e-5)
    assert (outcome.end, outcome.output, outcome.exit_code, outcome.record) == ("streamed", "standard output", 0, None)
    assert outcome.counts["rows"] == 300


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("form", ["rows", "lists"])
def test_rankings_are_those_of_a_file_whose_queries_are_together(tiny: Tiny, form: str, nested: bool) -> None:
    """Of a query with more rows than a unit has at first, too."""
    documents = random_rows(120, queries=3)
    if form == "rows":
        rows: Rows = [
            {"query": q, "document_id": row["id"], "document": row["document"]} for q in "ab" for row in documents
        ]
    else:
        texts = [{"id": row["id"], "text": row["document"]} for row in documents]
        rows = [{"query": f"q {size}", "documents": texts[:size]} for size in (0, 3, 50, 1)]
    options = {"top_n": 7, "nested": nested, "return_documents": True}
    out, _, _ = stream(rerank_files, tiny("bert_mean"), lines(rows), **options)
    rerank_files(
        tiny("bert_mean"), write_rows("in.jsonl", rows), "file.jsonl", dtype="float32", encode="unit", **options
    )

    def shape(found: Rows) -> str:
        return json.dumps(json.loads(json.dumps(found), parse_float=lambda digits: round(float(digits), 4)))

    assert shape(out) == shape(read("file.jsonl"))


def test_encodings_are_those_of_a_file(tiny: Tiny) -> None:
    rows = random_rows(20)
    out, _, _ = stream(encode_files, tiny("bert_mean"), lines(rows))
    encode_files(tiny("bert_mean"), write_rows("in.jsonl", rows), "file.jsonl", dtype="float32")

    assert out == read("file.jsonl")


def test_a_file_is_written_to_standard_output(tiny: Tiny) -> None:
    write_rows("in.parquet", random_rows(40))
    score_files(tiny("bert_ce"), "in.parquet", "file.jsonl", dtype="float32")
    with piped(b""):
        score_files(tiny("bert_ce"), "in.parquet", "-", dtype="float32")

    assert read("out") == read("file.jsonl")


def test_queries_that_are_apart_in_a_file_are_refused(tiny: Tiny) -> None:
    write_rows("in.parquet", [{"query": query, "document": "x"} for query in "aba"])
    with piped(b""), pytest.raises(InputError, match="in.parquet, row 2: its query came before") as caught:
        rerank_files(tiny("bert_ce"), "in.parquet", "-")
    assert "or a stream" in str(caught.value.hint)


@pytest.mark.parametrize("out", ["file.jsonl", "file.parquet"])
def test_standard_input_is_written_to_a_file_when_it_has_ended(tiny: Tiny, out: str) -> None:
    rows = random_rows(100)
    stream(score_files, tiny("bert_ce"), lines(rows), out)
    found = pq.read_table(out).to_pylist() if out.endswith("parquet") else read(out)
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert json.loads(Path(f"{out}.run.json").read_text("utf-8"))["counts"]["rows"] == 100

    with pytest.raises(OutputError, match="already exists"):
        stream(score_files, tiny("bert_ce"), lines(rows), out)
    stream(score_files, tiny("bert_ce"), lines(rows[:1]), out, overwrite=True)


def test_scores_of_pairs_are_kept_in_a_store(tiny: Tiny) -> None:
    rows = random_rows(40)
    for from_store in (0, 40):
        _, outcome, _ = stream(score_files, tiny("bert_ce"), lines(rows), store="store")
        assert outcome.counts["from_store"] == from_store


def test_limit_reads_no_more_rows(tiny: Tiny) -> None:
    out, _, _ = stream(score_files, tiny("bert_ce"), lines(random_rows(100)), limit=37)
    assert [row["id"] for row in out] == [f"r{number}" for number in range(37)]


# ---- what comes in


BROKEN = b"\n".join(
    [
        b"\xef\xbb\xbf" + lines([{"query": "a", "document": "b"}])[:-1],
        b"",
        b"not json",
        b'{"query": 1, "document": "b"}',
        b'{"query": "a", "document": "\x00"}',
        b"\xff",
        b"   ",
        b'{"query": "a"}',
        b'["query"]',
        b'{"query": "last", "document": "\\u0000"}',
    ]
)


@pytest.mark.parametrize("errors", ["quarantine", "null", "fail"])
def test_bad_rows_are_told_with_their_lines(tiny: Tiny, errors: Any) -> None:
    told = Told()
    if errors == "fail":
        with piped(BROKEN), pytest.raises(InputError, match="^standard input, line 3: not JSON"):
            score_files(tiny("bert_ce"), "-", "-", events=told, errors="fail")
        assert (told.bad, [row["query"] for row in read("out")]) == ([], ["a"])
        return
    out, outcome, told = stream(score_files, tiny("bert_ce"), BROKEN, errors=errors)

    assert [(file, line) for file, line, _ in told.bad] == [("standard input", line) for line in (3, 4, 5, 6, 8, 9)]
    scored = [row["query"] for row in out if row["score"] is not None]
    assert (scored, len(out), outcome.exit_code) == (["a", "last"], 8 if errors == "null" else 2, 7)


@pytest.mark.parametrize("form", ["rows", "lists"])
def test_rankings_before_a_bad_row_are_written_with_errors_fail(tiny: Tiny, form: str) -> None:
    """But not that of the query that has it."""
    if form == "rows":
        rows: Rows = [{"query": query, "document": "x"} for query in "aabbc"]
        rows[3]["document"] = None
    else:
        rows = [{"query": query, "documents": ["x", "y"]} for query in "abc"]
        rows[1]["documents"] = ["x", None]
    with piped(lines(rows)), pytest.raises(InputError, match="is null"):
        rerank_files(tiny("bert_ce"), "-", "-", errors="fail")
    assert [(row["query"], row["rank"]) for row in read("out")] == [("a", 1), ("a", 2)]


def test_too_many_bad_rows_end_it(tiny: Tiny) -> None:
    with piped(BROKEN), pytest.raises(BatchscoreError, match="more than --max-errors 3"):
        score_files(tiny("bert_ce"), "-", "-", max_errors=3)


@pytest.mark.parametrize("content", [b"x\ny\n", lines([{"query": 1, "document": "a"}] * 2)])
def test_rows_that_are_all_bad_are_an_error_of_the_call(tiny: Tiny, content: bytes) -> None:
    with piped(content), pytest.raises(InputError, match="standard input, line 1"):
        score_files(tiny("bert_ce"), "-", "-")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_nothing_comes_of_nothing(tiny: Tiny, content: bytes) -> None:
    out, outcome, _ = stream(score_files, tiny("bert_ce"), content)
    assert (out, outcome.exit_code) == ([], 0)
    with pytest.raises(InputError, match=r"standard input is empty, so that x\.jsonl would have no columns"):
        stream(score_files, tiny("bert_ce"), content, "x.jsonl")


def test_a_line_may_be_longer_than_any_buffer(tiny: Tiny) -> None:
    rows = [{"query": "a", "document": "cat " * 2_500_000, "n": number} for number in range(2)]
    out, _, _ = stream(score_files, tiny("bert_ce"), lines(rows), keep_columns="n,document")
    assert [(row["n"], len(row["document"])) for row in out] == [(0, 10_000_000), (1, 10_000_000)]


def test_columns_are_those_of_the_first_lines_with_a_value(tiny: Tiny) -> None:
    """A first row without a list does not hide that the others have them."""
    rows: Rows = [{"query": "a", "documents": None}, {"query": "b", "documents": ["x"]}]
    out, _, told = stream(rerank_files, tiny("bert_ce"), lines(rows))
    assert ([row["query"] for row in out], told.bad) == (["b"], [("standard input", 1, "is null")])

    with (
        piped(lines([{"query": "a", "words": "x"}])),
        pytest.raises(InputError, match="'document' not found in standard"),
    ):
        score_files(tiny("bert_ce"), "-", "-")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shard": "0/2"}, "--shard has no meaning for a stream"),
        ({"claim": "dynamic"}, "--claim dynamic"),
        ({"devices": "cpu:2"}, "--devices"),
        ({"engine": "ray"}, "--engine ray"),
        ({"merge": True}, "--merge"),
        ({"overwrite": True}, "--overwrite"),
        ({"encode": "once"}, "--encode"),
        ({"split": "train"}, "--split"),
        ({"in_format": "csv"}, "--in-format csv"),
        ({"max_errors": "1%"}, "needs to know how many rows"),
        ({"inputs": ["-", "x.jsonl"]}, "no other input"),
        ({"out": "folder/"}, "is a folder of parts"),
        ({"store": "store", "model": "bert_mean"}, "--store keeps"),
        ({"media_root": "nowhere"}, "no such folder"),
    ],
)
def test_what_needs_a_job_is_refused_at_the_door(tiny: Tiny, options: dict[str, Any], said: str) -> None:
    model, inputs, out = (
        options.pop(name, known) for name, known in (("model", "bert_ce"), ("inputs", "-"), ("out", "-"))
    )
    with piped(lines(random_rows(1))), pytest.raises(BatchscoreError, match=said):
        score_files(tiny(model), inputs, out, **options)
    assert read("out") == []


def test_a_stream_without_a_descriptor_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("{}"))
    with pytest.raises(UsageError, match="standard input cannot be used"):
        score_files(tiny("bert_ce"), "-", "-")


def test_a_person_at_a_terminal_is_told_what_to_do(tiny: Tiny) -> None:
    leader, follower = os.openpty()
    os.write(leader, lines([{"query": "a", "document": "b"}]) + b"\x04")
    said: list[str] = []
    told = Told()
    told.note = said.append  # type: ignore[method-assign]
    was = sys.stdin
    with piped(b""), open(follower, encoding="utf-8") as sys.stdin:
        score_files(tiny("bert_ce"), "-", "-", events=told)
    sys.stdin = was
    os.close(leader)
    assert said == ["standard input is a terminal: one JSON object a line, and Ctrl-D after the last"]
    assert len(read("out")) == 1


# ---- units


def taken(source: StreamSource, units: Iterator[Unit]) -> Iterator[list[str]]:
    for unit in units:
        yield source.read(unit, ["query"], {}).table["query"].to_pylist()


@pytest.fixture
def feed() -> Iterator[tuple[StreamSource, IO[bytes]]]:
    """(a source, what writes to it)."""
    end, begin = os.pipe()
    with open(end, "rb") as behind, open(begin, "wb", buffering=0) as writing:
        yield StreamSource(behind.fileno(), MediaPolicy()), writing


def queries(text: str) -> bytes:
    return lines([{"query": one} for one in text])


def test_a_unit_is_what_has_come(feed: tuple[StreamSource, IO[bytes]]) -> None:
    source, writing = feed
    writing.write(queries("abc"))
    units = taken(source, source.units(100))
    assert next(units) == ["a", "b", "c"]
    writing.write(queries("d") + b'{"query": ')
    assert next(units) == ["d"]
    writing.write(b'"e"}')
    writing.close()
    assert list(units) == [["e"]]


def test_rows_of_a_query_that_follow_each_other_wait_for_the_next_query(feed: tuple[StreamSource, IO[bytes]]) -> None:
    source, writing = feed
    writing.write(queries("aaabb"))
    units = taken(source, source.units(2, group="query"))
    assert next(units) == ["a"] * 3
    writing.write(queries("bb"))
    threading.Timer(0.3, lambda: (writing.write(queries("c")), writing.close())).start()
    assert list(units) == [["b"] * 4, ["c"]]


def test_a_query_that_comes_back_is_in_another_unit(feed: tuple[StreamSource, IO[bytes]]) -> None:
    source, writing = feed
    writing.write(queries("aabacc"))
    writing.close()
    assert list(taken(source, source.units(100, group="query"))) == [["a", "a", "b"], ["a", "c", "c"]]


def test_a_row_that_lists_documents_waits_for_no_other(feed: tuple[StreamSource, IO[bytes]]) -> None:
    source, writing = feed
    source.is_listed = True
    writing.write(queries("aab"))
    units = taken(source, source.units(100, group="query"))
    assert [next(units), next(units)] == [["a"], ["a", "b"]]


def test_no_more_is_read_than_a_unit_needs(feed: tuple[StreamSource, IO[bytes]]) -> None:
    """What nobody has asked for stays in the pipe, however much there is."""
    source, writing = feed
    sent = 0

    ended = threading.Event()

    def write() -> None:
        nonlocal sent
        while not ended.is_set():
            writing.write(lines([{"query": "x" * 10_000}]))
            sent += 1

    thread = threading.Thread(target=write)
    thread.start()
    units = source.units(8)
    for _ in range(5):
        source.read(next(units), None, {})
    time.sleep(0.3)  # in which it would be read if anybody did
    assert sent * 10_000 < 5 * 8 * 10_000 + streams._CHUNK_BYTES + (1 << 17)
    ended.set()
    next(units)  # makes room for what waits
    thread.join()


def test_units_end_at_their_bytes(feed: tuple[StreamSource, IO[bytes]]) -> None:
    source, writing = feed
    writing.write(queries("abcdef"))
    assert [len(rows) for rows in taken(source, source.units(100, size=40, limit=6))] == [3, 3]


# ---- what goes out


@pytest.mark.parametrize("sizes", [[10] * 5000, [5000, 3, 100_000, 7, 4096, 4095], [1 << 21]])
def test_lines_are_written_whole_to_a_reader_who_takes_his_time(sizes: list[int]) -> None:
    sent = b"".join(b"x" * (size - 1) + b"\n" for size in sizes)
    end, begin = os.pipe()
    os.set_blocking(begin, False)
    writer = threading.Thread(target=lambda: (LineWriter(begin).write(sent), os.close(begin)))
    writer.start()
    with open(end, "rb", buffering=0) as behind:
        pieces = list(iter(lambda: behind.read(777), b""))
    writer.join()
    assert b"".join(pieces) == sent


def test_a_stop_ends_a_line_that_is_begun_and_no_other() -> None:
    end, begin = os.pipe()
    stop, writer = Stop(), LineWriter(begin)
    writer.on_wait = stop.check
    threading.Timer(0.2, stop.request, ["the test"]).start()
    with pytest.raises(StoppedError):
        writer.write(b"".join(b"%06d\n" % number for number in range(100_000)))
    os.close(begin)
    with open(end, "rb") as behind:
        found = behind.read()
    assert found.endswith(b"\n")
    assert found.splitlines() == [b"%06d" % number for number in range(len(found) // 7)]


def test_a_pipe_that_nobody_reads_is_closed() -> None:
    end, begin = os.pipe()
    os.close(end)
    with pytest.raises(ClosedPipeError) as caught:
        LineWriter(begin).write(b"x\n")
    os.close(begin)
    assert caught.value.exit_code == 141


# ---- processes


@contextmanager
def running(tiny: Tiny, *arguments: str) -> Iterator[tuple[Run, IO[bytes], IO[bytes]]]:
    """(a run, its standard input, its standard output)."""
    for name in ("stdin", "stdout"):
        os.mkfifo(name)
    command = ("score", "-m", tiny("bert_ce"), "--dtype", "float32", "-i", "-", "-o", "-", *arguments)
    run = start(*command, STDIN=os.path.abspath("stdin"), STDOUT=os.path.abspath("stdout"))
    with open("stdin", "wb", buffering=0) as into, open("stdout", "rb") as out:
        yield run, into, out


def test_an_answer_comes_before_the_input_has_ended(tiny: Tiny) -> None:
    with running(tiny) as (run, into, out):
        for number in range(3):
            into.write(lines([{"query": "a", "document": WORDS[number], "n": number}]))
            line = out.readline()
            assert line, run.communicate()[1]
            assert json.loads(line)["n"] == number
        into.close()
        assert out.read() == b""
        said = run.communicate()[1]
    assert run.returncode == 0
    assert "stream   standard input -> standard output: rows in order, and nothing to resume" in said
    assert said.splitlines()[-1].startswith("3 rows in ")


def test_a_reader_who_leaves_ends_it_without_a_word(tiny: Tiny) -> None:
    """Also while no further line comes."""
    with running(tiny, "--quiet") as (run, into, out):
        into.write(lines(random_rows(2)))
        out.readline()
        out.close()
        into.write(lines(random_rows(1)))
        said = run.communicate()[1]
    assert (run.returncode, said) == (141, "")


def test_a_signal_ends_it_between_lines(tiny: Tiny) -> None:
    write_rows("many.jsonl", random_rows(5000))
    with running(tiny, "--quiet") as (run, into, out):
        feeder = threading.Thread(target=lambda: feed_all(into))
        feeder.start()
        found = [out.readline()]
        time.sleep(0.3)
        run.send_signal(signal.SIGTERM)
        found += out.readlines()
        said = run.communicate()[1]
        feeder.join()
    assert run.returncode == 75
    assert [json.loads(line)["id"] for line in found] == [f"r{number % 5000}" for number in range(len(found))]
    assert "stopped by SIGTERM" in said
    assert "a stream cannot be resumed" in said


def feed_all(into: IO[bytes]) -> None:
    """Write rows until nobody reads them."""
    with suppress(BrokenPipeError):
        while True:
            into.write(Path("many.jsonl").read_bytes())


def test_a_kill_leaves_whole_lines(tiny: Tiny) -> None:
    """Whoever reads a pipe gets what was written to it, and no piece of a line is among that."""
    write_rows("many.jsonl", random_rows(5000))
    with running(tiny, "--quiet") as (run, into, out):
        feeder = threading.Thread(target=lambda: feed_all(into))
        feeder.start()
        found = out.readline()
        time.sleep(0.3)  # by now it waits in the middle of a unit for the pipe to be read
        run.kill()
        found += out.read()
        feeder.join()
        wait_until(lambda: run.poll() is not None, 10)
    assert found.endswith(b"\n")
    assert all(np.isfinite(json.loads(line)["score"]) for line in found.splitlines())
