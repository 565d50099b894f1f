"""Parts become one output: rows in input order, and rankings as if all documents had been ranked at once."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchscore.engine.ranking import rank_rows
from batchscore.errors import RuntimeFailureError
from batchscore.io.storage import LocalFolder, writer_id
from batchscore.io.units import Span, Unit
from batchscore.jobs import rankings as merge
from batchscore.jobs.parts import Division, Parts, start_parts
from batchscore.jobs.rankings import merge_rankings, merge_rows
from batchscore.jobs.results import candidates, encode_ids
from batchscore.types import Cells

Row = dict[str, Any]  # query, score, rank_by, id, text; a score of None is at fault, a text of None no document at all

RESULT = ["index", "document_id", "rank", "relevance_score", "document"]


def make_parts(folder: Path, tables: Sequence[pa.Table]) -> Parts:
    units = [Unit(number, (Span(0, 0, 1, 1, 0),)) for number in range(len(tables))]
    parts = start_parts(LocalFolder(str(folder)), {"of": "test"}, lambda: Division(units), overwrite=True)
    for unit, table in zip(units, tables, strict=True):
        found = table["results"].combine_chunks() if "results" in table.column_names else []
        ranked = len(found.flatten()) if len(found) else 0
        parts.write(unit, table, {"ranked": ranked}, [])
    return parts


def part_of(
    rows: Sequence[Row], top_n: int = 0, *, ids: bool = True, texts: bool = True, keep: bool = False
) -> pa.Table:
    """What a unit of these rows leaves: its best documents of each query, numbered among those in this part."""
    groups, queries = encode_ids(pa.chunked_array([[row["query"] for row in rows]]), "the query")
    documents = [row for row in rows if row["text"] is not None]
    groups = groups[[row["text"] is not None for row in rows]]
    counts = np.bincount(groups, minlength=len(queries))
    index = np.array([int((groups[:place] == group).sum()) for place, group in enumerate(groups)], np.int32)
    score = np.array([np.nan if row["score"] is None else row["score"] for row in documents], np.float32)
    rank_by = np.array([-np.inf if row["score"] is None else row["rank_by"] for row in documents], np.float32)
    listed = np.arange(len(documents)) if keep else np.flatnonzero(np.isfinite(rank_by))
    order, _ = rank_rows(groups[listed], index[listed], rank_by[listed], top_n)
    kept = listed[order]
    values = {"index": index[kept], "relevance_score": score[kept], "rank_by": rank_by[kept]}
    carried = {"document_id": pa.array([row["id"] for row in documents])} if ids else {}
    found = Cells.of([row["text"] for row in documents]) if texts else None
    return candidates(pa.table({"query": queries}), counts, groups[kept], values, carried, found, kept)


def ranked_by_hand(rows: Sequence[Row], top_n: int, *, keep: bool) -> list[tuple[Any, list[Row]]]:
    """(query, results) in the order of first appearance, in plain Python."""
    documents: dict[Any, list[Row]] = {}
    for row in rows:
        mine = documents.setdefault(row["query"], [])
        if row["text"] is not None:
            mine.append({**row, "index": len(mine)})
    ranked = []
    for query, found in documents.items():
        listed = [row for row in found if keep or row["score"] is not None]
        listed.sort(
            key=lambda row: (row["score"] is None, 0 if row["score"] is None else -row["rank_by"], row["index"])
        )
        results = [
            {
                "index": row["index"],
                "document_id": row["id"],
                "rank": rank,
                "relevance_score": row["score"],
                "document": row["text"],
            }
            for rank, row in enumerate(listed[: top_n or None], start=1)
        ]
        ranked.append((query, results))
    return ranked


def scattered(seed: int, kind: str) -> tuple[list[Row], list[list[Row]]]:
    """Random rows of few queries with many ties, and how they are cut into units."""
    draw = random.Random(seed)
    make: Any = {"str": lambda n: f"é{n}", "int": lambda n: n * 7 - 20, "null": lambda n: None}[kind]
    queries = [f"q{n}" if seed % 2 else 2**40 + n for n in range(draw.randint(1, 9))]
    rows = []
    for number in range(draw.randint(1, 70)):
        logit = float(draw.randint(-2, 2))
        state = draw.random()
        rows.append(
            {
                "query": draw.choice(queries),
                "score": None if state < 0.1 else min(1.0, logit / 2),  # saturates where the logit does not
                "rank_by": logit,
                "id": None if draw.random() < 0.2 else make(number % 11),
                "text": None if state > 0.9 else f"d{number % 13}",
            }
        )
    stops = [0, *sorted(draw.randint(0, len(rows)) for _ in range(draw.randint(0, 6))), len(rows)]
    return rows, [rows[start:stop] for start, stop in pairwise(stops)]


def merged(parts: Parts, folder: Path, top_n: int = 0, *, nested: bool = False, pile: int = 10**6) -> pa.Table:
    units = range(len(parts.units))
    rank = partial(rank_rows, top_n=top_n)
    folder.mkdir(exist_ok=True)
    found = list(merge_rankings(parts, units, rank, nested=nested, scratch=str(folder), documents_a_pile=pile))
    assert os.listdir(folder) == []
    assert found
    return pa.concat_tables(found)  # of one schema, or else this fails


def flat(ranked: Sequence[tuple[Any, list[Row]]]) -> list[Row]:
    return [{"query": query, **result} for query, results in ranked for result in results]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["str", "int", "null"])
@pytest.mark.parametrize("keep", [False, True])
def test_merged_parts_are_ranked_as_if_at_once(tmp_path: Path, seed: int, kind: str, keep: bool) -> None:
    rows, units = scattered(100 * seed + len(kind), kind)
    for top_n in (0, 1, 3):
        parts = make_parts(tmp_path / "job", [part_of(unit, top_n, keep=keep) for unit in units])
        expected = ranked_by_hand(rows, top_n, keep=keep)
        one = [merged(parts, tmp_path / "scratch", top_n, nested=nested) for nested in (False, True)]
        assert one[0].to_pylist() == flat(expected)
        assert one[1].to_pylist() == [{"query": query, "results": results} for query, results in expected]
        assert one[0].column_names == ["query", *RESULT]
        assert [one[0].schema.field(name).type for name in ("index", "rank", "relevance_score", "document")] == [
            pa.int32(),
            pa.int32(),
            pa.float32(),
            pa.large_string(),
        ]
        for pile in (2, 9):
            many = [merged(parts, tmp_path / "scratch", top_n, nested=nested, pile=pile) for nested in (False, True)]
            assert [table.combine_chunks() for table in many] == [table.combine_chunks() for table in one]


def documents(query: Any, *scores: float, ids: Sequence[Any] | None = None) -> list[Row]:
    texts = [f"{query}-{place}" for place in range(len(scores))]
    return [
        {"query": query, "score": score, "rank_by": score, "id": ids[place] if ids else None, "text": texts[place]}
        for place, score in enumerate(scores)
    ]


def no_documents(query: Any) -> list[Row]:
    return [{"query": query, "score": None, "rank_by": None, "id": None, "text": None}]


@pytest.mark.parametrize("pile", [1, 3, 100])
def test_an_index_counts_a_querys_documents_in_the_whole_input(tmp_path: Path, pile: int) -> None:
    units = [documents("a", 0.5, 0.25) + documents("b", 1.0), documents("b", 2.0), documents("a", 0.75, 0.5)]
    parts = make_parts(tmp_path / "job", [part_of(unit, 2) for unit in units])
    table = merged(parts, tmp_path / "scratch", 3, pile=pile)
    assert table.select(["query", "index", "rank", "relevance_score"]).to_pydict() == {
        "query": ["a", "a", "a", "b", "b"],
        "index": [2, 0, 3, 1, 0],  # equal scores in input order
        "rank": [1, 2, 3, 1, 2],
        "relevance_score": [0.75, 0.5, 0.5, 2.0, 1.0],
    }


def test_documents_at_fault_are_counted_by_those_behind_them(tmp_path: Path) -> None:
    first = documents("a", 0.5, 0.25)
    first[0]["score"] = None
    parts = make_parts(tmp_path / "job", [part_of(first), part_of(documents("a", 1.0))])
    assert merged(parts, tmp_path / "scratch")["index"].to_pylist() == [2, 1]


@pytest.mark.parametrize("pile", [1, 100])
def test_a_query_without_documents_is_there_where_rankings_are_nested(tmp_path: Path, pile: int) -> None:
    units = [no_documents("z") + no_documents("a"), documents("a", 0.5, 0.25), no_documents("a") + no_documents("y")]
    parts = make_parts(tmp_path / "job", [part_of(unit) for unit in units])
    nested = merged(parts, tmp_path / "scratch", nested=True, pile=pile).to_pylist()
    assert [(row["query"], [result["index"] for result in row["results"]]) for row in nested] == [
        ("z", []),
        ("a", [0, 1]),
        ("y", []),
    ]
    assert merged(parts, tmp_path / "scratch", pile=pile)["query"].to_pylist() == ["a", "a"]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("rows", [[], no_documents("a")])
def test_no_documents_at_all_are_a_table_with_its_columns(tmp_path: Path, rows: list[Row], nested: bool) -> None:
    parts = make_parts(tmp_path / "job", [part_of(rows), part_of(rows, ids=True)])
    table = merged(parts, tmp_path / "scratch", nested=nested)
    assert table.column_names == (["query", "results"] if nested else ["query", *RESULT])
    assert len(table) == (len(rows) if nested else 0)


@pytest.mark.parametrize("pile", [1, 100])
def test_columns_that_are_not_wanted_are_not_there(tmp_path: Path, pile: int) -> None:
    rows = documents("a", 0.5, 0.25)
    for ids, texts in ((True, False), (False, True), (False, False)):
        parts = make_parts(tmp_path / "job", [part_of(rows, ids=ids, texts=texts)] * 2)
        expected = [name for name in RESULT if (ids or name != "document_id") and (texts or name != "document")]
        assert merged(parts, tmp_path / "scratch", pile=pile).column_names == ["query", *expected]


@pytest.mark.parametrize("pile", [1, 100])
def test_parts_of_different_types_are_ranked_together(tmp_path: Path, pile: int) -> None:
    units = [
        documents(1, 0.5, ids=[7]),
        documents(1.0, 0.75, ids=[None]),
        no_documents(2.5),
        documents(2, 0.1, ids=[8]),
    ]
    parts = make_parts(tmp_path / "job", [part_of(unit) for unit in units])
    table = merged(parts, tmp_path / "scratch", nested=True, pile=pile)
    assert table["query"].to_pylist() == [1.0, 2.5, 2.0]
    assert [[result["document_id"] for result in results] for results in table["results"].to_pylist()] == [
        [None, 7],
        [],
        [8],
    ]


@pytest.mark.parametrize("pile", [1, 100])
def test_an_id_that_only_some_parts_have_is_null_in_the_others(tmp_path: Path, pile: int) -> None:
    tables = [part_of(documents("a", 0.5), ids=False), part_of(documents("a", 0.75, ids=["x"]))]
    parts = make_parts(tmp_path / "job", tables)
    assert merged(parts, tmp_path / "scratch", pile=pile)["document_id"].to_pylist() == ["x", None]


@pytest.mark.parametrize("pile", [1, 100])
def test_ids_whose_types_do_not_go_together_become_text(tmp_path: Path, pile: int) -> None:
    units = [documents("a", 0.5, ids=["x"]), documents(1, 0.5, ids=[7]), documents("1", 0.75, ids=[None])]
    parts = make_parts(tmp_path / "job", [part_of(unit) for unit in units])
    table = merged(parts, tmp_path / "scratch", pile=pile)
    assert table["query"].to_pylist() == ["a", "1", "1"]
    assert table["document_id"].to_pylist() == ["x", None, "7"]


@pytest.mark.parametrize("pile", [3, 100])
def test_tables_are_of_bounded_rows(tmp_path: Path, pile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "_ROWS_A_TABLE", 64)
    rows = [row for query in range(5) for row in documents(query, *np.linspace(1, 0, 40))]
    parts = make_parts(tmp_path / "job", [part_of(rows)])
    for nested, most in ((False, 64), (True, 1)):
        tables = list(
            merge_rankings(parts, [0], rank_rows, nested=nested, scratch=str(tmp_path), documents_a_pile=pile)
        )
        assert max(map(len, tables)) <= most
        assert sum(map(len, tables)) == (5 if nested else 200)


@pytest.mark.parametrize("how", ["closed", "damaged"])
def test_nothing_is_left_of_a_merge_that_was_not_finished(tmp_path: Path, how: str) -> None:
    parts = make_parts(tmp_path / "job", [part_of(documents(query, 0.5, 0.25)) for query in "abcdef"])
    (tmp_path / "scratch").mkdir()
    tables = merge_rankings(
        parts, range(6), rank_rows, nested=False, scratch=str(tmp_path / "scratch"), documents_a_pile=2
    )
    if how == "closed":
        next(tables)
        assert len(os.listdir(tmp_path / "scratch")) == 2
        tables.close()
    else:
        content = bytearray((tmp_path / "job" / "part-00004.parquet").read_bytes())
        content[4:40] = bytes(36)
        (tmp_path / "job" / "part-00004.parquet").write_bytes(content)
        with pytest.raises(RuntimeFailureError, match="part-00004.parquet was damaged and has been removed"):
            list(tables)
        assert parts.finished() == {0, 1, 2, 3, 5}
    assert os.listdir(tmp_path / "scratch") == []


def test_piles_of_a_merge_that_was_killed_go_with_the_next(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    machine = writer_id().rpartition("-")[0]
    owners = [f"{machine}-{dead.pid}", f"{machine}-{os.getppid()}", f"elsewhere-{dead.pid}"]
    for owner in owners:
        (tmp_path / "scratch" / f".batchscore-merge-{owner}-x1y2z3_w" / "0").mkdir(parents=True)
    parts = make_parts(tmp_path / "job", [part_of(documents(query, 0.5, 0.25)) for query in "abcdef"])
    scratch = str(tmp_path / "scratch")
    list(merge_rankings(parts, range(6), rank_rows, nested=False, scratch=scratch, documents_a_pile=2))
    assert sorted(os.listdir(scratch)) == sorted(f".batchscore-merge-{owner}-x1y2z3_w" for owner in owners[1:])


def test_only_the_given_parts_are_merged(tmp_path: Path) -> None:
    parts = make_parts(tmp_path / "job", [part_of(documents("a", score)) for score in (0.5, 0.75, 0.25)])
    found = list(merge_rankings(parts, [0, 2], rank_rows, nested=False, scratch=str(tmp_path)))
    assert [table.select(["index", "relevance_score"]).to_pylist() for table in found] == [
        [{"index": 0, "relevance_score": 0.5}, {"index": 1, "relevance_score": 0.25}]
    ]


def test_rows_are_merged_in_the_order_of_their_units(tmp_path: Path) -> None:
    tables = [pa.table({"n": [number, number]}) for number in range(4)]
    parts = make_parts(tmp_path, tables)
    assert [table["n"].to_pylist() for table in merge_rows(parts, [0, 2, 3])] == [[0, 0], [2, 2], [3, 3]]


def test_memory_is_that_of_a_pile_and_not_of_all_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    units, size = 16, 4000
    tables = []
    for number in range(units):
        groups = np.sort((500 * draw.random(size) ** 0.05).astype(int))  # half of them of a few queries
        queries, groups = np.unique(groups, return_inverse=True)
        score = draw.random(size, np.float32)
        values = {"index": np.arange(size, dtype=np.int32), "relevance_score": score, "rank_by": score}
        texts = Cells.of([f"{number} {place:0>300}" for place in range(size)])
        counts = np.bincount(groups)
        tables.append(candidates(pa.table({"query": queries}), counts, groups, values, {}, texts, np.arange(size)))
    parts = make_parts(tmp_path / "job", tables)
    assert sum(table.nbytes for table in tables) > 19_000_000
    del tables
    held = {}
    for pile, size_of_pile in ((2000, 2**40), (10**6, 600_000), (10**7, 2**40)):
        monkeypatch.setattr(merge, "_BYTES_A_PILE", size_of_pile)
        before, held[pile], rows = pa.total_allocated_bytes(), 0, 0
        for table in merge_rankings(
            parts, range(units), rank_rows, nested=True, scratch=str(tmp_path), documents_a_pile=pile
        ):
            rows += sum(map(len, table["results"]))
            held[pile] = max(held[pile], pa.total_allocated_bytes() - before)
        assert rows == units * size
    assert held[2000] < 4_000_000 < 19_000_000 < held[10**7]
    assert held[10**6] < 4_000_000
