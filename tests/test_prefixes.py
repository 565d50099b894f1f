"""What the sequences of a causal model have in common is forwarded once, and nobody can tell from the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchscore import Scorer
from batchscore.engine.prefixes import find_prefixes
from batchscore.engine.scheduler import Pack, plan_packs
from batchscore.errors import StoppedError
from batchscore.runners import reach as reaches
from batchscore.runners.gathered import attend_in_reach
from batchscore.runners.masks import Rule, UnknownAttentionError
from batchscore.runners.prefix import Tree
from batchscore.stop import Stop
from batchscore.types import Cells, Items, Pairs, Prefixes, offsets_of
from kernels import KERNELS
from threads import one_thread

Tiny = Callable[[str], str]
Floats = NDArray[np.float32]

SAME = 1e-5
SYSTEM, OTHER_SYSTEM = list(range(100, 120)), list(range(300, 330))


def items_of(*sequences: list[int]) -> Items:
    ids = np.array([token for sequence in sequences for token in sequence], np.int32)
    return Items(offsets_of([len(sequence) for sequence in sequences]), {"ids": ids})


def lists_of(items: Items) -> list[list[int]]:
    return [items.ids[start:stop].tolist() for start, stop in pairwise(items.offsets)]


def conversation(seed: int, queries: int = 4, documents: int = 5) -> list[list[int]]:
    """Token ids as of a template: a system prompt, a query of 9 tokens, a document; shuffled."""
    rng = np.random.default_rng(seed)
    sequences = []
    for query in range(queries):
        asked = [*SYSTEM, 1000 + query, *rng.integers(0, 50, 8).tolist()]
        sequences += [[*asked, *rng.integers(0, 50, rng.integers(1, 40)).tolist()] for _ in range(documents)]
    return [sequences[place] for place in rng.permutation(len(sequences))]


def packs_of(items: Items, max_cost: int, min_packs: int = 1) -> list[Pack]:
    order, prefixes = find_prefixes(items, np.arange(len(items))) or (np.arange(len(items)), None)
    group = np.zeros(len(items), np.int32)
    return plan_packs(order, items.lengths, items.lengths, group, max_cost, min_packs, prefixes=prefixes)


# ---- what is found


@pytest.mark.parametrize("seed", range(4))
def test_neighbours_with_the_same_part_have_the_same_tokens_up_to_its_end(seed: int) -> None:
    items = items_of(*conversation(seed), OTHER_SYSTEM, [*OTHER_SYSTEM, 7], [*OTHER_SYSTEM, 7], [5])

    found = find_prefixes(items, np.arange(len(items)))

    assert found is not None
    order, prefixes = found
    sequences = [lists_of(items)[item] for item in order]
    assert sorted(order.tolist()) == list(range(len(items)))
    assert (prefixes.cuts[:, -1] < items.lengths[order]).all()  # a token of its own is left
    assert (prefixes.sizes >= 0).all()
    for (first, second), before, after in zip(
        pairwise(sequences), prefixes.parts[:-1].tolist(), prefixes.parts[1:].tolist(), strict=True
    ):
        cuts = prefixes.cuts[sequences.index(second)].tolist()
        shared = max((cut for cut, a, b in zip(cuts, before, after, strict=True) if a == b), default=0)
        assert first[:shared] == second[:shared]


def test_a_system_prompt_is_found_once_and_each_query_once_behind_it() -> None:
    items = items_of(*conversation(0, queries=4, documents=5))

    (pack,) = packs_of(items, 10_000)

    own = int(items.lengths.sum()) - 20 * 29
    assert pack.cost == 20 + 4 * 9 + own
    assert pack.prefixes is not None
    assert pack.prefixes.cuts[:, :2].tolist() == [[20, 29]] * 20


def test_the_longest_sequence_comes_first_and_after_it_those_that_share_most_with_it() -> None:
    items = items_of(*conversation(1))

    (pack,) = packs_of(items, 10_000)

    ordered = items.take(pack.index)
    queries = [ids[20] for ids in lists_of(ordered)]
    assert ordered.lengths[0] == items.lengths.max()
    assert [query for query, before in zip(queries, [0, *queries], strict=False) if query != before] == list(
        dict.fromkeys(queries)
    )
    for query in set(queries):
        of_query = [len(ids) for ids in lists_of(ordered) if ids[20] == query]
        assert of_query == sorted(of_query, reverse=True)


@pytest.mark.parametrize(
    "sequences",
    [
        [[1, 2, 3], [4, 5, 6]],
        [[*range(5), word] for word in range(9)],  # five tokens are not worth a part
        [[*SYSTEM, 1], [*OTHER_SYSTEM, 1]],
        [SYSTEM],
        [[*SYSTEM, *range(900)], [*SYSTEM, *range(1, 900)]],  # a hundredth of all
    ],
    ids=["nothing", "little", "no two", "one", "a small share"],
)
def test_what_is_not_worth_it_is_not_shared(sequences: list[list[int]]) -> None:
    assert find_prefixes(items_of(*sequences), np.arange(len(sequences))) is None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("min_packs", [1, 3])
def test_a_pack_costs_what_its_tree_forwards_and_stays_within_the_budget(seed: int, min_packs: int) -> None:
    items = items_of(*conversation(seed))

    packs = packs_of(items, 150, min_packs)

    assert sorted(np.concatenate([pack.index for pack in packs]).tolist()) == list(range(len(items)))
    for pack in packs:
        assert pack.cost == len(Tree.of(items.take(pack.index), pack.prefixes).tokens) <= 150


def test_a_pack_without_some_of_its_sequences_cuts_the_others_where_they_were_cut() -> None:
    """Cut elsewhere they would be forwarded in other stretches, which round differently."""
    items = items_of(*conversation(2))
    (pack,) = packs_of(items, 10_000)
    wanted = np.zeros(len(items), bool)
    wanted[pack.index[[1, 2, 9]]] = True

    some = pack.only(wanted)

    assert some.prefixes is not None
    assert pack.prefixes is not None
    assert some.prefixes.cuts.tolist() == pack.prefixes.cuts[[1, 2, 9]].tolist()
    tree, whole = (Tree.of(items.take(one.index), one.prefixes) for one in (some, pack))
    assert tree.lengths[tree.is_last].tolist() == whole.lengths[whole.is_last][[1, 2, 9]].tolist()


# ---- the tree


def test_each_part_is_laid_once_and_sees_the_parts_before_it() -> None:
    items = items_of([1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 7], [8])
    prefixes = Prefixes(np.array([[2, 3], [2, 3], [2, 2], [0, 0]]), np.array([[10, 11], [10, 11], [10, 2], [3, 3]]))

    tree = Tree.of(items, prefixes)

    assert items.ids[tree.tokens].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert tree.lengths.tolist() == [2, 1, 1, 2, 1, 1]
    seen = np.split(items.ids[tree.tokens[tree.keys]], np.cumsum(tree.key_lengths)[:-1])
    assert [part.tolist() for part in seen] == [[1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 7], [8]]
    assert tree.is_last.tolist() == [False, False, True, True, True, True]
    assert items.ids[tree.tokens[tree.ends]].tolist() == [4, 6, 7, 8]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shared", [True, False])
def test_the_last_part_of_a_sequence_sees_the_sequence(seed: int, shared: bool) -> None:
    items = items_of(*conversation(seed))
    (pack,) = packs_of(items, 10_000)
    ordered = items.take(pack.index)

    tree = Tree.of(ordered, pack.prefixes if shared else None)

    seen = np.split(ordered.ids[tree.tokens[tree.keys]], np.cumsum(tree.key_lengths)[:-1])
    assert [part.tolist() for part, ends in zip(seen, tree.is_last, strict=True) if ends] == lists_of(ordered)


# ---- attention


def alone(query: Tensor, key: Tensor, value: Tensor, window: int | None, softcap: float | None) -> Tensor:
    """[tokens, heads, dim]: causal attention of one sequence, by the formula."""
    key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], 1) for part in (key, value))
    products = torch.einsum("qhd,khd->hqk", query, key) * query.shape[-1] ** -0.5
    products = products if softcap is None else softcap * torch.tanh(products / softcap)
    behind = torch.arange(len(query))[:, None] - torch.arange(len(query))
    hidden = (behind < 0) | (behind >= (window or len(query)))
    return torch.einsum("hqk,khd->qhd", products.masked_fill(hidden, -torch.inf).softmax(-1), value)


def tree_states(key_heads: int, dtype: torch.dtype) -> tuple[Tree, list[NDArray[np.int64]], list[Tensor]]:
    """A tree, which of its tokens make up each sequence, and queries, keys and values of its tokens."""
    items = items_of(*conversation(0, queries=2, documents=3), [*SYSTEM, 1, 2])
    (pack,) = packs_of(items, 10_000)
    tree = Tree.of(items.take(pack.index), pack.prefixes)
    seen = np.split(tree.keys, np.cumsum(tree.key_lengths)[:-1])
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(len(tree.tokens), heads, 8, generator=generator) for heads in (4, key_heads, key_heads)]
    return tree, [part for part, ends in zip(seen, tree.is_last, strict=True) if ends], [s.to(dtype) for s in states]


@pytest.mark.parametrize("key_heads", [1, 4])
@pytest.mark.parametrize("window", [None, 1, 7, 30])
@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("way", ["native", "dense", "dense in blocks"])
def test_a_tree_is_attended_as_each_sequence_alone(
    monkeypatch: pytest.MonkeyPatch, key_heads: int, window: int | None, softcap: float | None, way: str
) -> None:
    if way != "native":
        monkeypatch.setattr("batchscore.runners.gathered.takes", lambda *_: False)
    if way == "dense in blocks":
        monkeypatch.setattr(reaches, "_BLOCK", 5)
    tree, sequences, (query, key, value) = tree_states(key_heads, torch.float32)
    rule, laid = Rule(causal=True, window=window, softcap=softcap), tree.sequences(torch.from_numpy)
    assert laid.reach is not None
    assert laid.last is not None

    attended = attend_in_reach(query, key, value, rule, laid.reach)
    last = attend_in_reach(query[laid.last.places], key, value, rule, laid.last.reach)

    for place, tokens in enumerate(sequences):
        expected = alone(query[tokens], key[tokens], value[tokens], window, softcap)
        torch.testing.assert_close(attended[tokens], expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(last[place], expected[-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("release", KERNELS)
@pytest.mark.parametrize("window", [None, 7])
def test_on_a_gpu_the_kernel_takes_the_whole_tree_in_one_call(
    monkeypatch: pytest.MonkeyPatch, release: str, window: int | None
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", KERNELS[release])
    monkeypatch.setattr("batchscore.runners.varlen._has_kernel", lambda device: True)
    tree, sequences, (query, key, value) = tree_states(2, torch.float16)
    laid = tree.sequences(torch.from_numpy)
    assert laid.reach is not None

    no_calls = replace(laid.reach, on_host=())  # whoever asks for them fails
    attended = attend_in_reach(query, key, value, Rule(causal=True, window=window), no_calls)

    for tokens in sequences:
        expected = alone(*(part[tokens].float() for part in (query, key, value)), window, None)
        torch.testing.assert_close(attended[tokens].float(), expected, rtol=0, atol=2e-3)


def test_a_model_that_sees_later_tokens_cannot_share() -> None:
    tree, _, states = tree_states(4, torch.float32)
    reach = tree.sequences(torch.from_numpy).reach
    assert reach is not None

    with pytest.raises(UnknownAttentionError, match="later tokens"):
        attend_in_reach(*states, Rule(causal=False), reach)


# ---- models

RERANKER = {"config": "qwen3-reranker"}
DOCUMENT_FIRST = "The document says: {{ document }} And somebody asks: {{ query }} Is it of use to them?"

# (checkpoint, options, whether the last layer runs for last tokens alone) of models that share
SHARING: list[tuple[str, dict[str, Any], bool]] = [
    ("qwen3_reranker", RERANKER, True),
    ("qwen3_pairs", {"chat_template": "documents.jinja"}, True),
    ("qwen3_pairs", {}, True),
    ("llama_pairs", {}, True),
    ("mistral_pairs", {}, True),  # with a window of 8 tokens
    ("gemma_pairs", {}, True),
    ("gemma2_pairs", {}, False),
    ("gpt2_pairs", {}, False),
]
QUERIES = [
    "what is a bird and where does it live in the old town",
    "river",
    "the light over the water of a small river",
]
DOCUMENTS = ["the bird is small", "A river runs from the mountain, and the old bridge is over it!", "people read"]
DOCUMENTS += ["a cat is a small animal", "the old cat", "light over water", "search index"]


@pytest.fixture(autouse=True)
def _one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("documents.jinja").write_text(DOCUMENT_FIRST, "utf-8")
    with one_thread():
        yield


def scorer_of(model: str, **options: Any) -> Scorer:
    return Scorer(model, dtype="float32", device="cpu", cache_mb=0, **options)


def product(seed: int = 0) -> Pairs:
    """Every query with every document, and some rows twice, shuffled."""
    rows = [(query, document) for query in QUERIES for document in DOCUMENTS] + [(QUERIES[1], DOCUMENTS[2])] * 2
    order = np.random.default_rng(seed).permutation(len(rows))
    queries, documents = zip(*(rows[place] for place in order), strict=True)
    return Pairs(Cells.of(queries), Cells.of(documents))


def forwarded(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each forward from now on."""
    kind, counts = type(scorer.batcher._runner), list[int]()
    forward = kind.forward

    def counted(runner: Any, batch: Any) -> Any:
        counts.append(sum(call.inputs["input_ids"].numel() for call in batch.calls))
        return forward(runner, batch)

    monkeypatch.setattr(kind, "forward", counted)
    return counts


@pytest.mark.parametrize(("name", "options", "short"), SHARING)
def test_scores_are_those_of_padded_sequences_and_fewer_tokens_are_forwarded(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], short: bool
) -> None:
    with scorer_of(tiny(name), **options) as sharing, scorer_of(tiny(name), padded=True, **options) as padded:
        runner: Any = sharing.batcher._runner
        work = sharing.batcher.tokenize(product())
        expected = padded.batcher.score(work).raw
        counts = forwarded(sharing, monkeypatch)
        raw = sharing.batcher.score(work).raw
        single = [sharing.batcher.score(work.only(np.array([row]))).raw[row] for row in range(4)]

    assert runner.shares
    assert ("forward" in vars(layers_of(runner)[-1])) == short
    np.testing.assert_allclose(raw, expected, rtol=0, atol=SAME)
    np.testing.assert_allclose(single, raw[:4], rtol=0, atol=SAME)
    packs = sharing.batcher._plan(work, work.needed())
    assert sum(counts[: len(packs)]) == sum(pack.cost for pack in packs) < 0.8 * int(work.items.lengths.sum())


def layers_of(runner: Any) -> Any:
    body = runner.model.bodies[0]
    return body.h if hasattr(body, "h") else body.layers


def test_rows_in_another_order_have_the_same_scores_in_that_order(tiny: Tiny) -> None:
    with scorer_of(tiny("qwen3_reranker"), **RERANKER) as scorer:
        by_pair = []
        for seed in range(2):
            pairs = product(seed)
            raw = scorer.batcher.score(scorer.batcher.tokenize(pairs)).raw[:, 0].tolist()
            queries, documents = (
                [side.values[code] for code in side.codes] for side in (pairs.queries, pairs.documents)
            )
            by_pair.append(dict(zip(zip(queries, documents, strict=True), raw, strict=True)))

    assert by_pair[0] == pytest.approx(by_pair[1], rel=0, abs=SAME)


def test_tokens_of_a_row_are_those_the_model_reads_for_it(tiny: Tiny) -> None:
    """Whoever shares them: a row's number says how long its text is, not what its neighbours are."""
    told = list[int]()
    with scorer_of(tiny("qwen3_reranker"), **RERANKER) as scorer:
        work = scorer.batcher.tokenize(product())
        outcome = scorer.batcher.score(work, lambda rows, tokens: told.append(tokens))
        tokens = scorer.batcher.scores(work, outcome).num_tokens

    assert tokens.tolist() == work.items.lengths[work.right].tolist()
    assert sum(told) == int(work.items.lengths.sum())


def test_a_window_that_is_resumed_has_the_bits_of_one_that_was_not_interrupted(tiny: Tiny) -> None:
    with scorer_of(tiny("qwen3_reranker"), batch_tokens=400, **RERANKER) as scorer:
        work = scorer.batcher.tokenize(product())
        whole = scorer.batcher.score(work).raw
        raw, stop = np.full_like(whole, np.nan), Stop()
        with pytest.raises(StoppedError):
            scorer.batcher.score(
                work, lambda rows, tokens: stop.request("test") if tokens else None, raw=raw, stop=stop
            )
        assert 0 < np.isnan(raw).sum() < len(raw)
        scorer.batcher.score(work, raw=raw)

    np.testing.assert_array_equal(raw, whole)


def test_the_memory_that_is_too_small_for_a_pack_halves_it_and_changes_nothing(tiny: Tiny) -> None:
    with scorer_of(tiny("qwen3_reranker"), **RERANKER) as scorer:
        work = scorer.batcher.tokenize(product())
        whole = scorer.batcher.score(work).raw
        scorer.batcher._fitting_cost = 300
        halved = scorer.batcher.score(work).raw

    np.testing.assert_allclose(halved, whole, rtol=0, atol=SAME)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bert_ce", {}),
        ("mistral_both_ways", {"pooling": "lasttoken"}),
        ("qwen3_reranker", {**RERANKER, "padded": True}),
        ("qwen3_model", {"pooling": "mean"}),
        ("qwen3_model", {"score_type": "late-interaction"}),
        ("lfm2_model", {}),
    ],
    ids=str,
)
def test_only_last_tokens_of_causal_models_without_padding_share(
    tiny: Tiny, name: str, options: dict[str, Any]
) -> None:
    with scorer_of(tiny(name), **options) as scorer:
        runner: Any = scorer.batcher._runner
        assert not runner.shares
