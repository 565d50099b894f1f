"""Files of the field: every value comes back as it was written, and what is broken is named with its line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from batchscore import rerank_files
from batchscore.cli.main import app
from batchscore.errors import BatchscoreError, InputError, NotFoundError, UsageError
from batchscore.io import fields, lines
from batchscore.io.forms import InFormat
from batchscore.io.lines import row_steps
from batchscore.io.source import FileSource, open_source
from batchscore.io.units import Span

pytestmark = pytest.mark.usefixtures("here")

Tiny = Callable[[str], str]
Opened = Callable[..., FileSource]
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}
IDS = ["007", "7", "q 1", "é東", "a/b:c", "0", "None", "nan"]
TEXTS = [
    "plain",
    "",
    " blanks around ",
    'say "hi"',
    '"',
    '""',
    "a,b;c",
    "tab\there",
    "two\nlines",
    "\n\nlines\n",
    "carriage\r\nreturn",
    "\r",
    "été 🎉 \u2028 \u0085 \ufeff",
    "'single' \\ backslash \\n",
    "NULL",
]
NASTY = [
    {"query_id": IDS[number % len(IDS)], "query": text, "document": TEXTS[-number], "document_id": f"0{number}"}
    for number, text in enumerate(TEXTS)
]
SIMPLE = [{name: value.translate({9: " ", 10: " ", 13: " "}) for name, value in row.items()} for row in NASTY]


def delimited(rows: list[dict[str, str]], delimiter: str, end: str = "\r\n", quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def written(name: str, content: bytes | str) -> str:
    data = content.encode() if isinstance(content, str) else content
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(PACK[Path(name).suffix if Path(name).suffix in PACK else ""](data))
    return name


def json_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def opened() -> Iterator[Opened]:
    """opened(*paths, form=...): a source that is closed in the end."""
    with ExitStack() as stack:

        def open_paths(*paths: str, form: InFormat = "auto") -> FileSource:
            return stack.enter_context(closing(open_source(paths, form=form)))

        yield open_paths


def read(path: str, form: InFormat = "auto", rows: int = 3, columns: list[str] | None = None) -> list[dict[str, Any]]:
    source = open_source([path], form=form)
    try:
        return [row for unit in source.units(rows) for row in source.read(unit, columns, {}).table.to_pylist()]
    finally:
        source.close()


def said(path: str, form: InFormat = "auto") -> str:
    """The error of a file, or the faults of its rows, as the list of errors has them."""
    try:
        with closing(open_source([path], form=form)) as source:
            chunks = [source.read(unit, None, {}) for unit in source.units(2)]
    except BatchscoreError as error:
        return error.message if error.hint else "no hint"
    messages = []
    for chunk in chunks:
        for row, fault in chunk.faults().items():
            assert fault.hint
            assert set(chunk.table.to_pylist()[row].values()) == {None}
            messages.append(f"{chunk.locate(row)}: {fault.message}")
    return "\n".join(messages)


# ---- what is written comes back


def files_of(rows: list[dict[str, str]]) -> dict[str, bytes]:
    return {
        "a.csv": delimited(rows, ","),
        "b.csv": b"\xef\xbb\xbf" + delimited(rows, ",", "\n", csv.QUOTE_ALL).rstrip(b"\n"),
        "a.tsv": delimited(rows, "\t"),
        "a.json": json.dumps(rows, indent=1).encode(),
        "b.json": json.dumps(rows, ensure_ascii=False).encode(),
        "lines.json": json_lines(rows).encode(),
        "a.jsonl": json_lines(rows).encode(),
    }


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("name", files_of(NASTY))
def test_nasty_ids_and_texts_come_back_as_they_were(name: str, packing: str) -> None:
    path = written(name + packing, files_of(NASTY)[name])

    for rows in (1, 4, 100):
        assert read(path, rows=rows) == NASTY
    assert read(path, columns=["document"]) == [{"document": row["document"]} for row in NASTY]


@pytest.mark.parametrize("packing", PACK)
def test_fields_without_quotes_come_back_as_they_were(packing: str) -> None:
    rows = [[row["document_id"], str(10 + number), row["query"], row["document"]] for number, row in enumerate(SIMPLE)]
    path = written(f"top1000.tsv{packing}", "".join("\t".join(row) + "\n" for row in rows))

    assert [list(row.values()) for row in read(path)] == rows
    assert list(read(path)[0]) == ["query_id", "document_id", "query", "document"]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.json"])
def test_units_are_read_in_any_order_and_again(opened: Opened, name: str) -> None:
    draw = random.Random(0)
    rows = [{"n": str(number), "text": draw.choice(TEXTS) + str(number)} for number in range(100)]
    stem = name.removesuffix(".gz")
    written(name, files_of(rows)[stem])
    source = opened(name)
    units = source.units(7)
    draw.shuffle(units)

    for unit in units + units[::-1]:
        assert source.read(unit, None, {}).table.to_pylist() == rows[7 * unit.index : 7 * unit.index + 7]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json"])
def test_runs_of_a_query_are_not_divided(name: str) -> None:
    rows = [{"q": f'"{number // 5}"\n', "d": "x"} for number in range(30)]
    source = open_source([written(name, files_of(rows)[name])])

    assert [unit.rows for unit in source.units(3, group="q", stretch=9)] == [5] * 6


def test_a_row_is_found_by_its_first_line(opened: Opened) -> None:
    source = opened(written("a.csv", 'a,b\n\n1,"x\ny\n\nz"\n\n2,\n3,"\n"\n'))
    chunks = [source.read(unit, None, {}) for unit in source.units(1)]

    assert [chunk.locate(0) for chunk in chunks] == ["a.csv, line 3", "a.csv, line 8", "a.csv, line 9"]


def test_a_header_without_rows_is_an_empty_input(opened: Opened) -> None:
    source = opened(written("a.csv", "query,document\n"))
    (unit,) = source.units(5)

    assert source.read(unit, None, {}).table.to_pydict() == {"query": [], "document": []}


def test_numbers_of_runs_and_judgements_have_types() -> None:
    run = read(written("a.trec", "q1 Q0 007 1 -2.5e-3 bm25\nq1\tQ0\té\t2 3 bm25\n"))
    assert run == [
        {"query_id": "q1", "document_id": "007", "rank": 1, "score": -2.5e-3, "run_tag": "bm25"},
        {"query_id": "q1", "document_id": "é", "rank": 2, "score": 3.0, "run_tag": "bm25"},
    ]
    assert read(written("a.qrels", "q1 0 007 -1\n")) == [{"query_id": "q1", "document_id": "007", "relevance": -1}]
    assert read(written("b.qrels", "q1 0 007 +1\n")) == [{"query_id": "q1", "document_id": "007", "relevance": 1}]


@pytest.mark.parametrize("layout", [fields.TREC_RUN, fields.TREC_QRELS, fields.msmarco_layout(b"7\ta passage\n")])
def test_lines_that_arrow_reads_are_read_as_one_by_one(layout: fields.Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "ROWS_BYTES", 40)
    draw, read_by_arrow = random.Random(0), 0
    for _ in range(300):
        content = any_lines(layout, draw)
        Path("lines").write_bytes(content)
        found = []
        for is_quick in (True, False):
            with closing(fields.FieldsReader("lines", layout)) as reader, closing(reader.lines()) as whole:
                if not is_quick:
                    monkeypatch.setattr(reader, "_plain", lambda content: None)
                steps = list(reader.steps(None) if is_quick else row_steps(reader._rows(whole)))
                rows = [list(chain(*(getattr(step, name) for step in steps))) for name in ("ends", "numbers", "sizes")]
                block = reader.read(Span(0, 0, len(content), len(rows[0]), 1), None, {})
            read_by_arrow += is_quick and isinstance(block.numbers, range)
            found.append((rows, str(block.table.to_pydict()), list(block.numbers), block.faults))
        assert found[0] == found[1], content
    assert 50 < read_by_arrow < 250


def any_lines(layout: fields.Layout, draw: random.Random) -> bytes:
    """Lines of which most are as they should be."""
    odd = [
        "",
        " ",
        "\t",
        "\r",
        "\v",
        '"',
        "\ufeff",
        "é",
        "\0",
        "+1",
        "0x1F",
        "nan",
        "1e999",
        "1.",
        "null",
        "\udcff",
        "\ra",
    ]
    good = {"rank": "7", "score": "-2.5e-3", "relevance": "1"}
    separator, made = draw.choice("\t" if layout.separator else " \t"), []
    for _ in range(draw.randint(1, 6)):
        cells = [good.get(name) or draw.choice(["q1", "0", "d-7"]) for name in layout.columns]
        if draw.random() < 0.1:
            cells[draw.randrange(len(cells))] = draw.choice(odd)
        line = separator.join(cells)
        made.append(line if draw.random() < 0.95 else draw.choice(["", "  ", line + separator, separator + line]))
    return ("\n".join(made) + draw.choice(["\n", "", "\n\n"])).encode("utf-8", "surrogateescape")


TOPICS = """<top>
<num> Number: 401
<title> foreign minorities, &amp; Germany

<desc> Description:
What language and cultural differences
impede the integration?

<narr> Narrative:
A relevant document
</top>

<top><num>051</num><title>Topic: trade</title></top>
"""
XML = """<?xml version="1.0"?>
<topics task="x">
<topic number="1" type="faceted"><query>obama family</query><question>who?</question></topic>
<topic number="02">
  free text
</topic>
</topics>"""


def test_topics_are_read_from_sgml_and_xml() -> None:
    assert read(written("a.topics", TOPICS)) == [
        {
            "query_id": "401",
            "query": "foreign minorities, & Germany",
            "description": "What language and cultural differences impede the integration?",
            "narrative": "A relevant document",
        },
        {"query_id": "051", "query": "trade", "description": None, "narrative": None},
    ]
    assert [list(row.values())[:3] for row in read(written("a.xml.gz", XML))] == [
        ["1", "obama family", "who?"],
        ["02", "free text", None],
    ]


# ---- which format it is


@pytest.mark.parametrize(
    ("line", "form", "names"),
    [
        ("7\thello there\n", "msmarco", ["id", "text"]),
        ("7\t8\t1\n", "msmarco", ["query_id", "document_id", "rank"]),
        ("7\t8\t0.5\n", "msmarco", ["query_id", "document_id", "score"]),
        ("7\t8\ta query\ta passage\n", "msmarco", ["query_id", "document_id", "query", "document"]),
        ("7\t\n", "msmarco", ["id", "text"]),
        ("7\t0\t8\t1\n", "msmarco", ["query_id", "document_id", "relevance"]),
        ("7 0 8 1\n", "tsv", ["7 0 8 1"]),
        ("query-id\tcorpus-id\tscore\n", "tsv", ["query-id", "corpus-id", "score"]),
        ("query\tdocument 2\n", "tsv", ["query", "document 2"]),
    ],
)
def test_a_tsv_is_told_by_its_first_line(line: str, form: str, names: list[str]) -> None:
    source = open_source([written("a.tsv", "\n" + line)])

    assert source.fingerprint()[0]["format"] == form
    assert source.column_names() == names


@pytest.mark.parametrize("line", ["7\ttext\t\n", "query\t7\n", "D7\t8\t1\n", "7\t8\tx\n", "1\t2\t3\t4\t5\n"])
def test_a_tsv_that_could_be_either_asks_for_the_format(line: str) -> None:
    with pytest.raises(InputError, match="line 1: has numbers where a header has names") as caught:
        open_source([written("a.tsv", line)])
    assert caught.value.hint == "pass --in-format tsv or msmarco"


@pytest.mark.parametrize("name", ["run.txt", "run.txt.gz", "run.jsonl", "run"])
def test_a_forced_format_reads_any_suffix(name: str) -> None:
    written(name, "q1 Q0 d1 1 2.5 tag\n")
    assert read(name, "trec-run")[0]["document_id"] == "d1"
    if "txt" in name:
        with pytest.raises(UsageError, match=r"cannot read run\.txt.*\(\.gz and \.zst too\)"):
            open_source([name])


def test_a_folder_is_of_one_format() -> None:
    written("in/pairs.csv", "query,document\na,b\n")
    written("in/notes.json", "{}")
    assert open_source(["in"]).files == ["in/pairs.csv"]
    written("in/qrels.tsv", "query-id\tcorpus-id\tscore\n")
    for path in ("in", "in/*sv"):
        with pytest.raises(InputError) as caught:
            open_source([path])
        expected = f"{path} has files of several formats: csv (in/pairs.csv), tsv (in/qrels.tsv)"
        assert caught.value.message == expected
    assert open_source(["in"], form="csv").files == ["in/pairs.csv"]
    assert sorted(open_source(["in"], form="trec-run").files) == ["in/notes.json", "in/pairs.csv", "in/qrels.tsv"]
    with pytest.raises(NotFoundError):
        open_source([str(Path("in/empty").mkdir() or "in/empty")], form="csv")


def test_a_saved_dataset_has_no_format_to_force() -> None:
    Path("saved").mkdir()
    Path("saved/state.json").write_text("{}")
    with pytest.raises(UsageError, match="--in-format csv: saved is a dataset"):
        open_source(["saved"], form="csv")


# ---- what is broken

BROKEN: list[tuple[str, bytes, str]] = [
    # CSV and TSV
    ("few.csv", b"a,b\n1\n2,3\n", "few.csv, line 2: has 1 field where the header has 2"),
    ("many.csv", b"a,b\n1,2,3\n", "many.csv, line 2: has 3 fields where the header has 2"),
    ("open.csv", b'a,b\n1,2\n3,"4\n5,6\n', "open.csv, line 3: a quote that opens in this row is never closed"),
    ("after.csv", b'a,b\n1,"2"3\n', "after.csv, line 2: has text between a closing quote and the end of its field"),
    ("latin.csv", b'a,b\n1,"x\ny\xe9"\n', "latin.csv, line 2: is not UTF-8"),
    ("nul.csv", b"a,b\n1,2\n\x00,2\n", "nul.csv, line 3: has a NUL byte: damaged, or not UTF-8"),
    ("utf16.csv", "a,b\n1,2\n".encode("utf-16"), "utf16.csv, line 1: the header has a NUL byte: damaged, or not UTF-8"),
    ("twice.csv", b"a,b,a\n", "twice.csv, line 1: two columns are called 'a'"),
    ("nameless.csv", b",a\n0,1\n", "nameless.csv, line 1: column 1 has no name"),
    ("blank.csv", b"\n\r\n\n", "blank.csv has only blank lines"),
    ("empty.csv", b"", "empty.csv is empty"),
    ("mac.csv", b"a,b\r1,2\r", "mac.csv, line 1: the header has a carriage return within a field that is not quoted"),
    ("tabs.csv", b"a\tb\n", "tabs.csv, line 1: the header is a single column, 'a\\tb', with '\\t' in it"),
    ("semicolons.csv", b"a;b\n", "semicolons.csv, line 1: the header is a single column, 'a;b', with ';' in it"),
    ("rows.tsv", b'a\tb\nx\t"y\nz\tw"\n', "rows.tsv, line 2: has whole rows within quotes"),
    ("cut.csv.gz", b"", "cut.csv.gz is empty"),
    # MS MARCO
    ("m.tsv", b"1\tx\n2\n", "m.tsv, line 2: has 1 field, not 2"),
    ("n.tsv", b"1\tx\n2\tx\ty\n", "n.tsv, line 2: has 3 fields, not 2"),
    ("o.tsv", b"1\t2\t3\n1\t2\tx\n", "o.tsv, line 2: rank 'x' is no whole number"),
    ("p.tsv", b"1\t0\t2\t1\n1\t0\t2\t0.5\n", "p.tsv, line 2: relevance '0.5' is no whole number"),
    ("q.tsv", b"1\tx\n2\t\xff\n", "q.tsv, line 2: is not UTF-8"),
    # TREC
    ("a.trec", b"1 Q0 d 1 2.5\n", "a.trec, line 1: has 5 fields, not 6"),
    ("b.trec", b"1 Q0 d 1 2.5 t\n\n1 Q0 d d 2 2.5 t\n", "b.trec, line 3: has 7 fields, not 6"),
    ("c.trec", b"1 Q0 d one 2.5 t\n", "c.trec, line 1: rank 'one' is no whole number"),
    ("d.trec", b"1 Q0 d 1 nan t\n", "d.trec, line 1: score 'nan' is no number"),
    ("e.trec", b"1 Q0 d 1 1e999 t\n", "e.trec, line 1: score '1e999' is no number"),
    ("f.trec", b"1 Q0 \xff 1 1 t\n", "f.trec, line 1: is not UTF-8"),
    ("a.qrels", b"1 0 d\n", "a.qrels, line 1: has 3 fields, not 4"),
    ("b.qrels", b"1 0 d 1.5\n", "b.qrels, line 1: relevance '1.5' is no whole number"),
    ("c.qrels", b"1 0 d 9999999999999999999\n", "c.qrels, line 1: relevance '9999999999999999999' is no whole number"),
    ("a.topics", b"<top>\n<num>1\n<title>x\n", "a.topics, line 1: <top> is never closed, or within another"),
    ("b.topics", b"\n<top>\n<top><num>1<title>x</top>", "b.topics, line 3: <top> is never closed, or within another"),
    ("c.topics", b"<top><title>x</title></top>", "c.topics, line 1: the topic has no number"),
    ("d.topics", b"\n<top><num>1</num></top>", "d.topics, line 2: the topic has no title"),
    ("e.topics", b"text\n", "e.topics has no topic, <top> or <topic>"),
    ("f.topics", b"<top><num>1<title>\xff</top>", "f.topics, line 1: is not UTF-8"),
    # JSON arrays
    ("a.json", b'[{"a": 1},\n {"a" 2}]', "a.json, line 2: not JSON: Expecting ':' delimiter (column 7)"),
    ("b.json", b'[{"a": 1},\n]', "b.json, line 2: not JSON: Expecting value (column 1)"),
    ("c.json", b'[{"a": 1}\n', "c.json, line 2: not JSON: Expecting ',' or ']' (column 1)"),
    ("d.json", b'[{"a": 1}] []', "d.json, line 1: not JSON: Extra data after the array (column 12)"),
    ("e.json", b'[{"a": 1}, [2]]', "e.json, row 1: holds a JSON array, not an object"),
    ("f.json", b'{"data": [{"a": 1}]}', "f.json holds a JSON object, not an array of objects"),
    ("g.json", b'"text"', "g.json holds a JSON string, not an array of objects"),
    ("h.json", b'[{"a": "\xff"}]', "h.json, line 1: not UTF-8 (byte 9)"),
    ("i.json", b'[{"a": 1}, {"a": "\\ud83c"}]', "i.json, row 1: half of a surrogate pair cannot be stored"),
    ("j.json", b'[{"a": ' + b"[" * 100_000, "j.json, row 0: not readable: maximum recursion depth exceeded"),
    ("k.json", b"[3]", "k.json, row 0: holds a JSON number, not an object"),
    ("l.json", b"{\n", "l.json, line 2: not JSON: Expecting property name enclosed in double quotes (column 1)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_what_is_broken_is_named_with_its_line(name: str, content: bytes, message: str) -> None:
    Path(name).write_bytes(content)
    assert said(name) == message or (name == "j.json" and said(name).startswith(message))


def test_a_quote_that_swallows_more_than_a_field_may_have_ends_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    before = csv.field_size_limit(1000)
    try:
        assert said(written("a.csv", 'a\n"' + "x\n" * 1000 + '"\n')).startswith(
            "a.csv, line 2: a field of more than 64 MB"
        )
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize("hint", ["jq .data f.json > rows.json", "what is read is an array of objects"])
def test_an_object_around_the_rows_is_not_guessed_at(hint: str) -> None:
    content = {"data": [{"query": "a"}], **({} if hint.startswith("jq") else {"more": []})}
    with pytest.raises(InputError) as caught:
        read(written("f.json", json.dumps(content, indent=1)))
    assert hint in str(caught.value.hint)


# ---- queries with their documents

RANK_LLM = [
    {
        "query": {"text": "a cat", "qid": 7},
        "candidates": [
            {"docid": "d1", "score": 2, "doc": {"title": "The", "text": "old dog"}},
            {"docid": 8, "score": 1.5, "doc": {"title": "The", "contents": "The river"}},
            {"docid": "d3", "doc": "a small animal"},
        ],
    },
    {"query": "light", "candidates": []},
]
HITS = {"query": "a cat", "hits": [{"content": "old dog", "qid": 7, "docid": "01", "rank": 1, "score": 2.5}]}


def documents(*values: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [dict(zip(("document_id", "title", "text", "score"), value, strict=True)) for value in values]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.txt"])
def test_requests_of_rank_llm(name: str) -> None:
    written(name, json.dumps(RANK_LLM) if name == "a.json" else json_lines(RANK_LLM))
    form: InFormat = "rank-llm" if name == "a.txt" else "auto"

    assert read(name, form, columns=["query_id", "query", "documents"]) == [
        {
            "query_id": "7",
            "query": "a cat",
            "documents": documents(
                ("d1", "The", "old dog", 2), ("8", None, "The river", 1.5), ("d3", None, "a small animal", None)
            ),
        },
        {"query_id": "light", "query": "light", "documents": []},
    ]


def test_hits_of_pyserini() -> None:
    path = written("a.jsonl", json_lines([HITS]))
    assert open_source([path]).fingerprint()[0]["format"] == "pyserini"
    (row,) = read(path)
    assert (row["query_id"], row["documents"]) == ("7", documents(("01", None, "old dog", 2.5)))


def batch_line(custom_id: Any, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/rerank", "body": body}


def test_requests_of_the_scoring_api() -> None:
    lines = [
        batch_line("r-1", model="m", query="a cat", documents=["old dog", {"text": "the river"}], top_n=1),
        batch_line("s-1", text_1="light", text_2=["water", "over"]),
        batch_line("s-2", queries=["light"], items="water"),
        batch_line(None, data_1="light", data_2=["water"]),
    ]
    path = written("a.jsonl", json_lines(lines))
    assert open_source([path]).fingerprint()[0]["format"] == "openai-batch"
    rows = [(row["query_id"], row["query"], [one["text"] for one in row["documents"]]) for row in read(path)]
    assert rows == [
        ("r-1", "a cat", ["old dog", "the river"]),
        ("s-1", "light", ["water", "over"]),
        ("s-2", "light", ["water"]),
        ("light", "light", ["water"]),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (batch_line("x", text_1=["a", "b"], text_2=["c", "d"]), "it has 2 queries"),
        (batch_line("x", model="m", input="embed this"), "its body has no documents"),
        ({**batch_line("x"), "body": "a query"}, "'body' is a JSON string, not an object"),
        (batch_line("x", query=3, documents=["a"]), "the text of 'query' is a JSON number"),
    ],
)
def test_requests_of_other_kinds_are_bad_rows(opened: Opened, line: dict[str, Any], message: str) -> None:
    good = batch_line("r-1", query="a cat", documents=["old dog"])
    source = opened(written("a.jsonl", json_lines([good, good, line])))
    (unit,) = source.units(9)
    faults = source.read(unit, ["query", "documents"], {}).faults()
    assert [(number, fault.message) for number, fault in faults.items()] == [(2, message)]


OLD_MTEB = [
    {"query": "a", "positive": ["p"], "negative": ["n", "m"]},
    {"query": "b", "positive": [], "negative": ["n"]},
    {"query": "c", "positive": ["p", "r"], "negative": ["n"]},
]


@pytest.mark.parametrize("kind", ["test.jsonl", "test.json", "test-00000-of-00001.parquet", "saved"])
def test_rows_of_old_mteb_have_its_ids(kind: str) -> None:
    if kind == "saved":
        datasets = pytest.importorskip("datasets")
        datasets.DatasetDict({"test": datasets.Dataset.from_list(OLD_MTEB)}).save_to_disk("saved")
    elif kind.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(OLD_MTEB), kind)
    else:
        written(kind, json.dumps(OLD_MTEB) if kind.endswith("json") else json_lines(OLD_MTEB))
    first, left_out, last = read(kind, rows=2, columns=["query_id", "documents"])

    assert first["query_id"] == "test_query0"
    assert [list(one.values()) for one in first["documents"]] == [
        ["apositive_test_query0_00000", "p", 1],
        ["negative_test_query0_00000", "n", 0],
        ["negative_test_query0_00001", "m", 0],
    ]
    assert left_out == {"query_id": None, "documents": None}
    assert [one["document_id"] for one in last["documents"]] == [
        f"{kind}_test_query1_0000{number}" for kind, number in (("apositive", 0), ("apositive", 1), ("negative", 0))
    ]


def test_documents_of_a_first_stage_keep_their_order() -> None:
    row = {"qid": "01", "query": "a", "positive": ["p", "unseen"], "documents": ["n", "p"]}
    (read_row,) = read(written("a.jsonl", json_lines([row])))
    assert [list(one.values()) for one in read_row["documents"]] == [
        ["negative_01_00000", "n", 0],
        ["apositive_01_00000", "p", 1],
    ]


def test_two_files_of_one_split_do_not_share_ids(opened: Opened) -> None:
    for folder in ("en", "de"):
        written(f"{folder}/test.jsonl", json_lines(OLD_MTEB[:1]))
    source = opened("en", "de")
    ids = [source.read(unit, ["query_id"], {}).table["query_id"].to_pylist() for unit in source.units(1)]
    assert ids == [["en/test.jsonl_query0"], ["de/test.jsonl_query0"]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "a"}, "'candidates' is missing, not a list"),
        ({"query": "a", "candidates": {}}, "'candidates' is a JSON object, not a list"),
        ({"query": 3, "candidates": []}, "the text of 'query' is a JSON number"),
        ({"query": {"qid": 1}, "candidates": []}, "the text of 'query' is missing"),
        ({"query": {"text": "a", "qid": [1]}, "candidates": []}, "an id is a JSON array"),
        ({"query": "a", "candidates": [{"docid": True, "doc": "x"}]}, "an id is a JSON boolean"),
    ],
)
def test_a_row_that_is_not_in_the_dialect_is_a_bad_row(opened: Opened, row: dict[str, Any], message: str) -> None:
    source = opened(written("a.jsonl", json_lines([*RANK_LLM, row])))
    (unit,) = source.units(9)
    chunk = source.read(unit, ["query_id", "query", "documents"], {})
    assert [(number, fault.message) for number, fault in chunk.faults().items()] == [(2, message)]
    assert chunk.table.to_pylist()[2] == {"query_id": None, "query": None, "documents": None}


@pytest.mark.parametrize("lines", ["no JSON\n[1]\n", '{"n": 1}\n{}\n'])
def test_a_unit_may_be_all_bad_rows(opened: Opened, lines: str) -> None:
    source = opened(written("a.jsonl", json_lines(RANK_LLM) + lines))
    first, second = (source.read(unit, ["query", "documents"], {}) for unit in source.units(2))
    assert (len(first.faults()), len(second.faults())) == (0, 2)
    assert second.table.to_pylist() == [{"query": None, "documents": None}] * 2


def test_rows_that_have_a_document_are_no_requests() -> None:
    rows = [{"query": "a", "document": "b", "positive": ["p"], "negative": []}]
    assert read(written("a.jsonl", json_lines(rows))) == rows


def test_hits_of_several_queries_are_a_bad_row() -> None:
    row = {"query": "a", "hits": [{"content": "x", "qid": 1}, {"content": "y", "qid": 2}]}
    path = written("a.jsonl", json_lines([row]))
    with closing(open_source([path])) as source:
        (unit,) = source.units(1)
        (fault,) = source.read(unit, ["documents"], {}).faults().values()
    assert fault.message == "its hits are of several queries: 1, 2"


def test_rows_are_left_as_they_are_if_their_format_is_forced() -> None:
    path = written("a.jsonl", json_lines(OLD_MTEB))
    assert open_source([path], form="jsonl").column_names() == ["query", "positive", "negative"]
    assert read(path)[0]["positive"] == ["p"]  # beside what they are read as


# ---- jobs


def run(tiny: Tiny, command: str, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [command, "--model", tiny("bert_ce"), "--dtype", "float32", *arguments])
    assert result.exit_code == code, result.output
    return result


PAIRS = [
    {"id": f"0{number}", "query": f"q, {number // 4}", "document": f'the "old"\ncat {number}\n'} for number in range(40)
]


def test_a_csv_is_scored_like_its_rows_and_shards_are_the_whole(tiny: Tiny) -> None:
    written("in.csv", delimited(PAIRS, ","))
    written("in.csv.gz", delimited(PAIRS, ","))
    written("in.jsonl", json_lines(PAIRS))
    for name in ("in.csv", "in.csv.gz", "in.jsonl"):
        result = run(tiny, "score", "--in", name, "--out", f"{name}.parquet", "--unit-rows", "7")
        assert ("input    1 file (csv), 40 rows in 6 units" in result.stderr) == ("csv" in name)
    assert pq.read_table("in.csv.parquet").to_pylist() == pq.read_table("in.jsonl.parquet").to_pylist()
    assert Path("in.csv.parquet").read_bytes() == Path("in.csv.gz.parquet").read_bytes()

    for shard in ("1/2", "0/2"):
        run(tiny, "score", "--in", "in.csv", "--out", "parts/", "--unit-rows", "7", "--shard", shard)
    CliRunner().invoke(app, ["merge", "parts/", "--out", "merged.parquet"])
    assert Path("merged.parquet").read_bytes() == Path("in.csv.parquet").read_bytes()


def test_a_job_of_one_format_is_not_resumed_in_another(tiny: Tiny) -> None:
    written("in.tsv", "1\tthe cat\ta dog\n")
    written("in.tsv", "query\tdocument\na\tb\n")
    run(tiny, "score", "--in", "in.tsv", "--out", "o.parquet")
    result = run(
        tiny, "score", "--in", "in.tsv", "--out", "o.parquet", "--in-format", "csv", "--query-column", "x", code=5
    )
    assert "with '\\t' in it" in result.stderr
    result = run(
        tiny,
        "score",
        "--in",
        "in.tsv",
        "--out",
        "o.parquet",
        "--in-format",
        "msmarco",
        "--query-column",
        "id",
        "--document-column",
        "text",
        code=8,
    )
    assert "o.parquet already exists and is another job's" in result.stderr


def test_requests_are_ranked_like_plain_rows(tiny: Tiny) -> None:
    plain = {
        "query_id": "7",
        "query": "a cat",
        "documents": [
            {"id": "d1", "text": "The old dog"},
            {"id": "8", "text": "The river"},
            {"id": "d3", "text": "a small animal"},
        ],
    }
    written("plain.jsonl", json_lines([plain]))
    written("requests.json", json.dumps(RANK_LLM, indent=2))
    for name in ("plain.jsonl", "requests.json"):
        rerank_files(tiny("bert_ce"), name, f"{name}.parquet", dtype="float32")

    assert pq.read_table("requests.json.parquet").to_pylist() == pq.read_table("plain.jsonl.parquet").to_pylist()


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (
            ["query_id", "query", "docid", "title", "text"],
            "query ids in query_id, documents in text, document ids in docid",
        ),
        (["qid", "query", "docno", "passage"], "query ids in qid, documents in passage, document ids in docno"),
        (["query", "document_id", "document"], None),
    ],
)
def test_usual_names_of_columns_are_found_and_told(tiny: Tiny, names: list[str], line: str | None) -> None:
    rows = [
        {name: f"the {name} {number}" if name not in ("query", "qid", "query_id") else "1" for name in names}
        for number in range(3)
    ]
    written("in.jsonl", json_lines(rows))
    result = run(tiny, "rerank", "--in", "in.jsonl", "--out", "out.jsonl")

    assert [text for text in result.stderr.splitlines() if text.startswith("columns")] == (
        [f"columns  {line}"] if line else []
    )
    ranked = [json.loads(text) for text in Path("out.jsonl").read_text("utf-8").splitlines()]
    (ids,) = {"docid", "docno", "document_id"} & set(names)
    assert sorted(row["document_id"] for row in ranked) == [row[ids] for row in rows]
    assert next(iter(ranked[0])) == names[0]


def test_lists_are_not_for_score(tiny: Tiny) -> None:
    result = run(tiny, "score", "--in", written("a.jsonl", json_lines(RANK_LLM)), "--out", "o.parquet", code=5)
    assert "each row lists documents, and score takes one document a row\nhint: rank" in result.stderr


def test_a_corpus_in_any_format_is_told_what_it_is_for(tiny: Tiny) -> None:
    result = run(tiny, "rerank", "--in", written("collection.tsv", "7\ta passage\n"), "--out", "o.parquet", code=5)
    assert "hint: pass --queries and --corpus with --run, --qrels or --all-pairs" in result.stderr


def test_queries_and_passages_are_encoded(tiny: Tiny) -> None:
    written("queries.tsv", "007\tthe cat\n8\ta dog\n")
    arguments = ["encode", "--model", tiny("bert_mean"), "--dtype", "float32", "--side", "query"]
    result = CliRunner().invoke(app, [*arguments, "--in", "queries.tsv", "--out", "v.parquet"])
    assert result.exit_code == 0, result.output
    assert pq.read_table("v.parquet")["id"].to_pylist() == ["007", "8"]
