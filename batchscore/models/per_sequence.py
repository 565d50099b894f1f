"""Models that transformers runs beyond the states of tokens, in the shape of a body.

What such a model gives for a sequence stands at each of its tokens, so that any readout finds it there.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn


class PerSequence(nn.Module):
    """[n, tokens] ids to [n, tokens, out]: the same for all tokens of a sequence.

    Args:
        model: one of transformers' classes.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_input_embeddings(self) -> Any:
        """The table of token vectors."""
        return self.model.get_input_embeddings()

    def forward(self, input_ids: Tensor, **inputs: Tensor) -> SimpleNamespace:
        """`last_hidden_state` [n, tokens, out]."""
        output = self.output(input_ids, **inputs)
        return SimpleNamespace(last_hidden_state=output[:, None].expand(-1, input_ids.shape[1], -1))

    def output(self, input_ids: Tensor, **inputs: Tensor) -> Tensor:
        """[n, out]."""
        raise NotImplementedError


class Logits(PerSequence):
    """A classifier with its own head."""

    def output(self, input_ids: Tensor, **inputs: Tensor) -> Tensor:
        """[n, labels]."""
        logits: Tensor = self.model(input_ids, **inputs).logits
        return logits


class FirstStep(PerSequence):
    """The state from which a T5 chooses the first token of its answer, scaled as its output embeddings expect it."""

    def output(self, input_ids: Tensor, **inputs: Tensor) -> Tensor:
        """[n, dim]."""
        first = getattr(self.config, "decoder_start_token_id", None)
        start = input_ids.new_full((len(input_ids), 1), self.config.pad_token_id if first is None else first)
        output = self.model(input_ids, decoder_input_ids=start, use_cache=False, **inputs)
        state: Tensor = output.last_hidden_state[:, 0]
        return state * self.config.d_model**-0.5 if getattr(self.config, "scale_decoder_outputs", False) else state


PER_SEQUENCE: dict[str, type[PerSequence]] = {"logit": Logits, "decoder": FirstStep}
