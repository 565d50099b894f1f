"""Where only first tokens are read, the last layer runs for them alone; nobody can tell from the scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import AutoModel

import checkpoints
from batchscore import Scorer
from batchscore.runners.first_token import last_layer_at_first_tokens
from batchscore.runners.sequences import Sequences

Tiny = Callable[[str], str]
LENGTHS = [9, 5, 5, 5, 2, 1]


@pytest.mark.parametrize("name", ["bert_ce", "roberta_ce", "xlmr_cls"])
def test_the_last_layer_gives_first_tokens_what_it_gives_them_among_all(tiny: Tiny, name: str) -> None:
    """Against the layer itself, one sequence at a time, in transformers' own attention."""
    layer = AutoModel.from_pretrained(tiny(name)).eval().encoder.layer[-1]
    sequences = Sequences.of(np.array(LENGTHS), None, torch.from_numpy)
    hidden = torch.randn(sum(LENGTHS), checkpoints.HIDDEN, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = last_layer_at_first_tokens(layer, hidden, sequences)
        expected = [_output(layer(part[None]))[0, 0] for part in hidden.split(LENGTHS)]

    assert torch.allclose(output, torch.stack(expected), atol=1e-6)


def _output(result: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize(
    ("name", "options", "alone"),
    [
        ("bert_ce", {}, True),
        ("roberta_ce", {}, True),
        ("bert_cls", {}, True),
        ("bert_plain", {}, True),
        ("bert_mean", {}, False),
        ("bert_concat", {}, False),
        ("bert_cls", {"score_type": "late-interaction"}, False),
        ("bert_ce", {"padded": True}, False),
        ("bert_plain", {"hf_overrides": {"is_decoder": True}}, False),
        ("xlmr_cls", {"hf_overrides": {"is_decoder": True}}, False),
    ],
)
def test_it_is_done_only_where_first_tokens_are_all_that_is_read(
    tiny: Tiny, name: str, options: dict[str, object], alone: bool
) -> None:
    runner = Scorer(tiny(name), **options).batcher._runner  # type: ignore[arg-type]

    assert (runner.last_layer is not None) == alone  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["bert_plain", "xlmr_cls", "bert_ce", "roberta_ce"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_first_token_of_an_encoder_made_causal_sees_itself_alone(tiny: Tiny, name: str, padded: bool) -> None:
    """So that all texts score alike; `is_decoder` stands in some encoders' config.json."""
    causal = Scorer(tiny(name), dtype="float32", padded=padded, hf_overrides={"is_decoder": True})
    plain = Scorer(tiny(name), dtype="float32", padded=padded)

    texts = ["a dog", "the old cat", "light over water"]
    assert np.ptp(causal.score("what is a cat", texts)) < 1e-6
    assert np.ptp(plain.score("what is a cat", texts)) > 1e-5
