"""Every architecture scores as plain transformers does one sequence at a time, and no batch can be seen in a score.

A row's tensors come from more_checkpoints.py, where transformers' own class holds them as well. What a published model
does with these, its prompt, the token it is read at and its head, is written here a second time, without batchscore.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cosine_similarity, gelu, layer_norm, linear, normalize, relu

import more_checkpoints
from batchscore import Scorer
from batchscore.errors import InputError, UsageError
from batchscore.models.arch import ARCHITECTURES, supported
from batchscore.models.open import open_model
from batchscore.types import CUT_DOCUMENT, CUT_QUERY, Cells, Pairs
from checkpoints import WORDS
from threads import one_thread
from windows import score_work

CLOSE = {"cross-encoder": 1e-5, "bi-encoder": 1e-5, "late-interaction": 1e-4}  # of a score to a reference's
Floats = NDArray[np.float32]
Tiny = Callable[[str], str]

# repeats on both sides, several scripts, one word, and texts longer than any sliding window
QUERIES = ["what is a bird", "river", "How do people READ in 2024?", "东京 naïve café", "river", "search index"]
DOCUMENTS = ["the bird is small", "A river runs from the mountain, and the old bridge is over it!", "people read"]
DOCUMENTS += ["你好世界 🙂 (Paper)", "the bird is small", "what is a bird"]
LONG = " ".join(WORDS * 8)  # more tokens than any row takes


# ---- references: no code of batchscore's


class NoTokenError(Exception):
    """A text that gives the model nothing to read."""


@dataclass(frozen=True)
class Reference:
    """A row as plain transformers holds it."""

    tokenizer: Tokenizer
    net: Any
    extra: dict[str, Tensor]  # tensors of the checkpoint that the class does not have

    def ids(self, text: str) -> list[int]:
        """Token ids, with those the tokenizer puts around any text."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def joined(self, pieces: Sequence[str]) -> list[int]:
        """Token ids of pieces that are tokenized each by itself, behind what the tokenizer puts before any text."""
        encoded = [self.tokenizer.encode(piece, add_special_tokens=False).ids for piece in pieces]
        return [*self.ids(""), *(token for ids in encoded for token in ids)]

    def token(self, text: str) -> int:
        """The id of a token by its name."""
        found = self.tokenizer.token_to_id(text)
        assert found is not None, f"{text!r} is not in the vocabulary"
        return int(found)

    def states(self, ids: Sequence[int], **inputs: Tensor) -> Tensor:
        """float32 [tokens, dim]: the last hidden states of one sequence."""
        if not ids:
            raise NoTokenError
        states: Tensor = self.net.base_model(input_ids=torch.tensor([ids]), **inputs).last_hidden_state
        return states[0]

    def logits(self, ids: Sequence[int], **inputs: Tensor) -> Tensor:
        """float32 [tokens, vocabulary], or [1] of a classifier."""
        if not ids:
            raise NoTokenError
        logits: Tensor = self.net(input_ids=torch.tensor([ids]), **inputs).logits
        return logits[0]


Score = Callable[[Reference, str, str], Tensor]  # of a query and a document
States = Callable[[Reference, Sequence[int]], Tensor]  # [tokens, dim] of one sequence
Read = Callable[[Reference, Sequence[int]], Tensor]  # one logit of one sequence


def as_built(reference: Reference, ids: Sequence[int]) -> Tensor:
    return reference.states(ids)


def both_ways(reference: Reference, ids: Sequence[int]) -> Tensor:
    """A causal class that sees every token: it takes a mask of four dimensions as it is."""
    return reference.states(ids, attention_mask=torch.zeros(1, 1, len(ids), len(ids)))


def encoded(reference: Reference, ids: Sequence[int]) -> Tensor:
    """The states of an encoder-decoder's encoder."""
    if not ids:
        raise NoTokenError
    states: Tensor = reference.net.encoder(input_ids=torch.tensor([ids])).last_hidden_state
    return states[0]


def first(states: Tensor) -> Tensor:
    return states[0]


def last(states: Tensor) -> Tensor:
    return states[-1]


def mean(states: Tensor) -> Tensor:
    return states.sum(0) / max(1, len(states))


# ---- bi-encoders


def unchanged(reference: Reference, vector: Tensor) -> Tensor:
    return vector


def one_linear(reference: Reference, vector: Tensor) -> Tensor:
    return linear(vector, reference.extra["linear.weight"])


def one_dense(reference: Reference, vector: Tensor) -> Tensor:
    return linear(vector, reference.extra["2_Dense.linear.weight"])


def two_dense(reference: Reference, vector: Tensor) -> Tensor:
    return linear(linear(vector, reference.extra["2_Dense.linear.weight"]), reference.extra["3_Dense.linear.weight"])


@dataclass(frozen=True)
class Cosine:
    """A vector for each side."""

    pool: Callable[[Tensor], Tensor]
    prompts: tuple[str, str] = ("", "")
    states: States = as_built
    project: Callable[[Reference, Tensor], Tensor] = unchanged
    end: str = ""  # a token that tokenizer_config.json asks for and tokenizer.json does not add
    skip_prompt: bool = False

    def __call__(self, reference: Reference, query: str, document: str) -> Tensor:
        sides = zip(self.prompts, (query, document), strict=True)
        queries, documents = (self.vector(reference, prompt, text) for prompt, text in sides)
        return cosine_similarity(queries, documents, dim=0)

    def vector(self, reference: Reference, prompt: str, text: str) -> Tensor:
        ids = reference.ids(prompt + text) + ([reference.token(self.end)] if self.end else [])
        skipped = len(reference.ids(prompt)) if self.skip_prompt else 0
        return self.project(reference, self.pool(self.states(reference, ids)[skipped:])).double()


def splade(reference: Reference, query: str, document: str) -> Tensor:
    """log(1 + relu(logit)) of every word of the vocabulary, its maximum over all tokens."""
    logits = [reference.logits(reference.ids(text)) for text in (query, document)]
    queries, documents = (relu(each).log1p().amax(0).double() for each in logits)
    return cosine_similarity(queries, documents, dim=0)


@dataclass(frozen=True)
class Adapted:
    """jina-embeddings-v3: the mean of each side's states under its own adapter."""

    tasks: tuple[str, str]
    prompts: tuple[str, str] = ("", "")

    def __call__(self, reference: Reference, query: str, document: str) -> Tensor:
        queries, documents = (
            replace(reference, net=_adapted_net(task)).states(reference.ids(prompt + text)).mean(0).double()
            for task, prompt, text in zip(self.tasks, self.prompts, (query, document), strict=True)
        )
        return cosine_similarity(queries, documents, dim=0)


@cache
def _adapted_net(task: str) -> Any:
    return more_checkpoints.native("jina_v3", task)[0]


def static(reference: Reference, query: str, document: str) -> Tensor:
    """The mean of rows of a table, model2vec's with a weight for each; no special tokens."""
    tensors = reference.extra
    table = tensors["embedding.weight"] if "embedding.weight" in tensors else tensors["embeddings"]
    if "weights" in tensors:
        table = table * tensors["weights"][:, None]

    def vector(text: str) -> Tensor:
        ids = reference.tokenizer.encode(text, add_special_tokens=False).ids
        if not ids:
            raise NoTokenError
        return table[ids].mean(0).double()

    return cosine_similarity(vector(query), vector(document), dim=0)


def nomic_moe(reference: Reference, ids: Sequence[int]) -> Tensor:
    """nomic-embed-text-v2-moe, for which transformers has no class."""
    sizes, tensors = more_checkpoints.MOE, reference.extra

    def apply(name: str, states: Tensor) -> Tensor:
        return linear(states, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def norm(name: str, states: Tensor) -> Tensor:
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return layer_norm(states, weight.shape, weight, bias, sizes["layer_norm_epsilon"])

    def rotated(states: Tensor) -> Tensor:
        left, right = states.chunk(2, -1)
        speeds = sizes["rotary_emb_base"] ** -(torch.arange(left.shape[-1]) / left.shape[-1])
        angles = torch.arange(len(ids))[:, None] * speeds
        return torch.cat((left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()), -1)

    def attended(name: str, states: Tensor) -> Tensor:
        query, key, value = apply(f"{name}.Wqkv", states).view(len(ids), 3, 2, -1).permute(1, 2, 0, 3)
        weights = (rotated(query) @ rotated(key).mT * query.shape[-1] ** -0.5).softmax(-1)
        return apply(f"{name}.out_proj", (weights @ value).transpose(0, 1).flatten(1))

    def mixed(name: str, token: Tensor) -> Tensor:
        """The token's best experts, weighed by chances that need not sum to 1."""
        chances, experts = apply(f"{name}.router.layer", token).softmax(-1).topk(sizes["moe_top_k"])
        shape = sizes["num_experts"], -1, len(token)
        up, down = (tensors[f"{name}.experts.mlp.{part}"].view(shape)[experts] for part in ("w1", "w2"))
        return (chances[:, None] * (gelu(up @ token)[:, None] @ down)[:, 0]).sum(0) + tensors[f"{name}.experts.bias"]

    def fed_forward(name: str, states: Tensor) -> Tensor:
        if name.startswith("encoder.layers.1."):
            return torch.stack([mixed(name, token) for token in states])
        return apply(f"{name}.fc2", gelu(apply(f"{name}.fc1", states)))

    words, types = (tensors[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "token_type"))
    states = norm("emb_ln", words[list(ids)] + types[0])
    for layer in ("encoder.layers.0", "encoder.layers.1"):
        states = norm(f"{layer}.norm1", states + attended(f"{layer}.attn", states))
        states = norm(f"{layer}.norm2", states + fed_forward(f"{layer}.mlp", states))
    return states


# ---- cross-encoders


@dataclass(frozen=True)
class Segments:
    """A query and a document as the tokenizer's own pair."""

    typed: bool = False  # the model tells the two apart

    def __call__(self, reference: Reference, query: str, document: str) -> Tensor:
        encoding = reference.tokenizer.encode(query, document)
        types = {"token_type_ids": torch.tensor([encoding.type_ids])} if self.typed else {}
        return reference.logits(encoding.ids, **types)[0]


@dataclass(frozen=True)
class MonoT5:
    """What a T5 answers first: the logit of one token less that of another."""

    other: str
    wanted: str

    def __call__(self, reference: Reference, query: str, document: str) -> Tensor:
        ids = reference.ids(f"Query: {query} Document: {document} Relevant:")
        begin = torch.tensor([[reference.net.config.decoder_start_token_id]])
        logits = reference.logits(ids, decoder_input_ids=begin)[0]
        return logits[reference.token(self.wanted)] - logits[reference.token(self.other)]


def classified(reference: Reference, ids: Sequence[int]) -> Tensor:
    """The logit of transformers' own classifier."""
    return reference.logits(ids)[0]


def scored(reference: Reference, ids: Sequence[int]) -> Tensor:
    """The same, where transformers has none."""
    return reference.extra["score.weight"][0] @ reference.states(ids)[-1]


def classified_with_bias(reference: Reference, ids: Sequence[int]) -> Tensor:
    """transformers' classifiers have none and leave it out."""
    return classified(reference, ids) + reference.extra["score.bias"][0]


def answer(*tokens: str, scale: float = 1.0) -> Read:
    """What a language model says next: the logit of the last of one or two tokens, less that of the other."""

    def read(reference: Reference, ids: Sequence[int]) -> Tensor:
        logits = reference.logits(ids)[-1]
        *other, wanted = (logits[reference.token(token)] for token in tokens)
        return (wanted - sum(other)) / scale

    return read


def layerwise(layers: int, head: int) -> Read:
    """The state after some layers, and the head that was trained on it."""

    def read(reference: Reference, ids: Sequence[int]) -> Tensor:
        every = reference.net.layers
        reference.net.layers = every[:layers]
        state = reference.states(ids)[-1]
        reference.net.layers = every
        return reference.extra[f"lm_head.{head}.linear_head.weight"][0] @ state

    return read


def nemotron(reference: Reference, ids: Sequence[int]) -> Tensor:
    """The mean of all tokens, and a temperature."""
    logits: Tensor = reference.net.score(both_ways(reference, ids).mean(0))
    return logits[0] / 0.2


Pieces = Callable[[str, str], Sequence[str]]


@dataclass(frozen=True)
class Prompt:
    """One prompt of a query and a document, tokenized in pieces."""

    pieces: Pieces
    read: Read

    def __call__(self, reference: Reference, query: str, document: str) -> Tensor:
        return self.read(reference, reference.joined(self.pieces(query, document)))


def whole(form: str) -> Pieces:
    return lambda query, document: [form.format(q=query, d=document)]


CHAT = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n"
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
NO_THOUGHT = "<think>\n\n</think>\n\n"
QWEN3 = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
QWEN3_TASK = "Given a web search query, retrieve relevant passages that answer the query"
MXBAI = (
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document "
    "pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment "
    "(0 for not relevant, 1 for relevant).\nRelevance:"
)
BGE = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)
JINA = (
    "You are a search relevance expert who can determine a ranking of the passages based on how relevant they are to "
    "the query. If the query is a question, how relevant a passage is depends on how well it answers the question. If "
    "not, try to analyze the intent of the query and assess how well each passage satisfies the intent. If an "
    "instruction is provided, you should follow the instruction when determining the ranking."
)
JINA_TASK = (
    "I will provide you with {} passages, each indicated by a numerical identifier. "
    "Rank the passages based on their relevance to query: {}\n"
)


def qwen3_reranker(query: str, document: str) -> Sequence[str]:
    body = f"<Instruct>: {QWEN3_TASK}\n<Query>: {query}\n<Document>: {document}"
    return [CHAT.format(QWEN3), body, ASSISTANT + NO_THOUGHT]


def mxbai(query: str, document: str) -> Sequence[str]:
    system = CHAT.format("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
    return [system, f"query: {query}", "\n", f"document: {document}", "\n", MXBAI, ASSISTANT]


def bge(query: str, document: str) -> Sequence[str]:
    return [f"A: {query}", "\n", f"B: {document}", "\n", BGE]


def zerank(query: str, document: str) -> Sequence[str]:
    return [CHAT.format(query) + document + ASSISTANT]


def jina_list(reference: Reference, query: str, documents: Sequence[str]) -> list[float]:
    """Cosines of the states at the mark behind each document with that at the mark behind the query."""
    passages = "".join(f'<passage id="{n}">\n{text}<|embed_token|>\n</passage>\n' for n, text in enumerate(documents))
    task = JINA_TASK.format(len(documents), query)
    end = f"<query>\n{query}<|rerank_token|>\n</query>{ASSISTANT}{NO_THOUGHT}"
    ids = reference.ids(CHAT.format(JINA) + task + passages + end)
    states, tokens = reference.states(ids), torch.tensor(ids)
    up, down = (reference.extra[f"projector.{n}.weight"] for n in (0, 2))
    asked, found = (
        linear(relu(linear(states[tokens == reference.token(mark)], up)), down)
        for mark in ("<|rerank_token|>", "<|embed_token|>")
    )
    cosines: list[float] = cosine_similarity(asked, found, dim=1).tolist()
    return cosines


def jina_alone(reference: Reference, query: str, document: str) -> Tensor:
    return torch.tensor(jina_list(reference, query, [document])[0])


# ---- late interaction


def maxsim(queries: Tensor, documents: Tensor) -> Tensor:
    """The sum over query tokens of their best cosine."""
    products = normalize(queries.double(), dim=1) @ normalize(documents.double(), dim=1).T
    return products.amax(1).sum()


def all_tokens(reference: Reference, query: str, document: str) -> Tensor:
    queries, documents = (reference.states(reference.ids(text)) for text in (query, document))
    return maxsim(queries, documents)


def bge_m3(reference: Reference, query: str, document: str) -> Tensor:
    """Of all tokens but the first, and the mean instead of the sum."""
    weight, bias = (reference.extra[f"colbert_linear.pt.{part}"] for part in ("weight", "bias"))
    queries, documents = (linear(reference.states(reference.ids(text))[1:], weight, bias) for text in (query, document))
    return maxsim(queries, documents) / len(queries)


@dataclass(frozen=True)
class ColBert:
    """A marker behind the first token, queries filled up to 16 tokens, documents without their punctuation."""

    markers: tuple[str, str]
    filler: str
    attends: bool  # to what queries are filled up with
    weight: str = "linear.weight"

    def __call__(self, reference: Reference, query: str, document: str) -> Tensor:
        queries = self.marked(reference, query, self.markers[0], 16)
        documents = self.marked(reference, document, self.markers[1], 48)
        missing = 16 - len(queries)
        seen = torch.tensor([[1] * len(queries) + [int(self.attends)] * missing])
        queries += [reference.token(self.filler)] * missing
        punctuation = {reference.tokenizer.token_to_id(mark) for mark in string.punctuation}
        kept = torch.tensor([token not in punctuation for token in documents])
        states = reference.states(queries, attention_mask=seen), reference.states(documents)[kept]
        return maxsim(*(linear(side, reference.extra[self.weight]) for side in states))

    def marked(self, reference: Reference, text: str, marker: str, length: int) -> list[int]:
        """Token ids, cut to make room for the marker as the tokenizer cuts."""
        reference.tokenizer.enable_truncation(length - 1)
        begin, *others = reference.ids(text)
        reference.tokenizer.no_truncation()
        return [begin, reference.token(marker), *others]


# ---- rows


@dataclass(frozen=True)
class Row:
    score: Score
    options: dict[str, Any] = field(default_factory=dict)  # of Scorer, as a user of the model passes them
    checkpoint: str = ""  # where it is not the row's name


def named(architecture: str, checkpoint: str, score: Score, **options: Any) -> Row:
    """A checkpoint under another of its architecture's names."""
    return Row(score, {"hf_overrides": {"architectures": [architecture]}, **options}, checkpoint)


def basic(read: Read, **options: Any) -> Row:
    """A language model with the shipped template that any may take."""
    return Row(Prompt(whole("Query: {q}\nDocument: {d}"), read), {"chat_template": "basic", **options})


SEGMENTS, TYPED, PLAIN, MEAN, LAST = (
    Row(score) for score in (Segments(), Segments(typed=True), Cosine(first), Cosine(mean), Cosine(last))
)
QWEN3_RERANKER = Row(Prompt(qwen3_reranker, answer("no", "yes")), {"config": "qwen3-reranker"})
# their own rules of cutting let a prompt be longer than max_length
WITHIN = {"truncation": "document-first"}
MINICPM = {"config": "bge-reranker-v2-minicpm-layerwise", **WITHIN}
LIGHTWEIGHT = {"config": "bge-reranker-v2.5-gemma2-lightweight", **WITHIN}
CONVERTED = {"classifier_from_token": ["No", "Yes"], "method": "from_2_way_softmax"}

CROSS_ENCODERS = {
    "bert_pairs": TYPED,
    "roberta_pairs": SEGMENTS,
    "xlmr_pairs": SEGMENTS,
    "xlmr_flash_pairs": SEGMENTS,
    "camembert_pairs": SEGMENTS,
    "new_pairs": SEGMENTS,
    "gte_new_pairs": named("GteNewForSequenceClassification", "new_pairs", Segments()),
    "gte_pairs": SEGMENTS,
    "modernbert_pairs_cls": SEGMENTS,
    "modernbert_pairs_mean": SEGMENTS,
    "deberta_pairs": SEGMENTS,
    "electra_pairs": TYPED,
    "ernie_pairs": TYPED,
    "distilbert_pairs": SEGMENTS,
    "mpnet_pairs": SEGMENTS,
    "albert_pairs": TYPED,
    "deberta_1_pairs": SEGMENTS,
    "megatron_pairs": TYPED,
    "xlmr_xl_pairs": SEGMENTS,
    "data2vec_pairs": SEGMENTS,
    "prelayernorm_pairs": SEGMENTS,
    "longformer_pairs": SEGMENTS,
    "eurobert_pairs_late": SEGMENTS,
    "eurobert_pairs_mean": SEGMENTS,
    "convbert_pairs": TYPED,
    "modernbert_decoder_pairs": SEGMENTS,
    "monot5": Row(MonoT5("▁false", "▁true")),
    "mono_mt5": Row(MonoT5("▁no", "▁yes")),
    "rotary_xlmr_pairs": SEGMENTS,
    "modernbert_epsilon_pairs": SEGMENTS,
    "llama_pairs": SEGMENTS,
    "mistral_pairs": Row(Prompt(whole("{q}{d}"), classified)),
    "qwen2_pairs": basic(classified),
    "qwen3_pairs": basic(classified),
    "gemma_pairs": SEGMENTS,
    "gemma2_pairs": basic(classified),
    "phi3_pairs": basic(classified),
    "granite_pairs": basic(scored),
    "qwen2_pairs_with_bias": basic(classified_with_bias),
    "bloom_pairs": basic(classified),
    "gpt2_pairs": basic(classified),
    "qwen3_reranker": QWEN3_RERANKER,
    "qwen3_reranker_untied": QWEN3_RERANKER,
    "qwen3_reranker_seq_cls": Row(Prompt(qwen3_reranker, classified), {"config": "qwen3-reranker"}),
    "mxbai_reranker": Row(Prompt(mxbai, answer("0", "1")), {"config": "mxbai-rerank-v2", **WITHIN}),
    "bge_gemma": Row(Prompt(bge, answer("Yes")), {"config": "bge-reranker-v2-gemma", **WITHIN}),
    "zerank": Row(Prompt(zerank, answer("Yes", scale=5.0)), {"config": "zerank-2"}),
    "llama_converted": basic(answer("No", "Yes"), convert="classify", hf_overrides=CONVERTED),
    "qwen2_model_with_score": basic(scored, convert="classify"),
    "nemotron_reranker": Row(
        Prompt(whole("question:{q} \n \n passage:{d}"), nemotron), {"config": "llama-nemotron-rerank"}
    ),
    "minicpm_layerwise": Row(Prompt(bge, layerwise(4, head=2)), MINICPM),
    "minicpm_layerwise_at_3": Row(
        Prompt(bge, layerwise(3, head=1)), {**MINICPM, "hf_overrides": {"cutoff_layers": 3}}, "minicpm_layerwise"
    ),
    "gemma2_lightweight": Row(Prompt(bge, layerwise(4, head=1)), LIGHTWEIGHT),
    "gemma2_lightweight_at_2": Row(
        Prompt(bge, layerwise(2, head=0)), {**LIGHTWEIGHT, "hf_overrides": {"cutoff_layers": 2}}, "gemma2_lightweight"
    ),
    "jina_listwise": Row(jina_alone),
}

NOMIC = {"config": "nomic-embed-text"}
GRITLM = "<|user|>\nGiven a web search query, retrieve relevant passages that answer the query\n<|embed|>\n"
TEXT_MATCHING = Adapted(("text-matching", "text-matching"))
RETRIEVAL = Adapted(("retrieval.query", "retrieval.passage"), ("Represent the query: ", "Represent the document: "))
BI_ENCODERS = {
    "bert": PLAIN,
    "bert_mlm": PLAIN,
    "bert_splade": Row(splade),
    "bert_splade_by_name": Row(splade),
    "roberta": MEAN,
    "roberta_for_mlm": PLAIN,
    "roberta_splade": Row(splade),
    "xlmr": Row(Cosine(mean, ("query: ", "passage: "))),
    "xlmr_flash": PLAIN,
    "xlmr_mlm": PLAIN,
    "camembert": MEAN,
    "mpnet": MEAN,
    "mpnet_mlm": PLAIN,
    "ernie": MEAN,
    "electra": PLAIN,
    "distilbert": MEAN,
    "albert": MEAN,
    "albert_mlm": PLAIN,
    "deberta_1": MEAN,
    "deberta": PLAIN,
    "megatron": PLAIN,
    "xlmr_xl": PLAIN,
    "xlmr_xl_model": named("XLMRobertaXLModel", "xlmr_xl", Cosine(first)),
    "data2vec": PLAIN,
    "eurobert": MEAN,
    "eurobert_model": named("EuroBertModel", "eurobert", Cosine(mean)),
    "t5": Row(Cosine(mean, project=one_dense)),
    "t5_model": named("T5Model", "t5", Cosine(mean, project=one_dense)),
    "t5_whole": Row(Cosine(mean, states=encoded)),
    "mt5": MEAN,
    "umt5": MEAN,
    "modernbert_decoder": LAST,
    "modernbert_decoder_lm": LAST,
    "distilbert_mlm": PLAIN,
    "distilbert_splade": Row(splade),
    "jina_v3": Row(TEXT_MATCHING),
    "jina_v3_retrieval": Row(RETRIEVAL, {"task": "retrieval"}, "jina_v3"),
    "modernbert": PLAIN,
    "modernbert_mlm": PLAIN,
    "modernbert_splade": Row(splade),
    "new": PLAIN,
    "gte_new": named("GteNewModel", "new", Cosine(first)),
    "gte": Row(Cosine(first, ("query: ", ""))),
    "nomic": Row(Cosine(mean, ("search_query: ", "search_document: ")), NOMIC),
    "static": Row(static),
    "model2vec": Row(static),
    "nomic_moe": Row(Cosine(mean, ("search_query: ", "search_document: "), nomic_moe), NOMIC),
    "llama_model": LAST,
    "llama_lm": LAST,
    "mistral_model": Row(Cosine(last, end="</s>")),
    "mistral_lm": Row(Cosine(last, end="</s>")),
    "qwen2_model": Row(Cosine(last, end="<|endoftext|>")),
    "qwen2_lm": Row(Cosine(last, end="<|endoftext|>")),
    "qwen2_both_ways": Row(Cosine(last, states=both_ways, end="<|endoftext|>")),
    "qwen3_model": LAST,
    "qwen3_lm": LAST,
    "qwen3_embedding": Row(Cosine(last, ("Instruct: find\nQuery:", ""))),
    "gemma_model": LAST,
    "gemma_lm": LAST,
    "gemma2_model": LAST,
    "gemma2_lm": LAST,
    "gemma3_model": Row(
        Cosine(mean, ("task: search result | query: ", "title: none | text: "), project=two_dense),
    ),
    "gemma3_lm": LAST,
    "granite_model": LAST,
    "granite_lm": LAST,
    "phi3_model": LAST,
    "phi3_lm": LAST,
    "gpt2_model": LAST,
    "gpt2_lm": LAST,
    "lfm2_model": LAST,
    "lfm2_lm": LAST,
    "gritlm": Row(Cosine(mean, (GRITLM, "<|embed|>\n"), both_ways, skip_prompt=True), {"config": "gritlm"}),
    "nemotron": Row(Cosine(mean, ("query: ", "passage: "), both_ways), {"config": "llama-nemotron-embed"}),
    "voyage": Row(Cosine(mean, ("the query: ", "the document: "), both_ways, one_linear)),
    "olmo": LAST,
    "stablelm": LAST,
    "opt": LAST,
    "qwen3_moe": LAST,
    "mamba": LAST,
    "jamba": LAST,
    "splade_relu": Row(splade),
    "phi3_longrope": LAST,
    "mistral_both_ways": LAST,
    "gpt_oss": LAST,
    "phimoe": LAST,
    "llama4": LAST,
    "deepseek_v32": LAST,
    "roberta_prelayernorm": Row(Cosine(first)),
    "convbert": PLAIN,
}

LATE = {"score_type": "late-interaction"}
JINA_COLBERT = ColBert(("[QueryMarker]", "[DocumentMarker]"), "<mask>", attends=True)
MODERN_COLBERT = ColBert(("[Q] ", "[D] "), "[MASK]", attends=False, weight="1_Dense.linear.weight")
LFM2_COLBERT = replace(MODERN_COLBERT, filler="</s>")  # it has no mask token
LATE_INTERACTION = {
    "colbert": Row(ColBert(("[unused0]", "[unused1]"), "[MASK]", attends=False)),
    "jina_colbert": Row(JINA_COLBERT),
    "jina_colbert_by_name": named("ColBERTJinaRobertaModel", "jina_colbert", JINA_COLBERT),
    "modern_colbert": Row(MODERN_COLBERT),
    "modern_colbert_by_name": named("ColBERTModernBertModel", "modern_colbert", MODERN_COLBERT),
    "lfm2_colbert": Row(LFM2_COLBERT),
    "lfm2_colbert_by_name": named("ColBERTLfm2Model", "lfm2_colbert", LFM2_COLBERT),
    "bge_m3": Row(bge_m3, LATE),
    "bge_m3_by_name": named("BgeM3EmbeddingModel", "bge_m3", bge_m3, **LATE),
    "bert_tokens": Row(all_tokens, LATE),
    "qwen3_tokens": Row(all_tokens, LATE),
}
ROWS = {**CROSS_ENCODERS, **BI_ENCODERS, **LATE_INTERACTION}


def architecture_of(name: str) -> str:
    row = ROWS[name]
    own = more_checkpoints.ROWS[row.checkpoint or name].architecture
    given: list[str] = row.options.get("hf_overrides", {}).get("architectures", [own])
    return given[0]


def test_every_architecture_of_the_registry_is_tried() -> None:
    of_images = {name for name, row in supported().items() if row.vision is not None}  # test_vision_*.py try these
    assert ARCHITECTURES.keys() - of_images - {architecture_of(name) for name in ROWS} == set()


def test_every_checkpoint_is_scored() -> None:
    assert {row.checkpoint or name for name, row in ROWS.items()} == more_checkpoints.ROWS.keys()


# ---- relations that hold for every row


@dataclass(frozen=True)
class Opened:
    """A row's checkpoint in a Scorer, and beside it."""

    name: str
    folder: str
    scorer: Scorer
    reference: Reference
    scores: Floats  # of all pairs in one call, packed

    @property
    def tolerance(self) -> float:
        return CLOSE[self.scorer.spec.score_type]

    def scored(self, queries: Sequence[str], documents: Sequence[str]) -> Floats:
        return rank_by(self.scorer, queries, documents)

    def expected(self, query: str, document: str) -> float:
        with torch.inference_mode():
            return ROWS[self.name].score(self.reference, query, document).item()


def opened(folder: str, name: str, **options: Any) -> Scorer:
    """A float32 Scorer of a row, which forwards whatever it is asked."""
    return Scorer(folder, dtype="float32", cache_mb=0, **{**ROWS[name].options, **options})


def columns(queries: Sequence[str], documents: Sequence[str]) -> Pairs:
    return Pairs(Cells.of(queries), Cells.of(documents))


def rank_by(scorer: Scorer, queries: Sequence[str], documents: Sequence[str]) -> Floats:
    """Scores, or the logits they are made of."""
    work = scorer.batcher.tokenize(columns(queries, documents))
    scores = score_work(scorer, work)
    return scores.score if scores.logit is None else scores.logit


# where several processes share the suite, one loads a row for all tests of it
@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ROWS])
def row(request: pytest.FixtureRequest, tiny: Tiny) -> Iterator[Opened]:
    name: str = request.param
    checkpoint = ROWS[name].checkpoint or name
    model = more_checkpoints.ROWS[checkpoint].model
    if not hasattr(transformers, model or "AutoModel"):
        pytest.skip(f"transformers {transformers.__version__} has no {model} to compare with")
    folder = tiny(checkpoint)
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    with one_thread(), opened(folder, name) as scorer:
        reference = Reference(tokenizer, *more_checkpoints.native(checkpoint))
        yield Opened(name, folder, scorer, reference, rank_by(scorer, QUERIES, DOCUMENTS))


def test_scores_are_those_of_plain_transformers(row: Opened) -> None:
    expected = [row.expected(q, d) for q, d in zip(QUERIES, DOCUMENTS, strict=True)]
    assert np.ptp(expected) > 1000 * row.tolerance, "texts that all score alike would prove nothing"
    np.testing.assert_allclose(row.scores, expected, rtol=0, atol=row.tolerance)


def test_a_pair_scores_the_same_alone(row: Opened) -> None:
    alone = np.concatenate([row.scored([q], [d]) for q, d in zip(QUERIES, DOCUMENTS, strict=True)])
    np.testing.assert_allclose(alone, row.scores, rtol=0, atol=row.tolerance)


def test_shuffled_pairs_score_as_permuted(row: Opened) -> None:
    order = np.random.default_rng(0).permutation(len(QUERIES))
    shuffled = row.scored([QUERIES[i] for i in order], [DOCUMENTS[i] for i in order])
    np.testing.assert_allclose(shuffled, row.scores[order], rtol=0, atol=row.tolerance)


def test_packed_equals_padded(row: Opened) -> None:
    with opened(row.folder, row.name, padded=True) as padded:
        np.testing.assert_allclose(rank_by(padded, QUERIES, DOCUMENTS), row.scores, rtol=0, atol=row.tolerance)


def test_an_empty_document_is_scored_or_refused_by_the_number_of_its_pair(row: Opened) -> None:
    """Refused by models whose tokenizer adds no token to a text, where there is nothing to read."""
    try:
        expected = row.expected("river", "")
    except NoTokenError:
        assert row.reference.tokenizer.encode("", add_special_tokens=row.scorer.spec.special_tokens).ids == []
        with pytest.raises(InputError, match="^pair 1: the text has no tokens for this model"):
            row.scorer.score(["river", "river"], ["cat", ""])
    else:
        scores = row.scored(["river", "river"], ["cat", ""])
        assert scores[1] == pytest.approx(expected, abs=row.tolerance)


def test_a_text_too_long_is_cut_to_the_limit(row: Opened) -> None:
    cases = [("river", LONG, CUT_DOCUMENT), (LONG, "river", CUT_QUERY)]
    # a listwise prompt holds its query twice, and one that leaves no room is refused
    for query, document, side in cases[: 1 if row.scorer.spec.listwise else 2]:
        work = row.scorer.batcher.tokenize(columns([query], [document]))
        assert work.cut[0] & side
        assert work.items.lengths.max() <= row.scorer.spec.max_length
        assert np.isfinite(score_work(row.scorer, work).score).all()


# ---- prompts


def end_of(row: Row) -> Sequence[str]:
    """The pieces of a prompt behind its texts."""
    if row.score is jina_alone:
        return ["<|rerank_token|>\n</query>" + ASSISTANT + NO_THOUGHT]
    assert isinstance(row.score, Prompt)
    pieces = list(row.score.pieces("", "\0"))
    place = next(n for n, piece in enumerate(pieces) if "\0" in piece)
    return [pieces[place].partition("\0")[2], *pieces[place + 1 :]]


def read_at_the_end() -> list[str]:
    """A row for each prompt that has an end."""
    found: dict[Pieces, str] = {}
    for name, row in CROSS_ENCODERS.items():
        if isinstance(row.score, Prompt) and any(end_of(row)) and not row.checkpoint:
            found[row.score.pieces] = name
    return [*found.values(), "jina_listwise"]


@pytest.mark.parametrize("name", read_at_the_end())
def test_the_end_of_a_prompt_survives_every_max_length(tiny: Tiny, name: str) -> None:
    """From the smallest that leaves room for a text: below it, none does."""
    tokenizer = Tokenizer.from_file(str(Path(tiny(name)) / "tokenizer.json"))
    end = [token for text in end_of(ROWS[name]) for token in tokenizer.encode(text, add_special_tokens=False).ids]
    pair = columns(["what is a bird"], ["the old bridge is over the river"])

    options = dict(ROWS[name].options)
    config = options.pop("config", None)
    with opened(tiny(name), name) as scorer:
        runner: Any = scorer.batcher._runner

    def tokens(max_length: int | None) -> list[int]:
        """[] where there is no room for a text. Weights, tokenizer and template are the same for every length."""
        try:
            _, spec = open_model(tiny(name), config, {**options, "max_length": max_length})
            ids: list[int] = replace(runner, reader=replace(runner.reader, spec=spec)).tokenize(pair).items.ids.tolist()
        except UsageError:
            return []
        return ids

    found = [tokens(None)]
    length = len(found[0])
    while any(found[-3:]):
        length -= 1
        found.append(tokens(length))
    working = found[:-3]
    assert len(working) > 5
    for cut, ids in enumerate(working):
        assert len(ids) <= len(found[0]) - cut
        assert ids[-len(end) :] == end


def test_a_listwise_model_reads_all_documents_of_a_query_at_once(tiny: Tiny) -> None:
    folder = tiny("jina_listwise")
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    reference = Reference(tokenizer, *more_checkpoints.native("jina_listwise"))
    documents = [*DOCUMENTS, ""]
    with one_thread(), torch.inference_mode(), opened(folder, "jina_listwise") as scorer:
        expected = jina_list(reference, "river", documents)
        alone = jina_alone(reference, "river", documents[0]).item()
        np.testing.assert_allclose(scorer.score("river", documents), expected, rtol=0, atol=1e-5)
    assert abs(expected[0] - alone) > 1e-3, "a document scores otherwise beside others"


@pytest.mark.skipif(not hasattr(transformers, "GteModel"), reason="this release of transformers has no mGTE")
@pytest.mark.parametrize("name", ["new_pairs", "gte"])
def test_our_own_mgte_scores_as_that_of_later_transformers(
    tiny: Tiny, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body for releases of transformers that do not have it."""
    known = {kind: config for kind, config in transformers.CONFIG_MAPPING.items() if kind != "gte"}
    with one_thread(), opened(tiny(name), name) as scorer:
        expected = rank_by(scorer, QUERIES, DOCUMENTS)
    monkeypatch.setattr("batchscore.models.load.CONFIG_MAPPING", known)
    for padded in (False, True):
        with one_thread(), opened(tiny(name), name, padded=padded) as scorer:
            np.testing.assert_allclose(rank_by(scorer, QUERIES, DOCUMENTS), expected, atol=1e-5)
