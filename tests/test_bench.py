"""`bench` on a tiny model: what it times, and what it says of it. No test measures how quick anything is."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing

import pytest
import torch
from typer.testing import CliRunner

import checkpoints
from batchscore.bench import benchmark, made_up_pairs
from batchscore.cli.main import app
from batchscore.engine.batcher import Batcher
from batchscore.engine.timing import joined, time_encoding, time_scoring
from batchscore.models.load import load_model
from batchscore.runners.build import unloaded_runner
from batchscore.runners.peak import matmul_peak
from batchscore.runners.size import ModelSize, flops_of, products_of
from batchscore.scorer import set_up
from batchscore.types import Cells, Pairs

Tiny = Callable[[str], str]


def test_a_benchmark_has_every_length_and_every_size_of_pack(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchscore.bench._LEAST_TOKENS", 1 << 10)
    monkeypatch.setattr("batchscore.bench._PACKS_A_ROUND", 1)
    options = ["--dtype", "float32", "--seconds", "0.01", "--batch-tokens", "256"]

    result = CliRunner().invoke(app, ["bench", tiny("bert_ce"), *options, "--json"])

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [round(speed["tokens"]) for speed in found["speeds"]] == pytest.approx([32, checkpoints.TOKENS], rel=0.1)
    assert list(found["packs"]) == ["256", "64", "128", "512", "1024"]
    assert found["best_batch_tokens"] in map(int, found["packs"])
    assert found["peak_flops"] > 0
    assert all(speed["peak_share"] > 0 for speed in found["speeds"])
    assert found["line"].startswith(f"{tiny('bert_ce')} (cross-encoder, 0.0 M) on cpu (")
    assert "batchscore 0.1.0" in found["line"]


def test_a_model_of_long_texts_is_timed_at_the_usual_lengths(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchscore.bench._LEAST_TOKENS", 1 << 10)
    monkeypatch.setattr("batchscore.bench._PACKS_A_ROUND", 1)
    monkeypatch.setattr("batchscore.bench.LENGTHS", (16, 24, 32))

    found = benchmark(set_up(tiny("bert_mean"), dtype="float32", batch_tokens=64), seconds=0.01)

    assert [speed.tokens for speed in found.speeds] == pytest.approx([16, 24, 32], rel=0.25)
    assert len(found.lines()) == 1 + 3 + 1 + 1 + 5 + 1 + 1 + 1


@pytest.mark.parametrize("length", [24, 40, 60])
@pytest.mark.parametrize("name", ["bert_ce", "roberta_ce", "bert_mean"])
def test_made_up_pairs_have_the_length_that_was_asked_for_and_are_distinct(tiny: Tiny, name: str, length: int) -> None:
    with closing(Batcher(set_up(tiny(name), dtype="float32", batch_tokens=256))) as batcher:
        pairs = made_up_pairs(batcher, length)
        tokens = batcher.tokenize(pairs).row_tokens()

    assert len(set(pairs.documents.values)) == len(pairs) > 1_000
    assert tokens.mean() == pytest.approx(length, rel=0.2)


@pytest.mark.parametrize("name", ["bert_ce", "bert_mean"])
def test_what_is_timed_is_what_is_forwarded(tiny: Tiny, name: str) -> None:
    queries, documents = checkpoints.pairs(200, seed=1)
    pairs = Pairs(Cells.of(queries), Cells.of(documents))
    with closing(Batcher(set_up(tiny(name), dtype="float32"))) as batcher:
        found = time_scoring(batcher, pairs, 0.05)
        whole = batcher.tokenize(pairs)
        assert found.timing.wall > 0
        assert found.rows >= 64  # at least one run of neighbours
        a_row = whole.items.lengths[whole.needed()].sum() / len(pairs)
        assert found.tokens / found.rows == pytest.approx(a_row, rel=0.5)
        if name == "bert_mean":
            texts = time_encoding(batcher, pairs.documents.values, "document", 0.05)
            mean = batcher.lay_out(pairs.documents.values, "document").items.lengths.mean()
            assert texts.tokens / texts.rows == pytest.approx(mean, rel=0.5)


def test_windows_are_joined_with_their_lists_apart() -> None:
    parts = [
        Pairs(Cells.of(["a", "a", "b"]), Cells.of(["1", "2", "1"]), lists=torch.tensor([0, 0, 1]).numpy()),
        Pairs(Cells.of(["b", "c"]), Cells.of(["3", "1"]), lists=torch.tensor([4, 7]).numpy()),
    ]

    whole = joined(parts)

    assert whole.lists is not None
    assert whole.lists.tolist() == [0, 0, 1, 2, 3]
    texts = [
        whole.queries.values[code] + str(whole.documents.values[code_2])
        for code, code_2 in zip(whole.queries.codes, whole.documents.codes, strict=True)
    ]
    assert texts == ["a1", "a2", "b1", "b3", "c1"]
    assert joined([Pairs(Cells.of(["a"]), Cells.of(["1"]))]).lists is None


def test_products_are_those_of_the_config(tiny: Tiny) -> None:
    setup = set_up(tiny("bert_ce"))
    runner = unloaded_runner(setup.checkpoint, setup.spec, trust_remote_code=False)
    hidden, inner, layers = checkpoints.HIDDEN, checkpoints.INTERMEDIATE, checkpoints.LAYERS

    products = products_of(runner.model.bodies[0])

    assert dict(products) == {
        (hidden, hidden): 4 * layers,
        (hidden, inner): layers,
        (inner, hidden): layers,
    }
    assert flops_of(products) == 2 * layers * (4 * hidden * hidden + 2 * hidden * inner)
    loaded = load_model(setup.checkpoint, setup.spec, runner.reader.tokenizer, dtype="float32", device="cpu")
    size = ModelSize.of(runner.model)
    assert size.body == sum(part.numel() for part in loaded.bodies[0].parameters())
    assert size.head == sum(part.numel() for part in loaded.head.parameters())
    assert (size.width, size.widest) == (hidden, inner)


def test_a_peak_is_a_rate_of_products() -> None:
    peak = matmul_peak({(64, 128): 2}, 32, "float32", "cpu", 1, 0.02)

    assert 1e6 < peak < 1e14
