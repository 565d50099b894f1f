"""Score templates: Jinja text that makes one prompt of a query and a document.

A template sees `messages` with the roles `query` and `document` (after `system`, if there is a system prompt),
`instruction`, and the shorthands `query` and `document` (`documents` in a listwise template). One that reads `media`,
the placeholders of all images, gets texts without them. For a model that reads the sides separately it makes a prompt
of one side: `content`, with `role` "query" or "document"; `text` and `media` are its texts and the placeholders of its
images by themselves. At `{{ piece }}` the prompt is divided before it is tokenized, so that no token spans the two
parts: some libraries tokenize their prompts in pieces. Other engines leave the name undefined, which renders as
nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from batchscore.errors import UsageError
from batchscore.resources import find_resource, shipped_files
from batchscore.types import Side

# by these phrases sentence-transformers recognizes a template that expects message contents as lists of parts
_PARTS = ("content[0]", ".type", "'type'", '"type"')
PIECE = "\ue0ff"  # a private code point: a corpus should not contain it, and a text that does loses it


def find_template(name: str, *, exact: bool) -> str:
    """The text of the template that a user names: a file, a shipped name, or the text itself.

    Args:
        name: what the user passed.
        exact: whether a shipped template keeps its pieces and its last newline. Jinja drops one newline, and with it
            the token at which several published models are read; a user's own file is rendered as in other engines.

    Raises:
        UsageError: none of these, or a syntax error.
    """
    shipped = shipped_files("templates")
    if not os.path.isfile(os.path.expanduser(name)) and name not in shipped and ("{" in name or "\n" in name):
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
    """The text, checked to be a template.

    Raises:
        UsageError: a syntax error, with its line; or the template reads neither side.
    """
    try:
        variables = meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(f"{name}, line {error.lineno}: {error.message}", hint="the template is Jinja") from error
    if not variables & {"messages", "query", "document", "documents", "content", "text"}:
        raise UsageError(
            f"{name} reads neither `messages` nor `query` and `document`", hint="all pairs would get the same prompt"
        )
    return text


class Template:
    """A compiled template with its constant variables.

    Args:
        text: of the template.
        variables: what it may read beside the texts.
        instruction: "" leaves the variable undefined, so that the template's default applies.
        system_prompt: content of the system message; "" for none.
        date: the day (YYYY-MM-DD) that `strftime_now` tells. It is fixed because a job may run past midnight, or be
            resumed the next day, and all its prompts must be the same.
    """

    def __init__(
        self,
        text: str,
        variables: Mapping[str, Any] | None = None,
        *,
        instruction: str = "",
        system_prompt: str = "",
        date: str = "",
    ) -> None:
        self._template = _ENVIRONMENT.from_string(text)
        self._constants = dict(variables or {})
        if instruction:
            self._constants["instruction"] = instruction
        if date:
            self._constants["strftime_now"] = datetime.fromisoformat(date).strftime
        self.reads_instruction, self.reads_media = uses(text, "instruction"), uses(text, "media")
        self._in_parts = any(phrase in text for phrase in _PARTS)
        self._system = [self._message("system", system_prompt)] if system_prompt else []

    def render(self, query: str, document: str, media: str = "") -> list[str]:
        """The pieces of a pair's prompt.

        Raises:
            jinja2.TemplateError: the template raises it.
        """
        messages = [*self._system, self._message("query", query), self._message("document", document)]
        return self._pieces(query, document=document, media=media, messages=messages)

    def render_side(self, role: Side, content: str, text: str, media: str, instruction: str) -> list[str]:
        """The pieces of the prompt of a query or document by itself.

        Raises:
            jinja2.TemplateError: the template raises it.
        """
        given = {"instruction": instruction} if instruction else {}
        return self._pieces("", role=role, content=content, text=text, media=media, **given)

    def render_list(self, query: str, documents: Sequence[str]) -> list[str]:
        """The pieces of a prompt that holds all documents of a query."""
        return self._pieces(query, documents=documents)

    def _pieces(self, query: str, **variables: Any) -> list[str]:
        return self._template.render({**self._constants, "query": query, "piece": PIECE, **variables}).split(PIECE)

    def _message(self, role: str, text: str) -> Mapping[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}] if self._in_parts else text}


def uses(text: str, variable: str) -> bool:
    """Whether a template reads a variable."""
    return variable in meta.find_undeclared_variables(_ENVIRONMENT.parse(text))


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _environment() -> ImmutableSandboxedEnvironment:
    # transformers' settings for chat templates, except that the last newline stays
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    return environment


_ENVIRONMENT = _environment()
