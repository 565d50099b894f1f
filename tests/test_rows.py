"""Every architecture scores as plain transformers does with one sequence at a time, and no batch can be seen in a score.

A row's tensors come from more_checkpoints.py, where transformers' own class holds them as well. What a published model
does with these, its prompt, the token it is read at and its head, is written here a second time, without batchscore.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cosine_similarity, gelu, layer_norm, linear, normalize, relu

import more_checkpoints
from batchscore import Scorer
from batchscore.errors import InputError, UsageError
from batchscore.models.arch import ARCHITECTURES
from batchscore.types import Pairs, Texts
from checkpoints import WORDS

CLOSE = {"cross-encoder": 1e-5, "bi-encoder": 1e-5, "late-interaction": 1e-4}  # of a score to a reference's
Tiny = Callable[[str], str]

# repeats on both sides, several scripts, one word, and texts longer than any sliding window
QUERIES = ["what is a bird", "river", "How do people READ in 2024?", "东京 naïve café", "river", "search index"]
DOCUMENTS = ["the bird is small", "A river runs from the mountain, and the old bridge is over it!", "people read"]
DOCUMENTS += ["你好世界 🙂 (Paper)", "the bird is small", "what is a bird"]
LONG = " ".join(WORDS * 8)  # more tokens than any row takes

# ---- references


@dataclass(frozen=True)
class Reference:
    """A row as plain transformers holds it."""

    tokenizer: Tokenizer
    net: Any
    extra: dict[str, Tensor]  # tensors of the checkpoint that the class does not have

    def ids(self, text: str) -> list[int]:
        """With the tokens that the tokenizer puts around any text."""
        found: list[int] = self.tokenizer.encode(text).ids
        return found

    def pieces(self, *texts: str) -> list[int]:
        """Texts tokenised each by itself and joined, with the tokens around any text."""
        around = self.ids("")
        parts = [self.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        return [*around, *(token for part in parts for token in part)]

    def token(self, text: str) -> int:
        found = self.tokenizer.token_to_id(text)
        assert found is not None, f"{text!r} is not in the vocabulary"
        return int(found)

    def states(self, ids: Sequence[int], **inputs: Tensor) -> Tensor:
        """float32 [tokens, dim]: the last hidden states of one sequence."""
        states: Tensor = self.net.base_model(input_ids=torch.tensor([ids]), **inputs).last_hidden_state
        return states[0]

    def logits(self, ids: Sequence[int], **inputs: Tensor) -> Tensor:
        """float32 [tokens, vocabulary] or [labels]."""
        logits: Tensor = self.net(input_ids=torch.tensor([ids]), **inputs).logits
        return logits[0]


States = Callable[[Reference, Sequence[int]], Tensor]
Pool = Callable[[Tensor], Tensor]
Score = Callable[[Reference, str, str], Tensor]


def causal_or_not(reference: Reference, ids: Sequence[int]) -> Tensor:
    """As the class has it."""
    return reference.states(ids)


def both_ways(reference: Reference, ids: Sequence[int]) -> Tensor:
    """A causal class that is shown every token: a mask of four dimensions is taken as it is."""
    return reference.states(ids, attention_mask=torch.zeros(1, 1, len(ids), len(ids)))


def first(states: Tensor) -> Tensor:
    return states[0]


def last(states: Tensor) -> Tensor:
    return states[-1]


def mean(states: Tensor) -> Tensor:
    return states.mean(0)


# ---- bi-encoders


@dataclass(frozen=True)
class Cosine:
    """Two vectors and the angle between them."""

    pool: Pool
    prompts: tuple[str, str] = ("", "")
    states: States = causal_or_not
    end: str = ""  # a token that tokenizer_config.json asks for and tokenizer.json does not add
    project: Callable[[Reference, Tensor], Tensor] = lambda reference, vector: vector
    skip_prompt: bool = False

    def __call__(self, reference: Reference, query: str, document: str) -> Tensor:
        sides = zip((query, document), self.prompts, strict=True)
        vectors = [self.vector(reference, prompt, text) for text, prompt in sides]
        return cosine_similarity(*vectors, dim=0)

    def vector(self, reference: Reference, prompt: str, text: str) -> Tensor:
        ids = reference.ids(prompt + text) + [reference.token(token) for token in [self.end] if token]
        states = self.states(reference, ids)
        left_out = len(reference.ids(prompt)) if self.skip_prompt else 0
        return self.project(reference, self.pool(states[left_out:])).double()


def splade(reference: Reference, query: str, document: str) -> Tensor:
    """log(1 + relu(logit)) of every word of the vocabulary, its maximum over all tokens."""
    logits = [reference.logits(reference.ids(text)) for text in (query, document)]
    return cosine_similarity(*(relu(each).log1p().amax(0).double() for each in logits), dim=0)


def two_dense(reference: Reference, vector: Tensor) -> Tensor:
    return linear(linear(vector, reference.extra["2_Dense.linear.weight"]), reference.extra["3_Dense.linear.weight"])


def one_linear(reference: Reference, vector: Tensor) -> Tensor:
    return linear(vector, reference.extra["linear.weight"])


def nomic_moe(reference: Reference, ids: Sequence[int]) -> Tensor:
    """nomic-embed-text-v2-moe, of which transformers has no class: every token goes to its two best experts."""
    sizes, tensors = more_checkpoints.MOE, reference.extra
    heads, epsilon = 2, sizes["layer_norm_epsilon"]

    def apply(name: str, states: Tensor) -> Tensor:
        return linear(states, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def norm(name: str, states: Tensor) -> Tensor:
        return layer_norm(states, states.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], epsilon)

    def rotated(states: Tensor) -> Tensor:
        half = states.shape[-1] // 2
        speeds = sizes["rotary_emb_base"] ** -(torch.arange(half) / half)
        angles = torch.arange(len(ids))[:, None] * speeds
        left, right = states[..., :half], states[..., half:]
        return torch.cat((left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()), -1)

    def attended(name: str, states: Tensor) -> Tensor:
        query, key, value = apply(f"{name}.Wqkv", states).view(len(ids), 3, heads, -1).permute(1, 2, 0, 3)
        weights = (rotated(query) @ rotated(key).mT * query.shape[-1] ** -0.5).softmax(-1)
        return apply(f"{name}.out_proj", (weights @ value).transpose(0, 1).flatten(1))

    def mixed(name: str, token: Tensor) -> Tensor:
        chances, chosen = apply(f"{name}.router.layer", token).softmax(-1).topk(sizes["moe_top_k"])
        total = tensors[f"{name}.experts.bias"].clone()
        for chance, expert in zip(chances, chosen, strict=True):
            up, down = (tensors[f"{name}.experts.mlp.{part}"].view(sizes["num_experts"], -1, len(token))[expert] for part in ("w1", "w2"))
            total += chance * (gelu(up @ token) @ down)
        return total

    states = tensors["embeddings.word_embeddings.weight"][list(ids)] + tensors["embeddings.token_type_embeddings.weight"][0]
    states = norm("emb_ln", states)
    for layer in ("encoder.layers.0", "encoder.layers.1"):
        states = norm(f"{layer}.norm1", states + attended(f"{layer}.attn", states))
        if layer.endswith("1"):
            change = torch.stack([mixed(f"{layer}.mlp", token) for token in states])
        else:
            change = apply(f"{layer}.mlp.fc2", gelu(apply(f"{layer}.mlp.fc1", states)))
        states = norm(f"{layer}.norm2", states + change)
    return states


# ---- cross-encoders

Read = Callable[[Reference, Sequence[int]], Tensor]


def classified(reference: Reference, ids: Sequence[int]) -> Tensor:
    """The logit of transformers' own classifier."""
    return reference.logits(ids)[0]


def answer(*tokens: str, scale: float = 1.0) -> Read:
    """What the language model says next: the logit of the last of `tokens`, less that of the one before it."""

    def read(reference: Reference, ids: Sequence[int]) -> Tensor:
        *others, wanted = reference.logits(ids)[-1, [reference.token(token) for token in tokens]]
        return (wanted - sum(others)) / scale

    return read


def scored(reference: Reference, ids: Sequence[int]) -> Tensor:
    return reference.extra["score.weight"][0] @ reference.states(ids)[-1]


def layerwise(head: int, layers: int) -> Read:
    """The head that was trained on the states after so many layers."""

    def read(reference: Reference, ids: Sequence[int]) -> Tensor:
        every = reference.net.layers
        reference.net.layers = every[:layers]
        state = reference.states(ids)[-1]
        reference.net.layers = every
        return reference.extra[f"lm_head.{head}.linear_head.weight"][0] @ state

    return read


def nemotron(reference: Reference, ids: Sequence[int]) -> Tensor:
    """The mean of all tokens, and a temperature."""
    logit: Tensor = reference.net.score(both_ways(reference, ids).mean(0))[0]
    return logit / 0.2


@dataclass(frozen=True)
class Pair:
    """A query and a document as two segments of the tokenizer."""

    types: bool = False  # the model tells the segments apart

    def __call__(self, reference: Reference, query: str, document: str) -> Tensor:
        encoding = reference.tokenizer.encode(query, document)
        types = {"token_type_ids": torch.tensor([encoding.type_ids])} if self.types else {}
        return reference.logits(encoding.ids, **types)[0]


@dataclass(frozen=True)
class Prompt:
    """One text made of both. A template in pieces is tokenised piece by piece."""

    pieces: Callable[[str, str], Sequence[str]]
    read: Read = classified

    def __call__(self, reference: Reference, query: str, document: str) -> Tensor:
        return self.read(reference, reference.pieces(*self.pieces(query, document)))

    def suffix(self) -> Sequence[str]:
        """The pieces behind the document's."""
        pieces = list(self.pieces("", "\0"))
        place = next(n for n, piece in enumerate(pieces) if "\0" in piece)
        return [pieces[place].partition("\0")[2], *pieces[place + 1 :]]


def one_text(form: str) -> Callable[[str, str], Sequence[str]]:
    return lambda query, document: [form.format(q=query, d=document)]


BASIC = "Query: {q}\nDocument: {d}"
SYSTEM = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n"
QWEN3 = 'Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be "yes" or "no".'
QWEN3_TASK = "Given a web search query, retrieve relevant passages that answer the query"
MXBAI = "You are a search relevance expert who evaluates how well documents match search queries. For each query-document pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:"
BGE = "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a prediction of either 'Yes' or 'No'."


def qwen3_reranker(query: str, document: str) -> Sequence[str]:
    body = f"<Instruct>: {QWEN3_TASK}\n<Query>: {query}\n<Document>: {document}"
    return [SYSTEM.format(QWEN3), body, "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"]


def mxbai(query: str, document: str) -> Sequence[str]:
    system = SYSTEM.format("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
    sides = f"query: {query}", "\n", f"document: {document}", "\n"
    return [system, *sides, MXBAI, "<|im_end|>\n<|im_start|>assistant\n"]


def bge(query: str, document: str) -> Sequence[str]:
    return [f"A: {query}", "\n", f"B: {document}", "\n", BGE]


def zerank(query: str, document: str) -> Sequence[str]:
    return [f"{SYSTEM.format(query)}{document}<|im_end|>\n<|im_start|>assistant\n"]


JINA = "You are a search relevance expert who can determine a ranking of the passages based on how relevant they are to the query. If the query is a question, how relevant a passage is depends on how well it answers the question. If not, try to analyze the intent of the query and assess how well each passage satisfies the intent. If an instruction is provided, you should follow the instruction when determining the ranking."
JINA_TASK = "I will provide you with {} passages, each indicated by a numerical identifier. Rank the passages based on their relevance to query: {}\n"
JINA_END = "</query><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def jina_list(reference: Reference, query: str, documents: Sequence[str]) -> list[float]:
    """Cosines of the states at the mark behind each document with that behind the query."""
    passages = "".join(
        f'<passage id="{n}">\n{text}<|embed_token|>\n</passage>\n' for n, text in enumerate(documents)
    )
    task = JINA_TASK.format(len(documents), query)
    ids = reference.ids(f"{SYSTEM.format(JINA)}{task}{passages}<query>\n{query}<|rerank_token|>\n{JINA_END}")
    states = reference.states(ids)
    up, down = (reference.extra[f"projector.{n}.weight"] for n in (0, 2))
    marks = [
        linear(relu(linear(states[torch.tensor(ids) == reference.token(token)], up)), down)
        for token in ("<|rerank_token|>", "<|embed_token|>")
    ]
    found: list[float] = cosine_similarity(*marks, dim=1).tolist()
    return found


def jina_alone(reference: Reference, query: str, document: str) -> Tensor:
    return torch.tensor(jina_list(reference, query, [document])[0])


# ---- late interaction


def maxsim(queries: Tensor, documents: Tensor) -> Tensor:
    """The sum over query tokens of their best cosine."""
    products = normalize(queries.double(), dim=1) @ normalize(documents.double(), dim=1).T
    return products.amax(1).sum()


def all_tokens(reference: Reference, query: str, document: str) -> Tensor:
    return maxsim(*(reference.states(reference.ids(text)) for text in (query, document)))


def bge_m3(reference: Reference, query: str, document: str) -> Tensor:
    """All but the first token, projected; the mean over query tokens."""
    weight, bias = (reference.extra[f"colbert_linear.pt.{part}"] for part in ("weight", "bias"))
    sides = [linear(reference.states(reference.ids(text))[1:], weight, bias) for text in (query, document)]
    return maxsim(*sides) / len(sides[0])


@dataclass(frozen=True)
class ColBert:
    """A marker behind the first token, queries filled up, punctuation of documents left out."""

    markers: tuple[str, str]
    filler: str
    attends: bool
    weight: str = "linear.weight"
    lengths: tuple[int, int] = (16, 48)

    def __call__(self, reference: Reference, query: str, document: str) -> Tensor:
        queries, documents = (self.marked(reference, text, side) for side, text in enumerate((query, document)))
        missing = self.lengths[0] - len(queries)
        seen = torch.tensor([[1] * len(queries) + [int(self.attends)] * missing])
        queries += [reference.token(self.filler)] * missing
        known = reference.tokenizer.get_vocab()
        skipped = {known[mark] for mark in more_checkpoints.string.punctuation if mark in known}
        kept = torch.tensor([token not in skipped for token in documents])
        states = reference.states(queries, attention_mask=seen), reference.states(documents)[kept]
        return maxsim(*(linear(each, reference.extra[self.weight]) for each in states))

    def marked(self, reference: Reference, text: str, side: int) -> list[int]:
        """Cut to its side's length, the last token kept, and marked."""
        begin, *ids = reference.ids(text)
        room = self.lengths[side] - 2
        end = reference.tokenizer.num_special_tokens_to_add(False) - 1
        ids = ids if len(ids) <= room else [*ids[: room - end], *ids[len(ids) - end :]]
        return [begin, reference.token(self.markers[side]), *ids]


# ---- rows


@dataclass(frozen=True)
class Row:
    score: Score
    options: dict[str, Any] = field(default_factory=dict)  # of Scorer, as a user of the model passes them
    checkpoint: str = ""  # if not of the row's name
    adapter: str = ""  # in the reference's tensors


def _named(architecture: str) -> dict[str, Any]:
    return {"hf_overrides": {"architectures": [architecture]}}


BASIC_TEMPLATE = {"chat_template": "basic"}
PLAIN, MEAN, LAST = Row(Cosine(first)), Row(Cosine(mean)), Row(Cosine(last))
SPLADE, PAIR, TYPED_PAIR = Row(splade), Row(Pair()), Row(Pair(types=True))
BASIC_PAIR = Row(Prompt(one_text(BASIC)), BASIC_TEMPLATE)
QWEN3_PAIR = Prompt(qwen3_reranker, answer("no", "yes")), {"config": "qwen3-reranker"}
MARKED = ColBert(("[Q] ", "[D] "), "[MASK]", attends=False, weight="1_Dense.linear.weight")
JINA_MARKED = ColBert(("[QueryMarker]", "[DocumentMarker]"), "<mask>", attends=True)
LATE = {"score_type": "late-interaction"}
BGE_CUT = {"truncation": "document-first", "max_length": PROMPT_LENGTH} if (PROMPT_LENGTH := 600) else {}
