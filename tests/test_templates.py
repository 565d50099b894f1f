"""Score templates: a pair in, one prompt out; found by path, name or text, sandboxed, checked before a model loads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import jinja2
import pytest
from jinja2 import TemplateError

from batchscore import Scorer
from batchscore.errors import InputError, UsageError
from batchscore.models.checkpoint import open_checkpoint
from batchscore.models.open import open_model, pinned_options
from batchscore.models.resolve import resolve
from batchscore.models.resolve.options import user_options
from batchscore.models.text.templates import Template, find_template, uses
from batchscore.resources import shipped_files
from batchscore.runners.build import input_reader
from batchscore.types import SIDES, Side

Tiny = Callable[[str], str]

SHIPPED = shipped_files("templates")
ONE_SIDE = {"role", "content", "media"}  # what templates read that make a prompt of one side
READ = {name: {part for part in {"query", *ONE_SIDE} if uses(file.read_text(), part)} for name, file in SHIPPED.items()}
OF_SIDES = sorted(name for name, read in READ.items() if read & ONE_SIDE and "query" not in read)
OF_PAIRS = sorted(set(SHIPPED) - {"jina-reranker-v3", *OF_SIDES})
BY_ROLE = '{{ (messages | selectattr("role", "eq", "%s") | first).content }}'
BOTH = f"{BY_ROLE % 'query'}|{BY_ROLE % 'document'}"


def render(text: str, query: str = "Q", document: str = "D", **options: Any) -> str:
    """The whole prompt."""
    return "".join(Template(text, **options).render(query, document))


def written(folder: Path, text: str, name: str = "mine.jinja") -> str:
    (folder / name).write_text(text, "utf-8")
    return str(folder / name)


# ---- what a template sees


@pytest.mark.parametrize(
    "text", [BOTH, "{{ query }}|{{ document }}", "{{ messages[0].content }}|{{ messages[1]['content'] }}"]
)
def test_a_template_reads_the_texts_by_role_by_name_or_by_place(text: str) -> None:
    assert render(text, "who?", "me") == "who?|me"


def test_a_template_sees_two_messages_in_order() -> None:
    loop = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"

    assert render(loop) == "<query>Q<document>D"


def test_a_system_prompt_is_the_first_message() -> None:
    loop = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"

    assert render(loop, system_prompt="Rank.") == "<system>Rank.<query>Q<document>D"
    assert render(BOTH, system_prompt="Rank.") == "Q|D"  # roles are found wherever they stand


def test_a_template_that_reads_contents_in_parts_gets_them_in_parts() -> None:
    """sentence-transformers saves such templates for models that take images too."""
    parts = "{% for m in messages %}{% for part in m.content %}{{ part.type }}:{{ part.text }} {% endfor %}{% endfor %}"

    assert render(parts) == "text:Q text:D "
    assert render("{{ messages[0].content[0].text }}") == "Q"


@pytest.mark.parametrize(
    ("instruction", "prompt"), [("", "Find it. Q"), ("Judge it.", "Judge it. Q"), ("{{ query }}", "{{ query }} Q")]
)
def test_an_instruction_replaces_the_default_of_the_template(instruction: str, prompt: str) -> None:
    text = "{{ instruction | default('Find it.', true) }} {{ query }}"

    assert render(text, instruction=instruction) == prompt


def test_without_an_instruction_the_variable_is_not_defined() -> None:
    assert render("{% if instruction is defined %}yes{% else %}no{% endif %}") == "no"


@pytest.mark.parametrize(
    "hostile", ["{{ 7 * 7 }}", "{% raw %}", "{# gone #}", "</document>", "<b>&amp;", "a\n\n", "\\n"]
)
def test_a_text_is_never_read_as_a_template_nor_escaped(hostile: str) -> None:
    assert render(BOTH, hostile, hostile) == f"{hostile}|{hostile}"


def test_a_listwise_template_sees_all_documents() -> None:
    text = "{{ query }}:{% for document in documents %} {{ loop.index0 }}={{ document }}{% endfor %}"

    assert Template(text).render_list("Q", ["a", "b"]) == ["Q: 0=a 1=b"]


def test_special_tokens_of_the_checkpoint_are_variables(tiny: Tiny) -> None:
    text = "{{ bos_token }}{{ query }}{{ eos_token }}{{ document }}{{ cls_token }}{{ no_such_token }}"
    checkpoint = open_checkpoint(tiny("roberta_ce"))
    spec = resolve(checkpoint, user_options({"chat_template": text}))

    template = input_reader(checkpoint, spec, trust_remote_code=False).template

    assert template is not None
    assert template.render("Q", "D") == ["<s>Q</s>D<s>"]


# ---- the language


def test_a_template_can_break_out_of_a_loop_as_in_transformers() -> None:
    assert render("{% for n in [1, 2, 3] %}{{ n }}{% if n == 2 %}{% break %}{% endif %}{% endfor %}") == "12"


def test_a_template_can_tell_the_date() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}", date="2026-01-31") == "31 Jan 2026"


@pytest.fixture
def today(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """today(day) makes it that day for whatever is decided from now on."""

    def set_day(day: str) -> None:
        class Day(date):
            @classmethod
            def today(cls) -> date:
                return date.fromisoformat(day)

        monkeypatch.setattr("batchscore.models.resolve.text_fields.date", Day)

    return set_day


DATED = "{{ strftime_now('%Y-%m-%d') }} {{ query }} {{ document }}"


def test_the_date_of_a_prompt_is_decided_with_the_spec(tiny: Tiny, today: Callable[[str], None]) -> None:
    today("2026-01-31")
    checkpoint, spec = open_model(tiny("bert_ce"), None, {"chat_template": DATED})
    today("2026-02-01")
    template = input_reader(checkpoint, spec, trust_remote_code=False).template

    assert (spec.template_date, str(spec.sources["template_date"])) == ("2026-01-31", "today")
    assert template is not None
    assert template.render("Q", "D") == ["2026-01-31 Q D"]


def test_another_day_is_another_spec_unless_the_day_is_passed_on(tiny: Tiny, today: Callable[[str], None]) -> None:
    today("2026-01-31")
    checkpoint, spec = open_model(tiny("bert_ce"), None, {"chat_template": DATED})
    pinned = pinned_options(checkpoint, spec)
    today("2026-02-01")

    assert open_model(tiny("bert_ce"), None, {"chat_template": DATED})[1] != spec
    assert open_model(tiny("bert_ce"), None, {"chat_template": DATED, **pinned})[1] == spec


def test_a_date_that_no_template_asks_for_is_refused(tiny: Tiny) -> None:
    assert open_model(tiny("bert_ce"), None, {"chat_template": BOTH})[1].template_date == ""
    for options in ({"chat_template": BOTH}, {}):
        with pytest.raises(UsageError, match="--template-date '2026-01-31': the template does not ask for the date"):
            open_model(tiny("bert_ce"), None, {**options, "template_date": "2026-01-31"})


def test_blocks_leave_no_lines_behind() -> None:
    text = "a\n  {% if query %}\nb {{ query }}\n  {% endif %}\nc\n"

    assert render(text) == "a\nb Q\nc\n"


def test_a_template_may_refuse_a_pair() -> None:
    with pytest.raises(jinja2.TemplateError, match="^no query$"):
        render("{% if not query %}{{ raise_exception('no query') }}{% endif %}", "")


def test_a_pair_the_template_refuses_is_an_error_of_its_row(tiny: Tiny) -> None:
    text = "{{ query }} {{ document }}{% if 'dog' in document %}{{ raise_exception('no dogs') }}{% endif %}"
    with (
        Scorer(tiny("bert_ce"), dtype="float32", chat_template=text) as scorer,
        pytest.raises(InputError, match="^pair 2: the chat template refuses it: no dogs$"),
    ):
        scorer.score("a", ["cat", "bird", "a dog", "dog"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ messages[5].content }}", "list object has no element 5"),
        ("{{ query.no.such }}", "'str object' has no attribute 'no'"),
        ("{{ query + 1 }}", "can only concatenate str"),
        ("{{ 1 / (document | length - 1) }}", "division by zero"),
        ("{{ '{missing}'.format(query) }}", "missing"),
        ("{{ query }}{{ range(10 ** 9) }}", "Range too big"),
        ("{% macro again() %}{{ query }}{{ again() }}{% endmacro %}{{ again() }}", "recursion"),
    ],
)
def test_whatever_goes_wrong_inside_a_template_is_an_error_of_its_row(tiny: Tiny, text: str, message: str) -> None:
    with (
        Scorer(tiny("bert_ce"), dtype="float32", chat_template=text) as scorer,
        pytest.raises(InputError, match=f"^pair 0: the chat template refuses it: .*{message}"),
    ):
        scorer.score("cat", ["a", "b"])


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['jinja2'] }}",
        "{{ strftime_now.__self__.min }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'content': 'x'}) }}",
        "{% set ns = messages.pop() %}",
    ],
)
def test_a_template_is_sandboxed(text: str) -> None:
    with pytest.raises(jinja2.exceptions.SecurityError):
        render(text, date="2026-01-31")


@pytest.mark.parametrize("text", ["{{ ''.__class__ }}", "{{ raise_exception.__globals__ }}", "{{ query.__doc__ }}"])
def test_what_is_behind_an_object_is_not_there(text: str) -> None:
    assert render(text) == ""


def test_a_template_reads_no_other_files(tmp_path: Path) -> None:
    written(tmp_path, "secret", "other.jinja")

    with pytest.raises((jinja2.TemplateError, TypeError)):
        render(f"{{% include '{tmp_path}/other.jinja' %}}")


@pytest.mark.parametrize(
    ("text", "variable", "used"),
    [
        ("{{ instruction }}", "instruction", True),
        ("{{ instruction | default('x', true) }}", "instruction", True),
        ("{% if instruction %}x{% endif %}", "instruction", True),
        ("instruction {{ query }}", "instruction", False),
        ("{% set instruction = 'x' %}{{ instruction }}", "instruction", False),
        ("{{ query.instruction }}", "instruction", False),
    ],
)
def test_it_is_known_whether_a_template_reads_a_variable(text: str, variable: str, used: bool) -> None:
    assert uses(text, variable) == used


# ---- which template is meant


def test_a_path_is_read_as_a_file(tmp_path: Path) -> None:
    assert find_template(written(tmp_path, "A {{ query }}"), exact=True) == "A {{ query }}"


@pytest.mark.parametrize("text", ["{{ query }} {{ document }}", "first\n{{ query }}", "{% if query %}x{% endif %}"])
def test_what_holds_a_brace_or_a_line_break_is_the_template_itself(text: str) -> None:
    assert find_template(text, exact=True) == text


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_template_is_found_by_its_name(name: str) -> None:
    assert find_template(name, exact=True) == SHIPPED[name].read_text("utf-8")


def test_none_puts_the_document_right_behind_the_query() -> None:
    assert render(find_template("none", exact=True), "a b", "c d") == "a bc d"


@pytest.mark.parametrize("name", ["nosuch", "prompts/nosuch.jinja", "Qwen3-Reranker", ""])
def test_a_name_that_is_nowhere_is_no_template_but_an_error_with_the_shipped_names(name: str) -> None:
    """vLLM takes a path that it does not open for the prompt itself, and scores it."""
    with pytest.raises(UsageError) as caught:
        find_template(name, exact=True)

    shipped = ", ".join(SHIPPED)
    assert caught.value.message == f"no file and no shipped name {name!r} in templates; shipped: {shipped}"


def test_a_file_wins_over_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "mine {{ query }}\n", "basic")
    monkeypatch.chdir(tmp_path)

    assert find_template("basic", exact=True) == "mine {{ query }}"


def test_a_file_is_a_file_whatever_its_name(tmp_path: Path) -> None:
    assert find_template(written(tmp_path, "mine {{ query }}", "{of mine}.jinja"), exact=True) == "mine {{ query }}"


def test_a_users_file_loses_one_newline_at_its_end_as_in_other_engines(tmp_path: Path) -> None:
    text = "{{ query }}"
    ends = [find_template(written(tmp_path, text + end), exact=True) for end in ("", "\n", "\n\n", " \n")]

    assert ends == [text, text, text + "\n", text + " "]


def test_a_shipped_template_keeps_its_last_newline() -> None:
    """The token a score is read at: Jinja would drop one newline."""
    prompt = render(find_template("qwen3-reranker", exact=True))

    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_shipped_template_loses_it_where_vllm_is_reproduced() -> None:
    """And its pieces: vLLM tokenizes a prompt whole."""
    text = find_template("qwen3-reranker", exact=False)

    assert render(text) == render(find_template("qwen3-reranker", exact=True)).removesuffix("\n")
    assert len(Template(text).render("Q", "D")) == 1


def test_a_copy_of_a_shipped_template_is_a_users_file(tmp_path: Path) -> None:
    copy = shutil.copy(SHIPPED["qwen3-reranker"], tmp_path / "qwen3-reranker.jinja")

    assert find_template(str(copy), exact=True) == find_template("qwen3-reranker", exact=False)


def test_a_template_as_text_loses_one_newline_like_a_users_file() -> None:
    assert render(find_template("{{ query }}\n\n", exact=True)) == "Q\n"


@pytest.mark.parametrize("text", ["{query} {document}", "a\nb", "{% if instruction %}x{% endif %}"])
def test_a_template_that_reads_neither_side_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="reads neither `messages` nor `query` and `document`"):
        find_template(text, exact=True)


# ---- pieces


def test_a_piece_boundary_cuts_the_prompt_and_writes_nothing() -> None:
    assert Template("a {{ query }}{{ piece }}\n{{ piece }}{{ document }}").render("Q", "D") == ["a Q", "\n", "D"]


def test_a_boundary_in_a_users_file_is_nothing(tmp_path: Path) -> None:
    text = find_template(written(tmp_path, "{{ query }}{{ piece }}{{ document }}\n"), exact=True)

    assert Template(text).render("Q", "D") == ["QD"]


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("basic", ["Query: Q\nDocument: D"]),
        ("none", ["QD"]),
        ("llama-nemotron-rerank", ["question:Q \n \n passage:D"]),
        (
            "bge-reranker-v2-gemma",
            [
                "A: Q",
                "\n",
                "B: D",
                "\n",
                "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
                "providing a prediction of either 'Yes' or 'No'.",
            ],
        ),
        (
            "qwen3-reranker",
            [
                "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
                'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
                "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query>: Q\n"
                "<Document>: D",
                "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            ],
        ),
        (
            "mxbai-rerank-v2",
            [
                "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
                "<|im_start|>user\n",
                "query: Q",
                "\n",
                "document: D",
                "\n",
                "You are a search relevance expert who evaluates how well documents match search queries. For each "
                "query-document pair, carefully analyze the semantic relationship between them, then provide your "
                "binary relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
                "<|im_end|>\n<|im_start|>assistant\n",
            ],
        ),
    ],
)
def test_a_shipped_template_makes_the_prompt_of_the_models_own_library(name: str, pieces: list[str]) -> None:
    """Literally what the libraries and model cards tokenize, piece by piece."""
    assert Template(find_template(name, exact=True)).render("Q", "D") == pieces


@pytest.mark.parametrize("name", OF_PAIRS)
def test_a_shipped_template_writes_each_text_once_and_as_it_is(name: str) -> None:
    prompt = render(find_template(name, exact=True), "<Σ query {{ x }}", "the\n\ndocument  ")

    assert [prompt.count(text) for text in ("<Σ query {{ x }}", "the\n\ndocument  ")] == [1, 1]


@pytest.mark.parametrize("role", SIDES)
@pytest.mark.parametrize("name", OF_SIDES)
def test_a_shipped_template_of_a_side_writes_its_text_once_and_its_image_once(name: str, role: Side) -> None:
    template, text = Template(find_template(name, exact=True)), "<Σ {{ x }}"
    cells = ("", text), ("[IMG]", "")
    of_text, of_image = ("".join(template.render_side(role, media + words, words, media, "")) for media, words in cells)
    assert of_text.count(text) == of_image.count("[IMG]") == 1
    if name == "e5-v":
        with pytest.raises(TemplateError, match="not both at once"):
            template.render_side(role, "[IMG]" + text, text, "[IMG]", "")
    else:
        of_both = "".join(template.render_side(role, "[IMG]" + text, text, "[IMG]", ""))
        assert (of_both.count(text), of_both.count("[IMG]")) == (1, 1)


AUGMENTED = "<|endoftext|>" * 10
PAGE = "<|im_start|>user\n[IMG]Describe the image."


@pytest.mark.parametrize(
    ("name", "query", "document", "image"),
    [
        ("colqwen2", "q" + AUGMENTED, "d", PAGE + "<|im_end|><|endoftext|>"),
        ("colqwen2-hf", "Query: q" + AUGMENTED + "\n", "d", PAGE + "<|im_end|><|endoftext|>"),
        ("colqwen3", "q" + AUGMENTED, "d" + AUGMENTED, PAGE + "<|im_end|><|endoftext|>"),
        ("ops-colqwen3", "Query: q" + AUGMENTED, "d", PAGE + "<|im_end|><|im_start|>assistant\n<|endoftext|>"),
        (
            "nemotron-colembed",
            "<|im_start|>user\nQuery: query: q<|im_end|>\n<|im_start|>assistant\n",
            "<|im_start|>user\npassage: d<|im_end|>\n<|im_start|>assistant\n",
            "<|im_start|>user\n[IMG]passage: <|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "qwen3-vl-embedding",
            "<|im_start|>system\nFind it.<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
            "<|im_start|>system\nRepresent the user's input.<|im_end|>\n<|im_start|>user\nd<|im_end|>\n"
            "<|im_start|>assistant\n",
            "<|im_start|>system\nRepresent the user's input.<|im_end|>\n<|im_start|>user\n[IMG]<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
    ],
)
def test_a_shipped_template_of_a_side_makes_the_prompt_of_the_models_own_library(
    name: str, query: str, document: str, image: str
) -> None:
    template = Template(find_template(name, exact=True))

    assert template.render_side("query", "q", "q", "", "Find it") == [query]  # where it has a place for an instruction
    assert template.render_side("document", "d", "d", "", "") == [document]
    assert template.render_side("document", "[IMG]", "", "[IMG]", "") == [image]


@pytest.mark.parametrize("name", ["qwen3-reranker", "mxbai-rerank-v2", "zerank-2", "qwen3-vl-reranker"])
def test_the_shipped_templates_with_a_place_for_an_instruction_use_it(name: str) -> None:
    text = find_template(name, exact=True)

    assert uses(text, "instruction")
    assert render(text, instruction="Σ only").count("Σ only") == 1


# ---- mistakes


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{{ query", 1),
        ("a\nb\n{% if query %}", 3),
        ("a\n{% endfor %}\nb", 2),
        ("a\n\n\n{{ query | no_such_filter }}", 4),
    ],
)
def test_a_syntax_error_is_reported_with_file_and_line_before_anything_else_is_read(
    tiny: Tiny, tmp_path: Path, text: str, line: int
) -> None:
    """The checkpoint has neither weights nor a tokenizer: neither is looked for."""
    (tmp_path / "model").mkdir()
    shutil.copy(Path(tiny("bert_ce")) / "config.json", tmp_path / "model")

    with pytest.raises(UsageError, match=rf"^mine\.jinja, line {line}: ") as caught:
        Scorer(str(tmp_path / "model"), chat_template=written(tmp_path, text))
    assert caught.value.hint == "the template is Jinja"


def test_a_syntax_error_in_a_template_given_as_text_has_its_line() -> None:
    with pytest.raises(UsageError, match="^chat_template, line 2: "):
        find_template("a\n{{ query", exact=True)


def test_an_instruction_without_a_place_in_the_template_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="^--instruction: this model's prompt has no place for an instruction"):
        Scorer(tiny("bert_ce"), chat_template="basic", instruction="Judge it.")


def test_a_template_for_a_model_that_reads_the_sides_apart_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="^--chat-template 'basic': a bi-encoder of texts has none$"):
        Scorer(tiny("bert_mean"), chat_template="basic")


def test_a_template_may_be_longer_than_a_file_name() -> None:
    text = "{{ query }}" + "x" * 5000

    assert find_template(text, exact=True) == text
