"""A table of token vectors and nothing else: sentence-transformers' StaticEmbedding, and model2vec's models."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn


class StaticEmbedding(nn.Module):
    """[batch, tokens] ids to [batch, tokens, dim] rows of a table, in float32 whatever is asked for.

    Looking a row up costs no arithmetic that fewer bits would make faster.
    """

    _supports_attention_backend = True  # each token stands for itself, so sequences may lie end to end

    def __init__(self, table: Tensor, config: Any) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding.from_pretrained(table)

    @classmethod
    def from_pretrained(
        cls, _: None, *, config: Any, state_dict: Mapping[str, Tensor], **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """(the model, a report of its tensors), as transformers' classes give them."""
        tensors = dict(state_dict)
        table = tensors.pop("embedding.weight", tensors.pop("embeddings", None))
        if table is None:
            return None, {"missing_keys": ["embedding.weight"], "mismatched_keys": [], "unexpected_keys": []}
        # model2vec lets several tokens share a row, and weighs tokens: the row of a token is rows[mapping] * weights
        mapping, weights = tensors.pop("mapping", None), tensors.pop("weights", None)
        table = (table if mapping is None else table[mapping.long()]).float()
        table = table if weights is None else table * weights.float()[:, None]
        return cls(table, config), {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": list(tensors)}

    def set_attn_implementation(self, name: str) -> None:
        """Nothing: there is no attention."""

    def get_input_embeddings(self) -> Any:
        """The table."""
        return self.embedding

    def forward(self, input_ids: Tensor, **keywords: Any) -> SimpleNamespace:
        """`last_hidden_state` [batch, tokens, dim]."""
        return SimpleNamespace(last_hidden_state=self.embedding(input_ids))
