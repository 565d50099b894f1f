"""`batchscore store`: what it says, what it removes, and what it notices."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from batchscore.cli.main import app
from batchscore.io.digests import digests_of
from batchscore.io.store import open_shelf
from batchscore.scorer import Scorer
from batchscore.types import Cells, Encodings, Pairs, Side
from checkpoints import pairs

Tiny = Callable[[str], str]
QUERIES, DOCUMENTS = pairs(12, seed=3)
FLOAT32 = {"dtype": "float32"}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["store", *arguments])


def made_up(count: int, dim: int = 4) -> Encodings:
    values = np.arange(count * dim, dtype=np.float32).reshape(count, dim)
    return Encodings(values, np.arange(count + 1), np.full(count, 3, np.int32), np.zeros(count, np.uint8))


def add(store: Path, model: str, texts: list[str], encodings: Encodings, side: str = "document", **scorer: Any) -> None:
    """Add texts, all of which are samples."""
    about = {"model": model, "side": side, "scorer": scorer}
    shelf = open_shelf(str(store), {"model": model, "side": side}, about)
    shelf.add(digests_of(texts), encodings, dict(enumerate(texts)))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two models; what the first has is 40 days old."""
    add(tmp_path / "store", "org/old", ["a", "b", "c"], made_up(3))
    for path in tmp_path.glob("store/*/*.safetensors"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    add(tmp_path / "store", "org/new", ["a", "b"], made_up(2), "query")
    return tmp_path / "store"


def texts(store: Path) -> dict[str, int]:
    found = json.loads(run("stats", str(store), "--json").stdout)
    return {shelf["model"]: shelf["texts"] for shelf in found["shelves"]}


# ---- stats


def test_stats_shows_models_sides_texts_and_ages(store: Path) -> None:
    result = run("stats", str(store))
    lines = [line.split() for line in result.stdout.splitlines()]

    assert result.exit_code == 0
    assert lines[0] == ["model", "side", "texts", "size", "segments", "oldest", "newest"]
    assert (lines[1][:3], lines[2][:3]) == (["org/new", "query", "2"], ["org/old", "document", "3"])
    assert lines[2][-3:] == ["1", "2023-11-14", "2023-11-14"]
    assert result.stdout.splitlines()[-1].startswith("5 texts, 1.")


def test_stats_names_damaged_files(store: Path) -> None:
    (path,) = (path for path in store.glob("*/*.safetensors") if path.stat().st_mtime == 1_700_000_000)
    path.write_bytes(b"")

    assert f"damaged  {path}: it is damaged: it ends early" in run("stats", str(store)).stdout
    assert texts(store) == {"org/new": 2, "org/old": 0}


@pytest.mark.parametrize("command", ["stats", "prune", "verify"])
def test_a_store_that_is_not_there_or_not_on_a_disk_is_refused(tmp_path: Path, command: str) -> None:
    missing = run(command, str(tmp_path / "no"))
    remote = run(command, "s3://bucket/store")

    assert (missing.exit_code, remote.exit_code) == (4, 2)
    assert "no: No such file or directory" in missing.output
    assert "s3://bucket/store cannot be a store" in remote.output


def test_an_empty_folder_is_an_empty_store(tmp_path: Path) -> None:
    assert run("stats", str(tmp_path)).stdout == f"0 texts, 0 bytes in {tmp_path}\n"
    assert run("verify", str(tmp_path)).stdout == f"verified: 0 texts, 0 bytes in {tmp_path}\n"


# ---- prune


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ([], {"org/new": 2, "org/old": 3}),
        (["--model", "org/new"], {"org/new": 0, "org/old": 3}),
        (["--older-than", "30d"], {"org/new": 2, "org/old": 0}),
        (["--older-than", "1w", "--model", "org/new"], {"org/new": 2, "org/old": 3}),
        (["--max-size", "1kB"], {"org/new": 2, "org/old": 0}),
        (["--max-size", "1 GiB"], {"org/new": 2, "org/old": 3}),
        (["--max-size", "0"], {"org/new": 0, "org/old": 0}),
    ],
    ids=" ".join,
)
def test_prune_removes_by_model_age_and_size(store: Path, options: list[str], left: dict[str, int]) -> None:
    before = sorted(store.rglob("*"))
    would = run("prune", str(store), *options, "--dry-run")
    assert sorted(store.rglob("*")) == before
    done = run("prune", str(store), *options)

    assert (would.exit_code, done.exit_code) == (0, 0)
    assert done.stdout.splitlines()[-1].startswith(f"{5 - sum(left.values())} texts, ")
    assert would.stdout.replace("would be removed", "removed") == done.stdout
    assert texts(store) == left


def test_prune_says_in_json_what_it_removed(store: Path) -> None:
    found = json.loads(run("prune", str(store), "--older-than", "30d", "--json").stdout)

    (removed,) = found["removed"]
    assert (removed["model"], removed["texts"], removed["segments"]) == ("org/old", 3, 1)
    assert found["dry_run"] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--older-than", "30"], "--older-than '30': must be minutes, hours, days or weeks"),
        (["--older-than", "-1d"], "--older-than '-1d': must be minutes"),
        (["--max-size", "10 apples"], "--max-size '10 apples': must be a size such as 500MB, 10GB"),
        (["--max-size", "-1"], "--max-size '-1': must be a size"),
        (["--max-size", "10iB"], "--max-size '10iB': must be a size"),
    ],
)
def test_what_is_no_age_or_size_is_refused(store: Path, options: list[str], message: str) -> None:
    result = run("prune", str(store), *options)

    assert result.exit_code == 2
    assert message in result.output
    assert texts(store) == {"org/new": 2, "org/old": 3}


def test_a_model_that_is_not_there_is_not_found(store: Path) -> None:
    result = run("prune", str(store), "--model", "org/ol")

    assert result.exit_code == 4
    assert "has nothing of the model 'org/ol'" in result.output
    assert "it has org/new, org/old" in result.output


# ---- verify


def encoded(model: str, side: Side, some: list[str]) -> Encodings:
    with closing(Scorer(model, dtype="float32")) as scorer:
        return scorer.batcher.encode(scorer.batcher.lay_out(some, side), side)


def some_texts(side: Side) -> list[str]:
    return list(dict.fromkeys(QUERIES if side == "query" else DOCUMENTS))


@pytest.mark.parametrize(("name", "side"), [("bert_mean", "document"), ("bert_tokens", "query")])
def test_verify_encodes_texts_again(tiny: Tiny, tmp_path: Path, name: str, side: Side) -> None:
    some, model = some_texts(side), tiny(name)
    add(tmp_path, model, some, encoded(model, side, some), side, device="cuda:7", **FLOAT32)  # another machine's
    result = run("verify", str(tmp_path), "--json")
    (shelf,) = json.loads(result.stdout)["shelves"]

    assert result.exit_code == 0
    assert (shelf["encoded_again"], shelf["beyond_tolerance"]) == (4, 0)
    assert shelf["largest_difference"] < 1e-5
    assert run("verify", str(tmp_path), "--sample", "0").stdout.splitlines()[0].endswith("none encoded again")


def test_verify_scores_pairs_again(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny("bert_ce")
    with closing(Scorer(model, dtype="float32")) as scorer:
        work = scorer.batcher.tokenize(Pairs(Cells.of(QUERIES), Cells.of(DOCUMENTS)))
        raw = scorer.batcher.score(work).raw
    encodings = Encodings(raw, np.arange(len(raw) + 1), work.row_tokens(), work.cut)
    shelf = open_shelf(str(tmp_path), {}, {"model": model, "side": "pair", "scorer": FLOAT32})
    samples = dict(enumerate(zip(QUERIES, DOCUMENTS, strict=True)))
    shelf.add(digests_of(["\0".join(pair) for pair in samples.values()]), encodings, samples)

    result = run("verify", str(tmp_path))
    assert (result.exit_code, result.stdout.count("4 encoded again, largest difference")) == (0, 1)


def test_verify_allows_for_the_rounding_of_what_is_kept(tiny: Tiny, tmp_path: Path) -> None:
    some, model = some_texts("document"), tiny("bert_mean")
    made = encoded(model, "document", some)
    bits = (made.values.view(np.uint32) >> 16).astype(np.uint16)  # bfloat16, rounded down
    add(tmp_path, model, some, replace(made, values=bits), **FLOAT32)
    result = run("verify", str(tmp_path))

    assert result.exit_code == 0
    assert "4 encoded again, largest difference" in result.output


def test_verify_notices_a_model_that_encodes_differently(tiny: Tiny, tmp_path: Path) -> None:
    some, model = some_texts("document"), tiny("bert_mean")
    made = encoded(model, "document", some)
    add(tmp_path, model, some, replace(made, values=made.values * np.float32(1.001)), **FLOAT32)
    result = run("verify", str(tmp_path))

    assert result.exit_code == 9
    assert "4 of 4 texts are encoded differently by now, by up to 1.0e-03; the tolerance is 0.0001" in result.output


def test_verify_notices_a_changed_byte(store: Path) -> None:
    path = next(store.glob("*/*.safetensors"))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = run("verify", str(store), "--sample", "0")

    assert result.exit_code == 9
    assert f"damaged  {path}: it is damaged: its content is not what was written" in result.output
    assert f"error: {path} is damaged" in result.output


def test_verify_says_when_there_is_no_model_to_encode_with(tmp_path: Path) -> None:
    add(tmp_path, str(tmp_path / "gone"), ["a", "b"], made_up(2))
    result = run("verify", str(tmp_path))

    assert result.exit_code == 0
    assert "none encoded again: " in result.output
    assert "gone" in result.output.split("none encoded again: ")[1]
