"""How large a model is: its numbers, and the matrix products that a token takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchscore.models.load import LoadedModel

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Of a token in a layer: its state, the state before it, queries, keys, values and what attention gives, and the wide
# state before and after the activation.
_STATES, _WIDE_STATES = 6, 2


Products = Mapping[tuple[int, int], int]  # (numbers in, numbers out) of a linear layer -> layers


def products_of(body: Any) -> Products:
    """The matrix products of a token in a body, or in what is left of it where a layer runs for few tokens."""
    # our own layers in the place of `nn.Linear` have its sizes under the same names
    sizes = ((getattr(part, "in_features", 0), getattr(part, "out_features", 0)) for part in body.modules())
    return Counter(size for size in sizes if all(size))


def flops_of(products: Products) -> int:
    """Multiplications and additions of a token in linear layers; attention comes on top."""
    return 2 * sum(rows * columns * layers for (rows, columns), layers in products.items())


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Of a model as it is in its files."""

    body: int  # numbers
    head: int
    width: int  # of a token's state
    widest: int  # state inside a layer

    @classmethod
    def of(cls, model: LoadedModel) -> ModelSize:
        """Of a model without weights; sizes of 0 where not even their shapes are known."""
        head = sum(part.numel() for module in (model.token_head, model.head) if module for part in module.parameters())
        if not model.bodies:
            return cls(0, head, 0, 0)
        body: Any = model.bodies[-1]
        numbers = sum(part.numel() for each in model.bodies for part in each.parameters())
        width = int(getattr(body.config, "hidden_size", body.get_input_embeddings().embedding_dim))
        return cls(numbers, head, width, max((max(shape) for shape in products_of(body)), default=width))

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of the loaded weights; the head is float32."""
        return self.body * _BYTES[dtype] + self.head * 4

    def pack_bytes(self, dtype: str, tokens: int) -> int:
        """Bytes that a pack of so many tokens takes on its way through a layer, roughly."""
        return tokens * (_STATES * self.width + _WIDE_STATES * self.widest) * _BYTES[dtype]
