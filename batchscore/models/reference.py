"""The score of a pair as another library computes it: what `batchscore verify` compares with.

sentence-transformers reads the checkpoint by itself, so that nothing decided here can hide. Plain transformers knows
neither poolings nor prompts: it is told those that were resolved, and proves tokens, body and head. Texts go one at a
time, so nothing is padded.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Sequential
from torch import Tensor
from torch.nn.functional import normalize
from transformers.utils import logging as transformers_logging

from batchscore.errors import CheckpointError, MissingDependencyError, first_line
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.heads import load_modules
from batchscore.models.quiet import quiet
from batchscore.models.resolve.chain import is_multi_vector, module_kinds
from batchscore.models.resolve.saved_files import is_colbert
from batchscore.models.similarity import VECTOR_SIMILARITIES
from batchscore.models.spec import ModelSpec

_FIRST = np.zeros(1, np.int64)

Library = Literal["sentence-transformers", "transformers"]
Score = Callable[[str, str, Sequence[int]], float]


@dataclass(frozen=True)
class Reference:
    """A library with the model loaded."""

    library: Library
    version: str
    model_class: str  # of the library, which holds the model
    notes: tuple[str, ...]  # what it is told that it would not know by itself
    given_ids: bool  # it reads token ids from here, since it has no prompt for pairs
    tokenize: Callable[[str], list[int]]  # of a text, without special tokens around it
    score: Score  # query, document, batchscore's token ids of the pair -> logit or similarity

    def __str__(self) -> str:
        return f"{self.library} {self.version}"


def obstacle(library: Library, checkpoint: Checkpoint, spec: ModelSpec) -> str:
    """Why the library has no score to compare with, "" if it may have one."""
    if spec.listwise:
        return "it has no listwise models"
    if any(spec.adapters):
        return "it does not choose between LoRA adapters"
    return (_sentence_transformers_obstacle if library == "sentence-transformers" else _transformers_obstacle)(
        checkpoint, spec
    )


def open_reference(
    library: Library, checkpoint: Checkpoint, spec: ModelSpec, *, dtype: str, device: str, trust_remote_code: bool
) -> Reference:
    """Load the model with a library that has no `obstacle`.

    Raises:
        MissingDependencyError: sentence-transformers is not installed.
        CheckpointError: the library cannot load it, or not with all of its weights.
    """
    opener = _open_sentence_transformers if library == "sentence-transformers" else _open_transformers
    return opener(
        checkpoint, spec, {"dtype": getattr(torch, dtype), "device": device, "trust_remote_code": trust_remote_code}
    )


@contextmanager
def _complete_loading(library: str, spec: ModelSpec) -> Iterator[None]:
    """Turn whatever a library raises while loading into a CheckpointError, and weights that it makes up or drops."""
    # MultiVectorEncoder reads ColBERT's head by itself, apart from the body
    capture = _Capture([] if spec.score_type == "late-interaction" else [layer.name for layer in spec.head])
    with quiet():
        transformers_logging.set_verbosity_warning()  # for `capture` alone
        transformers_logging.disable_default_handler()
        transformers_logging.add_handler(capture)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except Exception as error:
            problem = f"{type(error).__name__}: {first_line(error)}"
            raise CheckpointError(f"{library} cannot load it: {problem}") from error
        finally:
            transformers_logging.remove_handler(capture)
            transformers_logging.enable_default_handler()
    for problem, names in (
        ("finds no {} in it and would make it up", capture.missing),
        ("drops its layer {}", capture.unread),
    ):
        if names:
            raise CheckpointError(f"{library} {problem.format(names[0])}")


class _Capture(logging.Handler):
    """Collects the weights that transformers makes up or leaves unread, of which it only ever writes to its log."""

    def __init__(self, head: Sequence[str]) -> None:
        super().__init__()
        self.head = head  # names of its layers
        self.missing: list[str] = []
        self.unread: list[str] = []  # of the head

    def emit(self, record: logging.LogRecord) -> None:
        """Read a loading report: lines of a name and a status."""
        report = record.getMessage()
        names = re.findall(r"^(\S+) +\| (?:MISSING|MISMATCH)", report, re.MULTILINE)
        # no score reads a pooler that is not in the file
        self.missing += [name for name in names if not re.search(r"(^|\.)(position_ids$|pooler\.)", name)]
        for name in re.findall(r"^(\S+)\.(?:weight|bias) +\| UNEXPECTED", report, re.MULTILINE):
            self.unread += [layer for layer in self.head if f".{name}".endswith(f".{layer}")]


def _restore_specials(tokenizer: Any, checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    """Have a tokenizer add the BOS and EOS that tokenizer_config.json asks for; transformers 5 overlooks these keys.

    Returns:
        a note if it did not add them by itself.
    """
    ids = tokenizer("a").input_ids
    has = {"add_bos_token": ids[:1] == [tokenizer.bos_token_id], "add_eos_token": ids[-1:] == [tokenizer.eos_token_id]}
    lost = [key for key, there in has.items() if checkpoint.tokenizer_config.get(key) and not there]
    if not lost or not spec.restore_specials:
        return ()
    for key, there in has.items():
        setattr(tokenizer, key, there or key in lost)
    return (f"the reference's tokenizer is told of {' and '.join(lost)}, which transformers 5 overlooks",)


def _ids_of(tokenizer: Any) -> Callable[[str], list[int]]:
    def ids(text: str) -> list[int]:
        if isinstance(tokenizer, Tokenizer):  # a StaticEmbedding's
            return list(tokenizer.encode(text, add_special_tokens=False).ids)
        found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return found

    return ids


def _is_set(spec: ModelSpec, field: str) -> bool:
    """Whether an option or a config file decides a field, of which the library would not know."""
    return spec.sources[field].kind in ("user", "config")


# ---- sentence-transformers


def _sentence_transformers_obstacle(checkpoint: Checkpoint, spec: ModelSpec) -> str:
    kinds, own_name = module_kinds(checkpoint), checkpoint.saved.get("model_type")
    lengths = {name: spec.sources[name] for name in ("max_length", "query_length", "document_length")}
    if spec.score_type == "bi-encoder":
        lengths = {name: source for name, source in lengths.items() if source != lengths["max_length"]}
    for name, source in lengths.items() if spec.score_type != "cross-encoder" else ():
        if _is_set(spec, name):
            return f"it cannot follow {source.spell(name)}"
    if checkpoint.tokenizer_folder != checkpoint.backbone_folder:
        return "it cannot follow --tokenizer"
    modalities = checkpoint.sentence_config[1].get("modality_config") or {}
    is_message = "message" in modalities and spec.sources["chat_template"].kind == "architecture"  # it has this prompt
    if spec.chat_template and spec.sources["chat_template"].kind != "file" and not is_message:
        return f"the prompt comes from {spec.sources['chat_template']}, of which it does not know"
    if spec.score_type == "cross-encoder":
        is_classifier = checkpoint.architecture.endswith("ForSequenceClassification")
        if "LogitScore" in kinds or own_name == "CrossEncoder" or (is_classifier and not spec.answer_tokens):
            return ""
    elif spec.score_type == "late-interaction":
        if is_colbert(checkpoint) or is_multi_vector(checkpoint) or checkpoint.architecture == "HF_ColBERT":
            return ""
    elif kinds:
        return ""
    return "the checkpoint has no files of sentence-transformers, which would guess"


def _open_sentence_transformers(checkpoint: Checkpoint, spec: ModelSpec, settings: dict[str, Any]) -> Reference:
    try:
        import sentence_transformers
    except ImportError as error:
        raise MissingDependencyError(
            "the reference for this model is sentence-transformers, which is not installed",
            hint="pip install 'batchscore[verify]', or pass --reference transformers",
        ) from error
    name = {"cross-encoder": "CrossEncoder", "late-interaction": "MultiVectorEncoder"}.get(spec.score_type)
    name = name or ("SparseEncoder" if "SpladePooling" in module_kinds(checkpoint) else "SentenceTransformer")
    if not hasattr(sentence_transformers, name):
        raise MissingDependencyError(
            f"sentence-transformers {sentence_transformers.__version__} has no {name}",
            hint="pip install --upgrade 'sentence-transformers>=6'",
        )
    dtype = settings.pop("dtype")
    with _complete_loading("sentence-transformers", spec):
        model = getattr(sentence_transformers, name)(str(checkpoint.folder), model_kwargs={"dtype": dtype}, **settings)
        if _is_set(spec, "max_length"):
            model.max_seq_length = spec.max_length
        notes = _restore_specials(model.tokenizer, checkpoint, spec) if spec.special_tokens else ()
    prompts, more = _side_prompts(checkpoint, spec)
    score = _predicted(model, spec) if spec.score_type == "cross-encoder" else _encoded(model, spec, prompts)
    version, tokenize = sentence_transformers.__version__, _ids_of(model.tokenizer)
    return Reference("sentence-transformers", version, name, (*notes, *more), False, tokenize, score)


def _side_prompts(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[list[str | None], tuple[str, ...]]:
    """(prompts to pass for queries and for documents, None where it finds the saved one; notes)."""
    prompts: list[str | None] = []
    notes = []
    for side, prompt in (("query", spec.query_prompt), ("document", spec.document_prompt)):
        # it takes "query" and "document" for saved even where they are not, and then overlooks "passage" and a default
        is_overlooked = prompt != "" and not (checkpoint.saved.get("prompts") or {}).get(side)
        is_set = _is_set(spec, f"{side}_prompt")
        prompts.append(prompt if is_set or is_overlooked else None)
        if is_overlooked and not is_set and spec.score_type == "bi-encoder":
            source = spec.sources[f"{side}_prompt"]
            notes.append(f"the reference is given the {side} prompt {prompt!r} of {source}, which it overlooks")
    return prompts, tuple(notes)


def _predicted(model: Any, spec: ModelSpec) -> Score:
    """A cross-encoder's logit."""
    field = "system_prompt" if spec.system_prompt else "query_prompt"
    prompt = getattr(spec, field) if _is_set(spec, field) else None  # None: the checkpoint's own

    def score(query: str, document: str, _: Sequence[int]) -> float:
        pair = [(query, document)]
        (logit,) = model.predict(pair, prompt=prompt, activation_fn=torch.nn.Identity(), show_progress_bar=False)
        return (float(logit) - spec.logit_mean) / spec.logit_sigma

    return score


def _encoded(model: Any, spec: ModelSpec, prompts: Sequence[str | None]) -> Score:
    """The similarity of a pair's vectors, or of its lists of vectors."""
    settings: dict[str, Any] = {"show_progress_bar": False}
    if spec.score_type == "bi-encoder":
        settings |= {"convert_to_tensor": True}
    if spec.pooling == ("splade",):
        settings |= {"convert_to_sparse_tensor": False}

    def score(query: str, document: str, _: Sequence[int]) -> float:
        queries = model.encode_query([query], prompt=prompts[0], **settings)
        documents = model.encode_document([document], prompt=prompts[1], **settings)
        if spec.score_type == "late-interaction":
            return float(model.similarity_pairwise(queries, documents)[0])
        queries, documents = (side.float()[:, : spec.dimensions or None] for side in (queries, documents))
        return float(VECTOR_SIMILARITIES[spec.similarity](queries, documents, _FIRST, _FIRST)[0])

    return score


# ---- plain transformers


def _transformers_obstacle(checkpoint: Checkpoint, spec: ModelSpec) -> str:
    if spec.marks is not None:
        return "it has no ColBERT markers"
    has_towers = spec.arch.vision is not None and spec.arch.vision.alone
    if spec.arch.vision is not None and spec.score_type != "cross-encoder" and not has_towers:
        return "it has no prompts of models that read images"
    if not spec.include_prompt:
        return "it has no pooling without the prompt"
    if spec.arch.body or (spec.config != checkpoint.config and not has_towers):  # those get defaults of their class
        return "it has no class for this layout of config.json"
    if spec.score_type != "cross-encoder" and spec.head and spec.pooling != ("splade",):
        return "it has no class with this head"
    if spec.score_type == "cross-encoder" and spec.modules:
        return "it has no class with these modules"
    if spec.per_sequence == "decoder":
        return "it does not read the first step of a decoder"
    return ""


def _position_weighted_mean(states: Tensor) -> Tensor:
    weights = torch.arange(1.0, len(states) + 1, device=states.device)
    return weights @ states / weights.sum()


_POOL: dict[str, Callable[[Tensor], Tensor]] = {  # float32 [tokens, dim] of one text -> [dim]
    "cls": lambda states: states[0],
    "max": lambda states: states.amax(0),
    "mean": lambda states: states.mean(0),
    "mean_sqrt_len": lambda states: states.sum(0) / len(states) ** 0.5,
    "weightedmean": _position_weighted_mean,
    "lasttoken": lambda states: states[-1],
    "splade": lambda logits: logits.relu().log1p().amax(0),
}


def _open_transformers(checkpoint: Checkpoint, spec: ModelSpec, settings: dict[str, Any]) -> Reference:
    is_pair = spec.score_type == "cross-encoder"
    name = "AutoModelForSequenceClassification" if is_pair else "AutoModel"
    if spec.answer_tokens:
        name = "AutoModelForCausalLM"
    elif spec.pooling == ("splade",):
        name = "AutoModelForMaskedLM"
    device = settings.pop("device")
    with _complete_loading("transformers", spec):
        model = getattr(transformers, name).from_pretrained(checkpoint.backbone_folder, **settings).to(device).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            checkpoint.tokenizer_folder, trust_remote_code=settings["trust_remote_code"]
        )
        notes = _restore_specials(tokenizer, checkpoint, spec)
        # SigLIP's own tokenizer has no backend, and lower-cases by itself
        if spec.lower_case and (backend := getattr(tokenizer, "backend_tokenizer", None)):
            # as sentence-transformers does it: special tokens that a text spells out stay what they are
            backend.normalizer = Sequential([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])
    score = (_logit if is_pair else _similarity)(checkpoint, spec, model, tokenizer)
    if spec.chat_template:
        notes = ("the reference reads batchscore's token ids, since transformers has no prompt for pairs",)
    version, given_ids = transformers.__version__, bool(spec.chat_template)
    return Reference("transformers", version, name, notes, given_ids, _ids_of(tokenizer), score)


def _logit(checkpoint: Checkpoint, spec: ModelSpec, model: Any, tokenizer: Any) -> Score:
    tokens = [tokenizer.convert_tokens_to_ids(t) if isinstance(t, str) else t for t in spec.answer_tokens]

    @torch.inference_mode()
    def score(query: str, document: str, ids: Sequence[int]) -> float:
        if spec.chat_template:
            inputs: Any = {"input_ids": torch.tensor([list(ids)], device=model.device)}
        else:
            # in lists, since an empty document by itself would count as none
            texts = [spec.query_prompt + query], [document]
            inputs = tokenizer(*texts, truncation="longest_first", max_length=spec.max_length, return_tensors="pt")
        logits = model(**_on(model, inputs)).logits[0].float()
        if tokens:
            answers = logits[-1, tokens]
            logits = answers[1:] - answers[:1] if spec.method == "from_2_way_softmax" else answers
        return (float(logits[0]) - spec.logit_mean) / spec.logit_sigma

    return score


def _similarity(checkpoint: Checkpoint, spec: ModelSpec, model: Any, tokenizer: Any) -> Score:
    on_tokens, behind = (
        load_modules(checkpoint, modules).to(model.device) for modules in (spec.token_modules, spec.modules)
    )

    def encode(text: str, length: int) -> Tensor:
        """float32 [1, dim], or [tokens, dim] for late interaction."""
        vision = spec.arch.vision
        padding = "max_length" if vision is not None and vision.fills else False
        inputs = _on(model, tokenizer(text, truncation=True, max_length=length, padding=padding, return_tensors="pt"))
        if vision is not None and vision.alone:  # without a mask: these read padding like any token
            states = model.get_text_features(inputs["input_ids"]).pooler_output.float()
        else:
            output = model(**inputs)
            states = (output.logits if spec.pooling == ("splade",) else output.last_hidden_state)[0].float()
            states = on_tokens(states)
            if spec.pooling:
                states = torch.cat([_POOL[mode](states) for mode in spec.pooling])[None]
        vectors: Tensor = behind(states[1:] if spec.drop_first else states)
        return (normalize(vectors, dim=-1) if spec.normalize else vectors)[..., : spec.dimensions or None]

    @torch.inference_mode()
    def score(query: str, document: str, _: Sequence[int]) -> float:
        left = encode(spec.query_prompt + query, spec.query_length)
        right = encode(spec.document_prompt + document, spec.document_length)
        if spec.score_type == "bi-encoder":
            return float(VECTOR_SIMILARITIES[spec.similarity](left, right, _FIRST, _FIRST)[0])
        best = (left @ right.T).amax(1)
        return float(best.mean() if spec.similarity == "meanmaxsim" else best.sum())

    return score


def _on(model: Any, inputs: Any) -> dict[str, Tensor]:
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}
