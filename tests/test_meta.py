"""On a GPU a forward never waits for the device, and torch's variable-length kernel does all attention that it can do.

Weights and packs of every architecture lie on torch's meta device, which has shapes and no numbers: what a forward
would have to fetch from a GPU (`item`, `tolist`, a mask used as an index) raises there. The kernel is a stand-in, one
for each signature that it has had; tests/test_attention.py shows that what it is asked for is right.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import checkpoints
import more_checkpoints
from batchscore import Scorer
from batchscore.errors import RuntimeFailureError
from batchscore.runners import fused_norms, turns
from batchscore.runners.base import Match
from batchscore.runners.batch import Batch, Staging
from kernels import KERNELS
from test_padded import Launches
from test_rows import DOCUMENTS, QUERIES, ROWS, columns
from threads import one_thread, plain_bodies

Tiny = Callable[[str], str]

REFUSED = {"bert_ce_two_labels", "bert_ce_headless", "bert_bad_pooling", "bert_missing_weight", "bert_missing_dense"}
NAMES = [*ROWS, *(name for name in checkpoints.ROWS if name not in REFUSED)]

# rows whose layers do not take the kernel, and why
SOFTCAP = "the kernel cannot cap products"
SOFTCAPPED = ("gemma2_pairs", "gemma2_lightweight", "gemma2_lightweight_at_2", "gemma2_model", "gemma2_lm")
OWN_LAYERS = (
    "tokens meet elsewhere than in attention, or in an attention of the model's own: padded, or one length a pack"
)
WITH_OWN_LAYERS = ("deberta_pairs", "bloom_pairs", "mpnet", "mpnet_mlm", "lfm2_model", "lfm2_lm", "lfm2_colbert")
WITH_OWN_LAYERS += ("lfm2_colbert_by_name", "stablelm", "mamba", "jamba", "gpt_oss", "convbert")
WITH_OWN_LAYERS += ("llama4", "deepseek_v32", "deberta_1_pairs", "deberta_1", "deberta")
WITHOUT_KERNEL = {**dict.fromkeys(SOFTCAPPED, SOFTCAP), **dict.fromkeys(WITH_OWN_LAYERS, OWN_LAYERS)}
# these fill queries up with tokens that are not attended to, which the kernel cannot leave out
HIDING_IN_QUERIES = {"colbert", "modern_colbert", "modern_colbert_by_name"}

# rows that wait for the device, where, and why it is left so
MASKS = ("masking_utils.py", "transformers asks the mask of a padded batch whether anything is padded, once a pack")
PADDING = ("modeling_utils.py", "transformers looks for padding among the ids to warn of it, once a pack")
EXPERTS = ("rotary_bert.py", "how many tokens an expert gets decides shapes, once a layer")
GLOBAL = ("modeling_longformer.py", "transformers asks whether any token is seen from everywhere, once a pack")
WAITING = {
    "longformer_pairs": GLOBAL,
    **dict.fromkeys(("mpnet", "mpnet_mlm", "lfm2_model", "lfm2_lm", "lfm2_colbert", "lfm2_colbert_by_name"), MASKS),
    **dict.fromkeys(("stablelm", "jamba", "convbert"), MASKS),
    **dict.fromkeys(("mpnet_pairs", "megatron_pairs", "megatron", "eurobert_pairs_late", "convbert_pairs"), MASKS),
    **dict.fromkeys(("monot5", "mono_mt5", "t5", "t5_model", "t5_whole", "mt5", "umt5"), MASKS),
    **dict.fromkeys(("gpt2_pairs", "gpt2_model", "gpt2_lm"), PADDING),
    "nomic_moe": EXPERTS,
}
# in transformers 5.17, no longer in 5.24: the longest position is fetched to choose frequencies, and a mask of chunks;
# OPT makes a mask of tokens of its own, and so is padded
ONCE_WAITING = {"phi3_longrope": "modeling_rope_utils.py", "llama4": "masking_utils.py", "opt": "masking_utils.py"}

# transformers makes its frequencies of long texts on the CPU, for the first pack
COPYING = {"phi3_longrope", "phimoe"}

# the kernel's windows in rows of each kind
WINDOWS = {
    "bert_pairs": {(-1, -1)},
    "llama_pairs": {(-1, 0)},
    "mistral_pairs": {(7, 0)},
    "modernbert": {(-1, -1), (4, 4)},
    "mistral_both_ways": {(8, 8)},
    "gemma3_lm": {(-1, 0), (11, 0)},
    "phimoe": {(7, 0)},
}
# every row with the latest signature; what differs with an earlier one is how windows and grouped heads are asked for
LATEST = [*KERNELS][-1]
ASKED = [(name, release) for name in NAMES for release in KERNELS if release == LATEST or name in WINDOWS]


@dataclass(frozen=True)
class OnMeta:
    """A row's runner on the meta device, and packs for it."""

    name: str
    runner: Any
    packs: dict[str, Batch]  # of queries, and of documents or pairs

    @property
    def layers(self) -> int:
        body = self.runner.model.bodies[0]
        layers: int = getattr(body.config, "num_hidden_layers", 0)  # a table has none
        return layers


@pytest.fixture(scope="module")
def row(request: pytest.FixtureRequest, tiny: Tiny) -> Iterator[OnMeta]:
    name: str = request.param
    checkpoint, options = (ROWS[name].checkpoint or name, ROWS[name].options) if name in ROWS else (name, {})
    model = more_checkpoints.ROWS[checkpoint].model if name in ROWS else ""
    if not hasattr(transformers, model or "AutoModel"):
        pytest.skip(f"transformers {transformers.__version__} has no {model} to make a checkpoint of")
    with one_thread(), plain_bodies(), Scorer(tiny(checkpoint), dtype="float32", cache_mb=0, **options) as scorer:
        runner = moved(scorer.batcher._runner)
        yield OnMeta(name, runner, packs_of(scorer, runner))


def moved(runner: Any) -> Any:
    """The runner with its weights on the meta device, the body's in 16 bits."""
    body_to_meta = functools.partial(torch.nn.Module.to, device="meta", dtype=torch.bfloat16)
    model = runner.model
    token_head = None if model.token_head is None else model.token_head.to("meta")
    heads = {"token_head": token_head, "head": model.head.to("meta")}
    model = replace(model, bodies=tuple(map(body_to_meta, model.bodies)), **heads)
    last_layer = None if runner.last_layer is None else body_to_meta(runner.last_layer)
    return replace(runner, device="meta", model=model, last_layer=last_layer)


def packs_of(scorer: Scorer, runner: Any) -> dict[str, Batch]:
    work = scorer.batcher.tokenize(columns(QUERIES, DOCUMENTS))
    sides = {"queries": np.arange(work.queries), "documents": np.arange(work.queries, len(work.items))}
    longest_first = {
        side: index[np.argsort(-work.items.lengths[index], kind="stable")]
        for side, index in sides.items()
        if len(index)
    }
    return {
        side: runner.collate(work.items, index, is_query=side == "queries") for side, index in longest_first.items()
    }


class Copies(TorchDispatchMode):
    """Notes each operation between two devices, but for those of the functions that do not wait for it."""

    meant = ("to_device", "send", "_begin_copy")

    def __init__(self) -> None:
        super().__init__()
        self.found = list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, output))
        tensors = [part for part in leaves if isinstance(part, Tensor) and (part.dim() or func.name() in COPIES)]
        if len({tensor.device.type for tensor in tensors}) > 1 and not called_by(self.meant):
            self.found.append(func.name())
        return output


COPIES = ("aten::_to_copy", "aten::copy_")


def called_by(names: tuple[str, ...]) -> bool:
    frame = sys._getframe(1)
    while frame.f_back:
        frame = frame.f_back
        if frame.f_code.co_name in names:
            return True
    return False


@pytest.fixture(params=KERNELS)
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Keywords of each call of the kernel, which the meta device is said to have."""
    kernel, calls = KERNELS[request.param], []

    @functools.wraps(kernel)
    def recorded(*tensors: Any, **keywords: Any) -> Tensor:
        calls.append(keywords)
        return kernel(*tensors, **keywords)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", recorded)
    monkeypatch.setattr("batchscore.runners.varlen._has_kernel", lambda device: device.type == "meta")
    return calls


@pytest.mark.parametrize(("row", "calls"), ASKED, indirect=True)
def test_no_forward_waits_for_the_device(row: OnMeta, calls: list[dict[str, Any]]) -> None:
    for side, batch in row.packs.items():
        calls.clear()
        if row.name in WAITING:
            with pytest.raises(RuntimeFailureError) as caught:
                row.runner.forward(batch)
            assert WAITING[row.name][0] in files_of(caught.value.__cause__)
            continue
        try:
            with Copies() as copies:
                output = row.runner.forward(batch)
        except RuntimeFailureError as error:
            if ONCE_WAITING.get(row.name) not in files_of(error.__cause__):
                raise
            continue
        assert len(copies.found) <= (row.name in COPYING), copies.found
        assert len(output) == len(batch)
        assert {part.device.type for part in output} == {"meta"}
        without = row.name in WITHOUT_KERNEL or (side == "queries" and row.name in HIDING_IN_QUERIES)
        assert len(calls) == (0 if without else row.layers)
    if row.name in WINDOWS:
        assert {call["window_size"] for call in calls} == WINDOWS[row.name]


@pytest.mark.parametrize("name", ["bert_pairs", "bert", "bert_splade", "colbert", "jina_listwise"])
def test_a_pack_is_one_copy_to_the_device_and_its_scores_one_from_it(
    name: str, tiny: Tiny, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched, sent = list[tuple[int, ...]](), list[int]()

    def begin(tensor: Tensor) -> Tensor:
        fetched.append(tensor.shape)
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    monkeypatch.setattr(turns, "_begin_copy", begin)
    monkeypatch.setattr(turns, "_mark", lambda device: None)
    send = Staging.send
    monkeypatch.setattr(Staging, "send", lambda staging: (sent.append(1), send(staging)))
    checkpoint, options = (ROWS[name].checkpoint or name, ROWS[name].options) if name in ROWS else (name, {})
    with one_thread(), plain_bodies(), Scorer(tiny(checkpoint), dtype="float32", cache_mb=0, **options) as scorer:
        runner = moved(scorer.batcher._runner)
    with Copies() as copies:
        packs = packs_of(scorer, runner)
        assert len(sent) == len(packs)
        outputs = {side: runner.forward(batch) for side, batch in packs.items()}
        held = None
        if "queries" in packs:
            held = runner.hold([np.arange(len(packs["queries"]))], [outputs["queries"]])
        items = np.arange(len(packs["documents"])).repeat(2)
        none = np.zeros(len(items), np.int64)
        scores = runner.compare(held, Match(none, items, none), outputs["documents"])
        assert scores.shape == (len(items), 1)
        assert len(fetched) == 1
        if scorer.spec.score_type != "cross-encoder":
            fetched.clear()
            runner.to_arrays(outputs["documents"])
            assert len(fetched) <= 2  # vectors of tokens, and whether they are numbers
    assert copies.found == []


@pytest.mark.parametrize(("name", "most"), [("bert_pairs", 24), ("llama_pairs", 36), ("qwen3_reranker", 36)])
def test_a_layer_is_few_launches(
    name: str, most: int, tiny: Tiny, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside those of the embeddings and the head; each is some microseconds of the thread that queues them."""
    monkeypatch.setattr(fused_norms, "_FUSED_SIZE", 1)
    options: dict[str, Any] = {"config": "qwen3-reranker"} if name == "qwen3_reranker" else {}
    with one_thread(), plain_bodies(), Scorer(tiny(name), dtype="float32", cache_mb=0, **options) as scorer:
        fused_norms.fuse_norms(scorer.batcher._runner.model.bodies[0])  # type: ignore[attr-defined]
        runner = moved(scorer.batcher._runner)
        (pack,) = packs_of(scorer, runner).values()
        with Launches() as launches:
            runner.forward(pack)

    assert launches.count <= most * len(calls) + 12


def files_of(error: BaseException | None) -> set[str]:
    """Names of the files that an error came through."""
    files, trace = set(), error.__traceback__ if error else None
    while trace:
        files.add(trace.tb_frame.f_code.co_filename.rpartition("/")[2])
        trace = trace.tb_next
    return files


def test_every_exception_is_a_row() -> None:
    for names in (WITHOUT_KERNEL, HIDING_IN_QUERIES, WAITING, ONCE_WAITING, WINDOWS, COPYING):
        assert set(names) <= set(NAMES)
