"""Requests and responses of the scoring API: their fields, what they may hold, and the errors that answer bad ones.

The bodies are those of the Score and Rerank APIs of vLLM 0.32, which are Jina's and Cohere's too; a line of a batch
has one of them in it. Nothing here knows a file, a job or a model: whoever answers requests passes scores in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from batchscore.types import SIDES, Fault, Side

RequestT = TypeVar("RequestT", bound=BaseModel)

# ---- errors

_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    422: "UnprocessableEntityError",
    500: "InternalServerError",
    501: "NotImplementedError",
}
_STATUS = {  # by the code of a fault; 400 for all others
    **dict.fromkeys(("media-missing", "media-fetch", "media-damaged", "media-changed"), 422),
    **dict.fromkeys(("non-finite", "out-of-memory"), 500),
    "not-supported": 501,
}
_HINTS = {"too-long": "truncate_prompt_tokens cuts it"}  # where those of faults are for files
_SHOWN = 10  # errors of one body that its message lists


class ErrorInfo(BaseModel):
    """What was wrong, and where."""

    message: str
    type: str
    param: str | None = None  # the field
    code: int  # the status of HTTP


class ErrorResponse(BaseModel):
    """The body of an answer that is no success."""

    error: ErrorInfo


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        message: what is wrong.
        param: the field of the request.
        status: of HTTP, one of 400, 404, 422, 500, 501.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.param, self.status = message, param, status

    @classmethod
    def of(cls, fault: Fault, place: str) -> RequestError:
        """The error of a request one of whose queries or documents, that at `place`, has a fault."""
        is_named = fault.column is not None and fault.message.startswith(fault.column)
        name = "" if is_named else f"{place}: "
        hint = _HINTS.get(fault.code, fault.hint)
        suffix = f"; {hint}" if hint else ""
        return cls(f"{name}{fault.message}{suffix}", fault.column or place, _STATUS.get(fault.code, 400))

    @property
    def response(self) -> ErrorResponse:
        """The body that says so."""
        info = ErrorInfo(message=self.message, type=_TYPES[self.status], param=self.param, code=self.status)
        return ErrorResponse(error=info)


def read(kind: type[RequestT], value: Any) -> RequestT:
    """A request, or a line of a batch, from an object or from JSON in bytes; RequestError says what is wrong."""
    try:
        return kind.model_validate_json(value) if isinstance(value, bytes) else kind.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        first = _place(problems[0]["loc"])
        raise RequestError("; ".join(map(_said, problems[:_SHOWN])), first or None) from error


def _said(problem: Mapping[str, Any]) -> str:
    place = _place(problem["loc"])
    return f"{place}: {problem['msg']}" if place else str(problem["msg"])


def _place(path: Sequence[int | str]) -> str:
    """The name of a field: "documents[2]"."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


# ---- requests


def _input(value: Any) -> str | dict[str, Any]:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        if not value.get("content") and value.keys().isdisjoint(_INPUT_FIELDS):
            raise PydanticCustomError("content", "an object needs a list of content parts in `content`")
        return value
    raise PydanticCustomError("input", "Input should be a string, or an object with content parts")


def _inputs(value: Any) -> list[str | dict[str, Any]]:
    return value if isinstance(value, list) else [value]


_INPUT_FIELDS = {"text", "image", "image_url", "video", "video_url"}  # of objects in place of content parts
_JSON_INPUT = {"anyOf": [{"type": "string"}, {"type": "object"}]}

# A query or document: a text, or {"content": [parts]}, or {"text": ..., "image": ...} as Jina's API has it. What the
# parts hold is read by media/content.py, where the media are found.
Input = Annotated[str | dict[str, Any], PlainValidator(_input), WithJsonSchema(_JSON_INPUT)]
_Many = list[Input]
Count = Annotated[int, Field(ge=0)]


class ScoringRequest(BaseModel):
    """The fields that both APIs have. Unknown ones are kept, so that an answer can name them (`unknown`)."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    user: str | None = None  # has no effect
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None  # -1: the model's limit
    padding: Literal["max_length", "do_not_pad"] | None = None
    truncation_side: Literal["left", "right"] | None = None
    request_id: str | None = None  # of the answer; None: whoever answers makes one
    priority: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 0  # has no effect
    mm_processor_kwargs: dict[str, Any] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^@/\\\x00]+$")] | None = None  # none
    use_activation: bool | None = None  # None: as the model has it
    max_tokens_per_query: Count = 0  # 0: no limit, as with documents
    max_tokens_per_doc: Count = 0
    instruction: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def sides(self) -> tuple[_Many, _Many]:
        """(queries, documents): as many of both, or one query for all documents."""
        raise NotImplementedError

    def place(self, side: Side, index: int) -> str:
        """What this request calls one of its queries or documents: "documents[2]"."""
        raise NotImplementedError

    @property
    def unknown(self) -> list[str]:
        """Fields that are not read."""
        return sorted(self.model_extra or {})


def _check_lengths(queries: _Many, documents: _Many) -> None:
    if len(queries) > 1 and len(queries) != len(documents):
        raise PydanticCustomError("lengths", "Input lengths must be either 1:1, 1:N or N:N")
    if not queries:
        raise PydanticCustomError("lengths", "At least one text element must be given")
    if not documents:
        raise PydanticCustomError("lengths", "At least one text_pair element must be given")


# the names of queries and documents; the first pair of which a request has both is read
_ALIASES = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))
_TEXTS = tuple(dict.fromkeys(name for pair in _ALIASES for name in pair))


class ScoreRequest(ScoringRequest):
    """A body of /score: queries and documents under one of four pairs of names, 1:1, 1:N or N:N."""

    queries: _Many | None = None
    documents: _Many | None = None
    items: _Many | None = None
    data_1: _Many | None = None
    data_2: _Many | None = None
    text_1: _Many | None = None
    text_2: _Many | None = None

    _listed = field_validator(*_TEXTS, mode="before")(_inputs)

    @model_validator(mode="after")
    def _has_sides(self) -> Self:
        if not any(self.model_fields_set.issuperset(pair) for pair in _ALIASES):
            pairs = ", or ".join(" and ".join(pair) for pair in _ALIASES)
            raise PydanticCustomError("sides", "a request has {pairs}", {"pairs": pairs})
        _check_lengths(*self.sides)
        return self

    @property
    def _names(self) -> tuple[str, str]:
        return next(pair for pair in _ALIASES if self.model_fields_set.issuperset(pair))

    @property
    def sides(self) -> tuple[_Many, _Many]:
        """(queries, documents): as many of both, or one query for all documents."""
        queries, documents = self._names
        return getattr(self, queries), getattr(self, documents)

    def place(self, side: Side, index: int) -> str:
        """What this request calls one of its queries or documents."""
        return f"{self._names[SIDES.index(side)]}[{index}]"

    @property
    def unknown(self) -> list[str]:
        """Fields that are not read: those of a second pair of sides too."""
        return sorted({*super().unknown, *self.model_fields_set.intersection(_TEXTS).difference(self._names)})

    def response(
        self, scores: Sequence[float], tokens: int, *, request_id: str, created: int, model: str
    ) -> ScoreResponse:
        """The answer.

        Args:
            scores: [pairs].
            tokens: that the model read.
            request_id: of this request.
            created: seconds since 1970.
            model: the name under which it is served.
        """
        data = [ScoreResult(index=index, score=score) for index, score in enumerate(scores)]
        usage = Usage(prompt_tokens=tokens, total_tokens=tokens)
        return ScoreResponse(id=f"score-{request_id}", created=created, model=model, data=data, usage=usage)


class RerankRequest(ScoringRequest):
    """A body of /rerank: the documents of one query, to be put in order."""

    query: Input
    documents: _Many
    top_n: Count = 0  # 0: all

    _listed = field_validator("documents", mode="before")(_inputs)

    @model_validator(mode="after")
    def _has_documents(self) -> Self:
        _check_lengths(*self.sides)
        return self

    @property
    def sides(self) -> tuple[_Many, _Many]:
        """(the query alone, documents)."""
        return [self.query], self.documents

    def place(self, side: Side, index: int) -> str:
        """What this request calls its query or one of its documents."""
        return "query" if side == "query" else f"documents[{index}]"

    def response(
        self, scores: Sequence[float], order: Sequence[int], tokens: int, *, request_id: str, model: str
    ) -> RerankResponse:
        """The answer; arguments are those of a ScoreRequest.

        Args:
            scores: [documents].
            order: documents, best first; `top_n` of them are kept.
            tokens: that the model read.
            request_id: of this request.
            model: the name under which it is served.
        """
        results = [
            RerankResult(index=index, document=_echoed(self.documents[index]), relevance_score=scores[index])
            for index in order[: self.top_n or None]
        ]
        usage = RerankUsage(prompt_tokens=tokens, total_tokens=tokens)
        return RerankResponse(id=f"score-{request_id}", model=model, usage=usage, results=results)


def _echoed(document: Input) -> RerankDocument:
    """A document as its result shows it."""
    if isinstance(document, str):
        return RerankDocument(text=document)
    content = document.get("content", [document])
    return RerankDocument(multi_modal=content if isinstance(content, list) else [content])


# ---- responses


class Usage(BaseModel):
    """Tokens that the model read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None
    completion_tokens_details: None = None


class ScoreResult(BaseModel):
    """The score of one pair."""

    index: int  # of the pair, from 0
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(BaseModel):
    """The answer to a ScoreRequest."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreResult]
    usage: Usage


class RerankUsage(BaseModel):
    """Tokens that the model read."""

    prompt_tokens: int
    total_tokens: int


class RerankDocument(BaseModel):
    """A document as it was sent."""

    text: str | None = None
    multi_modal: list[Any] | None = None


class RerankResult(BaseModel):
    """One document in rank order."""

    index: int  # in the request, from 0
    document: RerankDocument
    relevance_score: float


class RerankResponse(BaseModel):
    """The answer to a RerankRequest."""

    id: str
    model: str
    usage: RerankUsage
    results: list[RerankResult]


# ---- batches

_KINDS: Mapping[str, type[ScoreRequest | RerankRequest]] = {"/score": ScoreRequest, "/rerank": RerankRequest}


class BatchLine(BaseModel):
    """A line of a batch: a request and where it would have been sent."""

    model_config = ConfigDict(extra="allow")

    custom_id: str
    method: str = "POST"  # is not looked at
    url: str
    body: dict[str, Any]

    @property
    def request(self) -> ScoreRequest | RerankRequest:
        """The request; RequestError for a body that is none, or a URL of another API."""
        for end, kind in _KINDS.items():
            if self.url.endswith(end):
                return read(kind, self.body)
        raise RequestError(f"url: {self.url!r} is no URL of the scoring API, which end in {' or '.join(_KINDS)}", "url")


class BatchResponse(BaseModel):
    """What a server would have answered."""

    status_code: int = 200
    request_id: str
    body: ScoreResponse | RerankResponse | None = None


class BatchAnswer(BaseModel):
    """A line of the answers to a batch."""

    id: str
    custom_id: str | None  # null where the line has none that can be read
    response: BatchResponse
    error: ErrorResponse | None = None
    warnings: list[str] | None = Field(None, exclude_if=lambda warnings: not warnings)  # not there if there are none
