"""Score the built-in pairs with the model's own library and with batchscore in several ways, and compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from batchscore.engine.batcher import Batcher
from batchscore.engine.setup import ScorerOptions, Setup, set_up
from batchscore.errors import CheckpointError, RuntimeFailureError, UsageError, first_line
from batchscore.models.reference import Library, Reference, obstacle, open_reference
from batchscore.models.spec import ModelSpec
from batchscore.models.text.prompts import ALL, prefixed
from batchscore.runners.build import input_reader
from batchscore.types import Cells, Pairs, Work
from batchscore.verification.pairs import NamedPair, built_in_pairs
from batchscore.verification.result import Comparison, Floats, Verification, Wanted

# of the largest score, or of 1 if that is larger: what rounding leaves of a deep model, and far below what a wrong
# pooling, prompt or head makes
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}

_LIBRARIES: tuple[Library, ...] = ("sentence-transformers", "transformers")


def verify_model(
    model: str,
    *,
    reference: Wanted = "auto",
    tolerance: float | None = None,
    on_step: Callable[[str], None] = lambda step: None,
    **options: Unpack[ScorerOptions],
) -> Verification:
    """Score the built-in pairs with a reference library and with batchscore flat, padded and one by one.

    Args:
        model: folder or hub id.
        reference: "auto" takes sentence-transformers where the checkpoint has its files, else plain transformers;
            "none" compares batchscore with itself only.
        tolerance: of a difference; None takes that of the dtype. Logits are compared before the activation.
        on_step: told what happens next.
        options: as Scorer takes them.

    Raises:
        BatchscoreError: as Scorer; also if the library that was asked for has no score to compare with.
    """
    chosen: ScorerOptions = {"dtype": "float32", **options}
    setup = set_up(model, **chosen)
    spec = setup.spec
    libraries = _libraries(setup, reference)
    pairs = built_in_pairs(max(spec.max_length, spec.query_length, spec.document_length))
    limit = TOLERANCES[setup.placement.dtype] if tolerance is None else tolerance
    found = Verification(model, setup, reference, limit, pairs)
    work, scores = _compare_layouts(found, on_step)
    _compare_with_reference(found, libraries, work, scores, on_step)
    return found


def _compare_layouts(found: Verification, on_step: Callable[[str], None]) -> tuple[Work, Floats]:
    """Compare batchscore with itself; returns the token sequences and scores of a job's own way.

    One model at a time is loaded, since a device may not hold two.
    """
    pairs = _texts(found.pairs)
    on_step(f"scoring {len(pairs)} pairs, then each by itself")
    with closing(Batcher(found.setup)) as batcher:
        work, scores = _scored(batcher, pairs, found)
        rows = [pairs.rows(np.array([row])) for row in range(len(pairs))]
        singles = np.concatenate([_scored(batcher, row, found, number)[1] for number, row in enumerate(rows)])
        layout = batcher.layout
    del batcher
    if layout == "flat":
        on_step("scoring them in padded batches")
        with closing(Batcher(replace(found.setup, padded=True))) as batcher:
            found.layouts.append(Comparison("padded vs flat", _scored(batcher, pairs, found)[1], scores))
    else:
        found.notes.append("this model runs in padded batches only, so there are no two layouts to compare")
    found.layouts.append(Comparison("single vs batch", singles, scores))
    return work, scores


def _texts(pairs: Sequence[NamedPair]) -> Pairs:
    return Pairs(Cells.of([pair.query for pair in pairs]), Cells.of([pair.document for pair in pairs]))


def _scored(batcher: Batcher, pairs: Pairs, found: Verification, first: int = 0) -> tuple[Work, Floats]:
    """(token sequences, logits or similarities of pairs); a pair that cannot be scored has NaN and is left out."""
    work = batcher.tokenize(pairs)
    outcome = batcher.score(work)
    for row, fault in outcome.faults.items():
        if fault.is_models:
            raise RuntimeFailureError(f"{found.named(first + row)}: {fault.message}", hint=fault.hint)
        found.left_out[first + row] = f"batchscore does not score it: {fault.message}"
    return work, batcher.scores(work, outcome).rank_by.astype(np.float64)


# ---- the reference


def _libraries(setup: Setup, wanted: Wanted) -> dict[Library, str]:
    """The libraries to try in this order, each with why it cannot serve, or ""."""
    if wanted == "none":
        return {}
    if setup.spec.reads_like_vllm:
        raise UsageError(
            "--compat vllm asks for other scores than those of the model's own library",
            hint="--reference none compares batchscore's own layouts only",
        )
    libraries = _LIBRARIES if wanted == "auto" else (wanted,)
    obstacles = {library: obstacle(library, setup.checkpoint, setup.spec) for library in libraries}
    if wanted != "auto" and obstacles[wanted]:
        raise UsageError(
            f"--reference {wanted}: {obstacles[wanted]}", hint="--reference none compares batchscore's own layouts only"
        )
    return obstacles


def _compare_with_reference(
    found: Verification, libraries: Mapping[Library, str], work: Work, scores: Floats, on_step: Callable[[str], None]
) -> None:
    """Compare with the first library that loads the model, if there is one."""
    setup = found.setup
    for library, problem in libraries.items():
        try:
            if problem:
                raise CheckpointError(problem)
            on_step(f"loading the model with {library}")
            reference = open_reference(
                library,
                setup.checkpoint,
                setup.spec,
                dtype=setup.placement.dtype,
                device=setup.placement.device,
                trust_remote_code=setup.trust_remote_code,
            )
        except CheckpointError as error:
            if found.wanted != "auto":
                raise
            found.refused[library] = error.message
            continue
        on_step(f"scoring {len(found.pairs)} pairs with {reference}")
        found.reference = reference
        expected = _expected(found, reference, work)
        found.to_reference = Comparison(f"{library} vs batchscore", expected, scores)
        found.notes += _reference_notes(setup.spec, reference, work) + _token_notes(found, reference)
        return


def _expected(found: Verification, reference: Reference, work: Work) -> Floats:
    """float64 [pairs]: the reference's scores; NaN for pairs that are left out."""
    expected = np.full(len(work), np.nan)
    if not reference.given_ids:
        for row in np.flatnonzero(_cut_otherwise(found.setup, _texts(found.pairs), work)).tolist():
            found.left_out.setdefault(row, "the reference cuts texts that are too long by another rule")
    for row, pair in enumerate(found.pairs):
        if row in found.left_out:
            continue
        try:
            expected[row] = reference.score(pair.query, pair.document, _ids(work, row).tolist())
        except Exception as error:  # another library's code on the oddest of texts: it raises anything
            found.left_out[row] = f"{reference.library} fails on it: {first_line(error)}"
    return expected


def _cut_otherwise(setup: Setup, pairs: Pairs, work: Work) -> NDArray[np.bool_]:
    """bool [pairs]: those of which a reference, which cuts the longer text first, would keep other tokens."""
    spec = setup.spec
    if spec.truncation_side or spec.max_tokens_per_query or spec.max_tokens_per_doc:
        return np.asarray(work.cut > 0)
    if spec.score_type != "cross-encoder" or spec.truncation != "document-first":
        return np.zeros(len(work), bool)
    reader = input_reader(setup.checkpoint, spec, trust_remote_code=setup.trust_remote_code)
    other = replace(reader, spec=replace(spec, truncation="longest-first")).pair_work(pairs)
    same = [row in work.faults or np.array_equal(_ids(work, row), _ids(other, row)) for row in range(len(work))]
    is_other: NDArray[np.bool_] = (work.cut > 0) & ~np.array(same)
    return is_other


def _ids(work: Work, row: int) -> NDArray[np.int32]:
    """Token ids of a row's pair, or of its document."""
    return work.items.take(work.right[row : row + 1]).ids


_PASSED_ON = {
    "score_type",
    "max_length",
    "query_prompt",
    "document_prompt",
    "system_prompt",
    "dimensions",
    "similarity",
}
_PASSED_ON |= {"query_length", "document_length", "logit_mean", "logit_sigma", "truncation", "truncation_side"}
_PASSED_ON |= {"max_tokens_per_query", "max_tokens_per_doc"}  # not passed on, but pairs that are cut are left out


def _reference_notes(spec: ModelSpec, reference: Reference, work: Work) -> list[str]:
    """What a reader should know about the comparison."""
    notes = list(reference.notes)
    others = {
        str(source)
        for name, source in spec.sources.items()
        if source.kind in ("user", "config") and name not in _PASSED_ON
    }
    if reference.library == "sentence-transformers" and others:
        notes.append(
            f"not passed on to the reference, which reads the checkpoint's own files: {', '.join(sorted(others))}"
        )
    if spec.arch.vision is not None:
        notes.append("the pairs are texts: how images are read is not compared")
    if not work.cut.any():
        notes.append(
            f"no pair is as long as max_length {spec.max_length}: a lower --max-length would test how texts are cut"
        )
    return notes


def _token_notes(found: Verification, reference: Reference) -> list[str]:
    """Whether differences begin with the tokens: the first question about one."""
    assert found.to_reference is not None
    rows = np.flatnonzero(found.to_reference.differences > found.tolerance).tolist()
    if not rows or reference.given_ids:
        return []
    spec = found.setup.spec
    reader = input_reader(found.setup.checkpoint, spec, trust_remote_code=found.setup.trust_remote_code)
    other = []
    for row in rows:
        texts = [found.pairs[row].query, found.pairs[row].document]
        items, _ = reader.tokenizer.tokenize(prefixed(Cells(texts, np.arange(2, dtype=np.int32)), ""), ALL)
        if items.ids.tolist() != [token for text in texts for token in reference.tokenize(text)]:
            other.append(str(row + 1))
    if not other:
        return ["the tokens of the texts are the same; what follows them differs"]
    return [f"the reference's tokenizer makes other tokens of the texts of pair {', '.join(other)}"]
