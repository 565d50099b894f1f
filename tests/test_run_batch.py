"""`run-batch`: each request is answered in its place, as it would be alone, whatever stands beside it."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import jobs
import qwen_checkpoints
from batchscore import Scorer, run_batch_files
from batchscore.cli.main import app
from batchscore.engine.batcher import Batcher
from batchscore.errors import UsageError
from batchscore.jobs.files import named_models
from batchscore.runners.base import BaseRunner

pytestmark = pytest.mark.usefixtures("here")

Tiny = Callable[[str], str]
Body = dict[str, Any]
CLOSE = 2e-6  # packs of other sizes round otherwise
LONG = "the old cat of the river city " * 12
QUERY = "What is the capital of France?"
PARIS, BRASILIA = "The capital of France is Paris.", "The capital of Brazil is Brasilia."
HORSES = "Horses and cows are both animals"


def score_line(number: int, body: Body, url: str = "/v1/score") -> Body:
    return {"custom_id": f"r{number}", "method": "POST", "url": url, "body": body}


def write(lines: Sequence[Body | str], file: str = "in.jsonl") -> None:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    Path(file).write_text("".join(f"{text}\n" for text in texts), "utf-8")
    os.utime(file, (693447, 693447))


def read(file: str = "out.jsonl") -> list[Body]:
    return [json.loads(line) for line in Path(file).read_text("utf-8").splitlines()]


def answered(models: Any, lines: Sequence[Body | str], **options: Any) -> list[Body]:
    """The answers to these lines."""
    write(lines)
    run_batch_files(models, "in.jsonl", "out.jsonl", **{"dtype": "float32", "overwrite": True, **options})
    return read()


def scores(answer: Body) -> list[float]:
    """Of an answer, in the order of the request."""
    body = answer["response"]["body"]
    if "data" in body:
        return [one["score"] for one in body["data"]]
    return [one["relevance_score"] for one in sorted(body["results"], key=lambda one: one["index"])]


# ---- the examples of the documentation


@pytest.fixture(scope="module")
def documented() -> list[Body]:
    """Its curl bodies."""
    pair = {"model": "bge", "encoding_format": "float", "queries": QUERY, "documents": PARIS}
    many = {"model": "bge", "queries": QUERY, "documents": [BRASILIA, PARIS]}
    zipped = {
        "model": "bge",
        "encoding_format": "float",
        "queries": ["What is the capital of Brazil?", QUERY],
        "documents": [BRASILIA, PARIS],
    }
    ranked = {"model": "bge", "query": QUERY, "documents": [BRASILIA, PARIS, HORSES]}
    return [
        score_line(0, pair, "/score"),
        score_line(1, many, "/score"),
        score_line(2, zipped, "/score"),
        score_line(3, ranked, "/v1/rerank"),
        score_line(4, {**ranked, "top_n": 2}, "/v2/rerank"),
    ]


def test_the_documentations_requests_have_answers_of_its_shapes(documented: list[Body], minilm: Path) -> None:
    """With the scores of all-MiniLM-L6-v2 in float32 by transformers."""
    pair, many, zipped, ranked, best = answered({"bge": str(minilm)}, documented)

    body = pair["response"]["body"]
    key = body["id"].removeprefix("score-")
    assert len(key) == 32
    assert pair == {
        "id": f"batchscore-{key}",
        "custom_id": "r0",
        "response": {
            "status_code": 200,
            "request_id": key,
            "body": {
                "id": f"score-{key}",
                "object": "list",
                "created": 693447,
                "model": "bge",
                "data": [{"index": 0, "object": "score", "score": pytest.approx(0.879011, abs=1e-5)}],
                "usage": {
                    "prompt_tokens": 18,
                    "total_tokens": 18,
                    "completion_tokens": 0,
                    "prompt_tokens_details": None,
                    "completion_tokens_details": None,
                },
            },
        },
        "error": None,
        "warnings": ["body.encoding_format: unknown field"],
    }
    assert scores(many) == pytest.approx([0.402365, 0.879011], abs=1e-5)
    assert scores(zipped)[1] == pytest.approx(0.879011, abs=1e-5)
    assert "warnings" not in many
    results = ranked["response"]["body"]["results"]
    assert [(one["index"], one["document"]) for one in results] == [
        (1, {"text": PARIS, "multi_modal": None}),
        (0, {"text": BRASILIA, "multi_modal": None}),
        (2, {"text": HORSES, "multi_modal": None}),
    ]
    assert [one["relevance_score"] for one in results[:2]] == pytest.approx([0.879011, 0.402365], abs=1e-5)
    assert best["response"]["body"]["results"] == results[:2]


# what `vllm run-batch` 0.32 answered with all-MiniLM-L6-v2 in float16: (url, body, scores or the status, tokens)
VLLM: list[tuple[str, Body, list[float] | int, int]] = [
    ("/v1/score", {"queries": QUERY, "documents": [BRASILIA, PARIS]}, [0.402380, 0.879119], 28),
    (
        "/v1/rerank",
        {"query": QUERY, "documents": [BRASILIA, PARIS, "Horses eat grass"], "top_n": 2},
        [0.402380, 0.879119],
        33,
    ),
    (
        "/score",
        {"text_1": ["a b", QUERY], "text_2": ["a b", PARIS], "truncate_prompt_tokens": 8, "truncation_side": "left"},
        [1.0, 0.893818],
        24,
    ),
    ("/v1/score", {"use_activation": False, "instruction": "foo", "text_1": "a", "text_2": "b"}, [0.635658], 6),
    (
        "/v2/rerank",
        {"query": "a", "documents": ["b", "c d e f g h"], "truncate_prompt_tokens": 5},
        [0.635658, 0.427702],
        11,
    ),
    (
        "/v2/rerank",
        {"query": QUERY, "documents": [PARIS, "c d e f g h"], "max_tokens_per_doc": 4, "max_tokens_per_query": 3},
        [0.135199, 0.208833],
        17,
    ),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "request_id": "mine"}, [0.635658], 6),
    ("/v1/rerank", {"query": "a", "documents": ["b", "word " * 400]}, 400, 0),
    ("/score", {"text_1": ["a b", "c", "d"], "text_2": ["a b", "c d"]}, 400, 0),
    ("/v1/score", {"model": "x", "text_1": "a", "text_2": "b"}, 404, 0),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "truncate_prompt_tokens": 300}, 400, 0),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "truncate_prompt_tokens": 0}, 400, 0),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "max_tokens_per_doc": 4096}, 400, 0),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "mm_processor_kwargs": {"a": 1}}, 400, 0),
    ("/v1/rerank", {"query": "a", "documents": []}, 400, 0),
]


def test_a_file_for_vllm_has_its_answers_in_its_mode(minilm: Path) -> None:
    lines = [score_line(number, body, url) for number, (url, body, *_) in enumerate(VLLM)]
    answers = answered(str(minilm), lines, compat="vllm")

    for answer, (_, _, expected, tokens) in zip(answers, VLLM, strict=True):
        if isinstance(expected, int):
            assert (answer["response"]["status_code"], answer["error"]["error"]["code"]) == (expected, expected)
            continue
        assert scores(answer) == pytest.approx(expected, abs=2e-4)
        assert answer["response"]["body"]["usage"]["prompt_tokens"] == tokens
    assert answers[3]["warnings"] == [
        "use_activation has no effect on this model",
        "instruction has no effect on this model",
    ]


# ---- options of requests

LINES = [
    *({"queries": "the cat", "documents": ["a dog", LONG, "the cat"], **options} for options in (
        {},
        {"truncate_prompt_tokens": 12},
        {"truncate_prompt_tokens": 12, "truncation_side": "left"},
        {"truncate_prompt_tokens": -1},
        {"max_tokens_per_query": 1, "max_tokens_per_doc": 3},
        {"max_tokens_per_doc": 9},
    )),
    {"data_1": ["the cat", LONG], "data_2": ["a dog", LONG], "truncate_prompt_tokens": 20},
]  # fmt: skip
OPTIONS = ("truncate_prompt_tokens", "truncation_side", "max_tokens_per_query", "max_tokens_per_doc", "use_activation")


def expected(model: str, body: Body, **options: Any) -> list[float]:
    """What a Scorer with the options of a request says."""
    of_request = {name: body[name] for name in OPTIONS if name in body}
    sides = [body[name] for name in body if name in ("queries", "documents", "data_1", "data_2")]
    with Scorer(model, dtype="float32", **{**options, **of_request}) as scorer:
        found: list[float] = scorer.score(*sides).tolist()
        return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bert_ce", {}),
        ("bert_ce", {"compat": "vllm", "truncate_prompt_tokens": -1}),
        ("bert_mean", {}),
        ("bert_plain", {"score_type": "late-interaction"}),
    ],
    ids=str,
)
def test_requests_with_different_options_have_the_scores_of_each_alone(
    tiny: Tiny, name: str, options: dict[str, Any]
) -> None:
    lines = LINES + ([{**LINES[0], "use_activation": False}] if name == "bert_ce" else [])
    mixed = answered(tiny(name), [score_line(*line) for line in enumerate(lines)], **options)

    for number, (answer, body) in enumerate(zip(mixed, lines, strict=True)):
        (alone,) = answered(tiny(name), [score_line(number, body)], **options)
        assert scores(answer) == pytest.approx(scores(alone), abs=CLOSE)
        assert answer["response"]["body"]["usage"] == alone["response"]["body"]["usage"]
        assert scores(answer) == pytest.approx(expected(tiny(name), body, **options), abs=CLOSE)
    assert len({round(scores(answer)[1], 4) for answer in mixed}) > 3


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sequences of each pack that a model reads."""
    found: list[int] = []
    forward = BaseRunner.forward

    def counted(self: BaseRunner, batch: Any) -> Any:
        found.append(len(batch))
        return forward(self, batch)

    monkeypatch.setattr(BaseRunner, "forward", counted)
    return found


@pytest.mark.parametrize("name", ["bert_ce", "bert_mean"])
def test_options_share_packs(tiny: Tiny, forwards: list[int], name: str) -> None:
    bodies = [{"queries": f"cat {n % 7}", "documents": [f"{n} dog", f"the {n} cat"]} for n in range(60)]
    answered(tiny(name), [score_line(*line) for line in enumerate(bodies)])
    packs, sequences = len(forwards), sum(forwards)
    forwards.clear()
    mixed = [{**body, "truncate_prompt_tokens": 20 + n % 10} for n, body in enumerate(bodies)]
    answered(tiny(name), [score_line(*line) for line in enumerate(mixed)])

    assert len(forwards) == packs
    assert sum(forwards) == sequences  # all texts are within these limits, so nothing is read twice


def test_a_text_that_comes_back_is_read_once_a_unit(tiny: Tiny, forwards: list[int]) -> None:
    bodies = [{"query": "the cat", "documents": ["a dog", "the old cat", "a dog"]}] * 50
    answered(tiny("bert_mean"), [score_line(n, body, "/rerank") for n, body in enumerate(bodies)])

    assert sum(forwards) - 2 * 11 <= 3  # besides the trials of loading, of 7 and 4 tokens each


def test_an_instruction_and_variables_of_a_template_are_those_of_the_request(tiny: Tiny) -> None:
    template = "{{ instruction or 'find' }} {{ tone }} {{ query }} : {{ document }}"
    body = {"queries": "the cat", "documents": ["a dog", "the cat"]}
    extras: list[Body] = [
        {},
        {"instruction": "read"},
        {"instruction": "light", "chat_template_kwargs": {"instruction": "read"}},
        {"chat_template_kwargs": {"tone": "slow", "colour": "red"}},
        {"chat_template_kwargs": {"tokenize": True}},
    ]
    lines = [score_line(n, {**body, **extra}) for n, extra in enumerate(extras)]
    plain, read_, again, slow, reserved = answered(tiny("bert_ce"), lines, chat_template=template)

    with Scorer(tiny("bert_ce"), dtype="float32", chat_template=template, instruction="read") as scorer:
        assert scores(read_) == pytest.approx(scorer.score("the cat", ["a dog", "the cat"]).tolist(), abs=CLOSE)
    assert scores(again) == scores(read_) != scores(plain)
    assert slow["warnings"] == ["chat_template_kwargs: no template reads 'colour'"]
    assert scores(slow) != scores(plain)
    assert reserved["error"]["error"]["message"] == "chat_template_kwargs 'tokenize' is not for templates"


# ---- bad lines

ONE = {"queries": "a cat", "documents": "a dog"}
TEXTS = "a request has queries and documents, or queries and items, or data_1 and data_2, or text_1 and text_2"
NO_IMAGE = {"queries": "a", "documents": ["b", {"content": [{"type": "image_url", "image_url": {"url": "n.png"}}]}]}
NO_TEXT = {"queries": "a", "documents": [{"content": [{"type": "text"}]}]}
BAD: list[tuple[Body | str, int, str | None, str]] = [  # (line, status, param, how its message begins)
    ("{", 400, None, "Invalid JSON: EOF while parsing an object at line 1 column 1"),
    ('{"custom_id": "kept", "url": "/score"}', 400, "body", "body: Field required"),
    (score_line(0, {"queries": "a"}), 400, None, TEXTS),
    (score_line(0, {**ONE, "queries": ["a", "b"]}), 400, None, "Input lengths must be either 1:1, 1:N or N:N"),
    (
        score_line(0, {"query": "a", "documents": "b", "top_n": -1}, "/rerank"),
        400,
        "top_n",
        "top_n: Input should be greater than or equal to 0",
    ),
    (
        score_line(0, ONE, "/v1/chat/completions"),
        400,
        "url",
        "url: '/v1/chat/completions' is no URL of the scoring API, which end in /score or /rerank",
    ),
    (score_line(0, {**ONE, "model": "x"}), 404, "model", "The model `x` does not exist. Models: m"),
    (
        score_line(0, {**ONE, "truncate_prompt_tokens": 65}),
        400,
        "truncate_prompt_tokens",
        "truncate_prompt_tokens 65 is more than the model's 64 tokens",
    ),
    (
        score_line(0, {**ONE, "truncate_prompt_tokens": 0}),
        400,
        "truncate_prompt_tokens",
        "truncate_prompt_tokens 0: must be a number of tokens, or -1",
    ),
    (
        score_line(0, {**ONE, "padding": "max_length"}),
        501,
        "padding",
        "padding max_length is not supported: the model would read it as text",
    ),
    (
        score_line(0, {**ONE, "instruction": "find"}),
        400,
        "instruction",
        "instruction: this model's prompt has no place for an instruction; see batchscore inspect",
    ),
    (
        score_line(0, {**ONE, "mm_processor_kwargs": {}}),
        400,
        "mm_processor_kwargs",
        "mm_processor_kwargs {}: this model reads text only",
    ),
    (
        score_line(0, NO_IMAGE),
        422,
        "documents[1]",
        "documents[1]: part 0: 'n.png' does not exist; relative paths begin at --media-root",
    ),
    (
        score_line(0, NO_TEXT),
        400,
        "documents[0]",
        "documents[0]: part 0: is of type 'text' and has no text; types: text,",
    ),
    (
        score_line(0, {"text_1": "a", "text_2": ["b", LONG], "max_tokens_per_query": 3}),
        400,
        "text_2[1]",
        "text_2[1]: longer than max_length 64 tokens; truncate_prompt_tokens cuts it",
    ),
]
KINDS = {400: "BadRequestError", 404: "NotFoundError", 422: "UnprocessableEntityError", 501: "NotImplementedError"}


def test_a_bad_line_has_its_own_error_and_ends_nothing(tiny: Tiny) -> None:
    good = score_line(1, ONE)
    lines = [line for bad, *_ in BAD for line in (good, bad, "")]
    write(lines)
    outcome = run_batch_files({"m": tiny("bert_ce")}, "in.jsonl", "out.jsonl", dtype="float32", truncation="error")
    answers = read()

    assert (outcome.bad_rows, outcome.exit_code) == (len(BAD), 7)
    assert len({tuple(scores(answer)) for answer in answers[::2]}) == 1
    for answer, (bad, status, param, message) in zip(answers[1::2], BAD, strict=True):
        error = answer["error"]["error"]
        assert error["message"].startswith(message)
        assert (error["type"], error["param"], error["code"]) == (KINDS[status], param, status)
        assert (answer["response"]["status_code"], answer["response"]["body"]) == (status, None)
        assert answer["custom_id"] == ("kept" if "kept" in bad else None if isinstance(bad, str) else "r0")
    listed = read("out.jsonl.errors.jsonl")
    assert [row["line"] for row in listed] == [2 + 3 * n for n in range(len(BAD))]


def test_the_first_line_may_be_bad_and_all_others_too(tiny: Tiny) -> None:
    answers = answered(tiny("bert_ce"), ["x", "y"])

    assert [answer["response"]["status_code"] for answer in answers] == [400, 400]
    assert len({answer["id"] for answer in answers}) == 2


def test_unknown_fields_and_ids_that_come_twice_are_said(tiny: Tiny) -> None:
    twice = [score_line(0, ONE), {**score_line(0, {**ONE, "return_documents": True}), "priority": 1}]
    first, second = answered(tiny("bert_ce"), twice)

    assert first["custom_id"] == second["custom_id"] == "r0"
    assert first["id"] != second["id"]
    assert scores(first) == scores(second)
    assert second["warnings"] == [
        "priority: unknown field",
        "body.return_documents: unknown field",
        "custom_id: that of in.jsonl, line 1 too",
    ]


def test_a_request_id_is_that_of_the_answer(tiny: Tiny) -> None:
    (answer,) = answered(tiny("bert_ce"), [score_line(0, {**ONE, "request_id": "mine"})])

    assert answer["response"]["request_id"] == "mine"
    assert answer["response"]["body"]["id"] == "score-mine"


# ---- models


def test_each_request_is_answered_by_its_model_in_input_order(tiny: Tiny) -> None:
    names = ["ce", "bi", None, "ce", "none", "bi"]
    lines = [score_line(n, {**ONE, **({"model": name} if name else {})}) for n, name in enumerate(names)]
    models = {"ce": tiny("bert_ce"), "bi": tiny("bert_mean")}
    answers = answered(models, [*lines, "x"], unit_rows=8)  # two lines in a unit
    alone = {name: scores(answered(model, [score_line(0, ONE)])[0]) for name, model in models.items()}

    assert [answer["custom_id"] for answer in answers] == ["r0", "r1", "r2", "r3", "r4", "r5", None]
    served = ["ce", "bi", "ce", "ce", None, "bi", None]
    assert [(answer["response"]["body"] or {}).get("model") for answer in answers] == served
    for answer, name in zip(answers, served, strict=True):
        if name:
            assert scores(answer) == pytest.approx(alone[name], abs=CLOSE)
    assert answers[4]["error"]["error"]["message"] == "The model `none` does not exist. Models: ce, bi"


def test_a_model_is_loaded_for_its_pass_alone(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from batchscore.jobs import one_model

    loaded: list[str] = []
    closed: list[str] = []

    class Counted(Batcher):
        def load(self) -> None:
            if not self.is_loaded:
                assert loaded == closed
                loaded.append(self.setup.checkpoint.name)
            super().load()

        def close(self) -> None:
            closed.append(self.setup.checkpoint.name)
            super().close()

    monkeypatch.setattr(one_model, "Batcher", Counted)
    models = {"ce": tiny("bert_ce"), "bi": tiny("bert_mean")}
    answered(models, [score_line(n, {**ONE, "model": ("ce", "bi")[n % 2]}) for n in range(12)], unit_rows=8)

    assert loaded == closed == [tiny("bert_ce"), tiny("bert_mean")]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["org/name"], {"org/name": "org/name"}),
        (["a=org/name", "b/c=x"], {"a": "org/name", "b/c": "x"}),
        (["in=here"], {"in=here": "in=here"}),  # a folder of that name
    ],
)
def test_a_model_may_have_a_name(given: list[str], named: dict[str, str]) -> None:
    Path("in=here").mkdir()

    assert named_models(given) == named


@pytest.mark.parametrize("given", [["a=x", "a=y"], ["=x"], ["a="], []])
def test_names_of_models_are_there_and_differ(given: list[str]) -> None:
    with pytest.raises(UsageError):
        named_models(given)


# ---- images


def test_requests_have_images_in_their_parts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As links and as data, with settings of their own, of a reranker that reads them."""
    folder = tmp_path_factory.mktemp("jina")
    qwen_checkpoints.write("jina", folder)
    page = Image.effect_noise((90, 70), 60).convert("RGB")
    page.save("page.png")
    page.save(data := io.BytesIO(), "png")
    inline = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    parts = [[{"type": "image_url", "image_url": {"url": url}}] for url in ("page.png", inline)]
    documents = [*({"content": part} for part in parts), "the river", {"text": "the river"}]
    small = {"max_pixels": 28 * 28 * 4}
    lines = [
        score_line(0, {"queries": "slm markdown", "documents": documents}),
        score_line(1, {"query": "slm markdown", "documents": documents, "top_n": 1}, "/rerank"),
        score_line(2, {"queries": "slm markdown", "documents": documents, "mm_processor_kwargs": small}),
    ]
    score, best, shrunk = answered(str(folder), lines)

    assert score["error"] is None, score
    first, second, *texts = scores(score)
    assert first == second != texts[0] == texts[1]
    assert best["response"]["body"]["results"][0]["document"] in (
        {"text": None, "multi_modal": parts[0]},
        {"text": "the river", "multi_modal": None},
    )
    with Scorer(str(folder), dtype="float32", media_root=".", mm_processor_kwargs=small) as scorer:
        expected = scorer.score("slm markdown", documents).tolist()
    assert scores(shrunk) == pytest.approx(expected, abs=CLOSE)
    usage = [answer["response"]["body"]["usage"]["total_tokens"] for answer in (score, shrunk)]
    assert usage[0] > usage[1]


# ---- as a job


def many(count: int) -> list[Body]:
    """Requests of several kinds for two models, one of them bad."""
    lines = []
    for n in range(count):
        options = {"model": ("ce", "bi")[n % 2], **({"truncate_prompt_tokens": 9} if n % 3 else {})}
        documents = [f"{n} dog the old", "a cat"] if n != 17 else []
        names, url = (("query", "documents"), "/rerank") if n % 5 == 0 else (("text_1", "text_2"), "/score")
        lines.append(score_line(n, {names[0]: f"cat {n}", names[1]: documents, **options}, url))
    return lines


@pytest.fixture
def models(tiny: Tiny) -> dict[str, str]:
    return {"ce": tiny("bert_ce"), "bi": tiny("bert_mean")}


def test_killed_and_resumed_gives_the_same_bytes(models: dict[str, str]) -> None:
    write(many(80))
    served = [argument for name, model in models.items() for argument in ("--model", f"{name}={model}")]
    run = ["run-batch", *served, "-i", "in.jsonl", "--dtype", "float32", "--unit-rows", "32"]
    code, said = jobs.finish(*run, "-o", "whole.jsonl")
    assert code == 7, said
    killed = jobs.start(*run, "-o", "again.jsonl")
    jobs.wait_until(lambda: len(jobs.parts(".again.jsonl.parts")) >= 3)
    killed.kill()
    killed.communicate()
    left = len(jobs.parts(".again.jsonl.parts"))
    code, said = jobs.finish(*run, "-o", "again.jsonl")

    assert code == 7, said
    assert 3 <= left < 20
    assert Path("again.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert [answer["custom_id"] for answer in read("whole.jsonl")] == [f"r{n}" for n in range(80)]


def test_shards_and_workers_give_the_answers_of_one_run(models: dict[str, str]) -> None:
    write(many(48))
    options: dict[str, Any] = {"dtype": "float32", "unit_rows": 32}
    whole = run_batch_files(models, "in.jsonl", "whole.jsonl", **options)
    for shard in ("0/3", "2/3", "1/3"):
        run_batch_files(models, "in.jsonl", "parts/", shard=shard, merge=shard == "1/3", **options)
    run_batch_files(models, "in.jsonl", "workers.jsonl", devices="cpu:1", claim="dynamic", merge=True, **options)
    result = CliRunner().invoke(app, ["merge", "parts", "--out", "merged.jsonl.gz"])

    assert result.exit_code == 0, result.output
    assert (whole.counts["rows"], whole.bad_rows) == (48, 1)
    assert len(jobs.parts("parts")) == 12
    expected = Path("whole.jsonl").read_bytes()
    assert gzip.decompress(Path("merged.jsonl.gz").read_bytes()) == Path("parts.jsonl").read_bytes() == expected
    assert Path("workers.jsonl").read_bytes() == expected


def test_answers_are_lines_and_no_table(tiny: Tiny) -> None:
    write([score_line(0, ONE)])

    with pytest.raises(UsageError, match=r"^cannot write out.parquet: answers to requests are lines"):
        run_batch_files(tiny("bert_ce"), "in.jsonl", "out.parquet")


@pytest.mark.parametrize(("source", "out"), [("-", "out.jsonl"), ("in.jsonl", "-")])
def test_requests_are_in_files(tiny: Tiny, source: str, out: str) -> None:
    write([score_line(0, ONE)])

    with pytest.raises(UsageError, match="^run-batch reads files, and writes one"):
        run_batch_files(tiny("bert_ce"), source, out)


def test_requests_may_be_in_any_file(tiny: Tiny) -> None:
    write([score_line(0, ONE)], "batch.txt")
    run_batch_files(tiny("bert_ce"), "batch.txt", "out.jsonl", dtype="float32")

    assert [answer["custom_id"] for answer in read()] == ["r0"]
