"""Score templates: Jinja text that makes one prompt of a query and a document.

A template sees `messages` with the roles `query` and `document` (before them `system`, if there is a system prompt),
`instruction`, and the shorthands `query` and `document` (`documents` in a listwise one). Where it writes `{{ piece }}`
the prompt is cut before it is tokenised, so that tokens cannot merge across: some libraries tokenise their prompts in
pieces. Elsewhere the name is undefined and renders as nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from batchscore.errors import UsageError
from batchscore.resources import find_resource, shipped_files

# sentence-transformers' signs of a template whose messages come in parts
_PARTS = ("content[0]", ".type", "'type'", '"type"')
PIECE = "\ue0ff"  # a private code point: no text of a corpus should hold it, and one that does loses it


def find_template(name: str, *, exact: bool) -> str:
    """The text of the template a user means: a file, a shipped name, or the text itself.

    Args:
        name: what the user passed.
        exact: whether a shipped template keeps its pieces and its last newline. Jinja drops one newline, and with it
            the token that several published models are read at; a user's own file is rendered as other engines do it.

    Raises:
        UsageError: none of these, or a syntax error.
    """
    shipped = shipped_files("templates")
    if not Path(name).is_file() and name not in shipped and ("{" in name or "\n" in name):
        return compiled_text(name.removesuffix("\n"), "chat_template")
    path = find_resource("templates", name)
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error}") from error
    if exact and path == shipped.get(name):
        return compiled_text(text, path.name)
    return compiled_text(text.replace("{{ piece }}", "").removesuffix("\n"), path.name)


def compiled_text(text: str, name: str) -> str:
    """The text, if it is a template.

    Raises:
        UsageError: a syntax error, with its line; or it reads neither side.
    """
    try:
        variables = meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(f"{name}, line {error.lineno}: {error.message}", hint="the template is Jinja") from error
    if not variables & {"messages", "query", "document", "documents"}:
        raise UsageError(
            f"{name} reads neither `messages` nor `query` and `document`", hint="every pair would get one prompt"
        )
    return text


class Template:
    """A compiled template with its constant variables."""

    def __init__(
        self, text: str, variables: Mapping[str, Any] | None = None, *, instruction: str = "", system_prompt: str = ""
    ) -> None:
        self._template = _ENVIRONMENT.from_string(text)
        self._constants = {**(variables or {}), **({"instruction": instruction} if instruction else {})}
        self._in_parts = any(phrase in text for phrase in _PARTS)
        self._system = [self._message("system", system_prompt)] if system_prompt else []

    def render(self, query: str, document: str) -> list[str]:
        """The pieces of a pair's prompt.

        Raises:
            jinja2.TemplateError: raised by the template.
        """
        messages = [*self._system, self._message("query", query), self._message("document", document)]
        return self._pieces(query, document=document, messages=messages)

    def render_list(self, query: str, documents: Sequence[str]) -> list[str]:
        """The pieces of a prompt with all documents of a query."""
        return self._pieces(query, documents=documents)

    def _pieces(self, query: str, **variables: Any) -> list[str]:
        return self._template.render(**self._constants, query=query, piece=PIECE, **variables).split(PIECE)

    def _message(self, role: str, text: str) -> Mapping[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}] if self._in_parts else text}


def uses(text: str, variable: str) -> bool:
    """Whether a template reads a variable."""
    return variable in meta.find_undeclared_variables(_ENVIRONMENT.parse(text))


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _environment() -> ImmutableSandboxedEnvironment:
    # the settings under which transformers renders chat templates, but for the last newline
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


_ENVIRONMENT = _environment()
