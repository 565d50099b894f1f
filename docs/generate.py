"""Writes what docs/ repeats from the program: cli.md from help texts, api.md from docstrings, a table of models.md.

`make docs` runs it before docs/website.py. tests/test_docs.py fails while a file differs from what this would write.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from typer.main import get_command

import batchscore
from batchscore import errors
from batchscore.cli.main import app
from batchscore.cli.text import table_lines
from batchscore.evaluation.evaluate import Evaluation, PairsEvaluation
from batchscore.inspection import architecture_table
from batchscore.jobs.events import Events
from batchscore.jobs.files import (
    EncodeOptions,
    FileOptions,
    JobOptions,
    PairOptions,
    RerankOptions,
    ScoreOptions,
    score_files,
)
from batchscore.jobs.planning.forecast import Forecast
from batchscore.models.open import ModelOptions
from batchscore.scorer import ScorerOptions
from batchscore.stop import Stop

DOCS = Path(__file__).parent
_COMMANDS = """# Command line

<!-- Written by docs/generate.py. Change the help texts in batchscore/cli/options.py, then run `make docs`. -->

`batchscore COMMAND --help` shows the same. In names of options, underscores may stand for hyphens. Options may also
come [from files and the environment](cron.md#options-from-files-and-the-environment).
"""
_PYTHON = """# Python API

<!-- Written by docs/generate.py. Change the docstrings in batchscore/, then run `make docs`. -->

`Scorer` holds one model in memory. `score_files`, `rerank_files` and the other functions on files do what the commands
of these names do: they stream, resume, and can share a job with other processes. `import batchscore` is quick; torch is
loaded when one of these names is first used. For a server of your own, `batchscore.requests` has the
[requests of the scoring API](requests.md) and their answers.
"""
_KEYWORDS = """
## Options

The keywords of `Scorer` and of the functions are the flags of the [command line](cli.md), with the same defaults and
explanations. A function takes the group of options that its signature names, and the groups on which that builds.
"""
_RAISED = """
## Errors

All errors are in `batchscore.errors`, and are kinds of `BatchscoreError`. They have a `message`, a `hint` (or None),
and the `exit_code` with which the command line ends. Any other exception is a bug.
"""
_KINDS = {int: "N", float: "N", str: "TEXT", bool: ""}
# groups of keywords: the command whose flags they are
_GROUPS: dict[Any, str] = {
    ModelOptions: "score",
    ScorerOptions: "score",
    JobOptions: "score",
    FileOptions: "score",
    PairOptions: "score",
    ScoreOptions: "score",
    RerankOptions: "rerank",
    EncodeOptions: "encode",
}
_BESIDES = (Evaluation, PairsEvaluation, Forecast, Events, Stop)  # what calls take and return, and is not exported
_METHODS = {"Stop": ("request", "requested")}  # of classes of which a caller needs few
_MEMBER = re.compile(r"^    (\w+): (.+?)(?: = .+?)?(?:  # (.*))?$", re.MULTILINE)  # with the comment behind it
_PART = re.compile(r"^(Args|Returns|Raises):\n((?:    .*\n?|\n)*)", re.MULTILINE)  # of a docstring
_ENTRY = re.compile(r"^(\w[\w, ]*): ", re.MULTILINE)  # of a part that lists arguments or errors
_MODULE = re.compile(r"\b(typing|collections\.abc|batchscore\.\w+)\.")  # before a name
_TITLES = {"Args": "Arguments", "Raises": "Raises"}
_WIDTH = 100  # of a signature on one line


def cli_page() -> str:
    """All commands with their arguments and options; a panel that an earlier command has too is not repeated."""
    printed: dict[str, str] = {}  # panel -> the command it was printed for
    sections = [_section(name, command, printed) for name, command in commands().items()]
    return _COMMANDS + "".join(sections)


def api_page() -> str:
    """What `batchscore` exports, the options of all that, what calls take and return besides, and the errors."""
    exported = [getattr(batchscore, name) for name in batchscore.__all__ if not name.startswith("__")]
    functions = sorted((one for one in exported if not inspect.isclass(one)), key=_place)
    records = [one for one in exported if is_dataclass(one)]
    return "".join(
        [
            _PYTHON,
            *_class(batchscore.Scorer),
            *(_callable(f"## {one.__name__}", one) for one in functions),
            _KEYWORDS,
            *(_keywords(group, command) for group, command in _GROUPS.items()),
            *(part for one in [*records, *_BESIDES] for part in _class(one)),
            _RAISED,
            _error_table(),
        ]
    )


def models_page(page: str) -> str:
    """The page with its table of architectures as the program has it."""
    table = "\n".join(table_lines(architecture_table(), "markdown"))
    return re.sub(r"(?<=markdown -->\n).*?(?=\n<!-- end)", lambda _: table, page, flags=re.DOTALL)


def commands() -> dict[str, Any]:
    """All commands by their full names, those of groups among them."""
    found: dict[str, Any] = {}
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        group = getattr(command, "commands", None)
        found |= {name: command} if group is None else {f"{name} {inner}": one for inner, one in group.items()}
    return found


# ---- the command line


def _section(name: str, command: Any, printed: dict[str, str]) -> str:
    function = command.callback
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    text = "\n\n".join(
        f"```text\n{paragraph}\n```" if paragraph.startswith("batchscore ") else paragraph for paragraph in paragraphs
    )
    declared = {key: one.annotation for key, one in inspect.signature(function, eval_str=True).parameters.items()}
    panels: dict[str, list[str]] = {}
    for option in command.params:
        panels.setdefault(option.rich_help_panel or "Argument", []).append(_line(option, declared[option.name]))
    tables = ["\n".join(["", f"| {panel} | |", "|---|---|", *lines, ""]) for panel, lines in panels.items()]
    for index, (panel, table) in enumerate(zip(panels, tables, strict=True)):
        if printed.setdefault(table, name) != name and len(panels[panel]) > 1:
            anchor = f"batchscore-{printed[table]}".replace(" ", "-")
            tables[index] = f"\n{panel}: the options of [batchscore {printed[table]}](#{anchor}).\n"
    return f"\n## batchscore {name}\n\n{text}\n{''.join(tables)}"


def _line(option: Any, declared: Any) -> str:
    """The row of an option or argument in its table; `declared` is its annotation."""
    names = [] if option.param_type_name == "argument" else [*option.opts, *option.secondary_opts]
    spelling = f"{', '.join(names)} {option.metavar or _values(declared.__origin__)}".strip()
    text = declared.__metadata__[0].help  # typer 0.25 has none at an argument itself
    return _row(f"`{spelling}`", text + _ending(option))


def _ending(option: Any) -> str:
    """What a help text does not say: that an option is required, or its default."""
    if option.required:
        return " Required."
    return f" (default: {option.default})" if option.default is not None and not option.is_flag else ""


def _values(kind: Any) -> str:
    """The choices of an option, or what kind of value it takes."""
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    (kind,) = {*(get_args(kind) or [kind])} - {NoneType}  # X | None is optional
    return _KINDS[kind] if kind in _KINDS else _values(kind)


def _row(*cells: Any) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


# ---- the Python API


def _place(function: Any) -> tuple[bool, str, int]:
    """The functions of jobs first, and those of a module as they stand there."""
    module = function.__module__
    return module != score_files.__module__, module, inspect.unwrap(function).__code__.co_firstlineno


def _class(kind: Any) -> Iterator[str]:
    """A class: how it is made, or its fields, or the methods that a caller is to write; then its own methods."""
    if not is_dataclass(kind) and kind.__name__ in batchscore.__all__:
        yield _callable(f"## {kind.__name__}", kind)
    else:
        place = "" if kind.__name__ in batchscore.__all__ else f"In `{kind.__module__}`. "
        yield f"\n## {kind.__name__}\n\n{place}{kind.__doc__}\n"
    if getattr(kind, "_is_protocol", False):
        yield f"\n```py\n{inspect.getsource(kind).rstrip()}\n```\n"
        return
    if is_dataclass(kind):
        rows = [_row(f"`{name}`", f"`{type_}`", comment) for name, type_, comment in _members(kind)]
        yield _table(("Field", "Type", ""), rows)
    for name in _METHODS.get(kind.__name__, vars(kind)):
        member = vars(kind)[name]
        if isinstance(member, property):
            yield f"\n`{kind.__name__}.{name}`: {member.__doc__}\n"
        elif inspect.isfunction(member) and not name.startswith("_"):
            yield _callable(f"### {kind.__name__}.{name}", member)


def _callable(heading: str, function: Any) -> str:
    """A function or a class with its signature and its docstring."""
    text = inspect.cleandoc(function.__doc__) + "\n"
    parts = [f"\n{heading}\n\n```py\n{_signature(function)}\n```\n\n{_PART.sub('', text).strip()}\n"]
    for title, body in _PART.findall(text):
        if title == "Returns":
            parts.append(f"\nReturns {inspect.cleandoc(body)}\n")
        else:
            entries = [f"- {names}: {said}" for names, said in _entries(body).items()]
            parts.append("\n".join([f"\n{_TITLES[title]}:\n", *entries, ""]))
    return "".join(parts)


def _entries(body: str) -> dict[str, str]:
    """What a part of a docstring says of each name, or of several together."""
    _, *pieces = _ENTRY.split(inspect.cleandoc(body))
    names = [re.sub(r"\w+", r"`\g<0>`", name) for name in pieces[::2]]
    return dict(zip(names, (" ".join(said.split()) for said in pieces[1::2]), strict=True))


def _signature(function: Any) -> str:
    """As it is written: on a line, or with a line for each parameter."""
    signature = inspect.signature(function)
    shown: list[str] = []
    for one in signature.parameters.values():
        if one.kind is one.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        if one.name != "self":
            default = "" if one.default is one.empty else f" = {one.default!r}".replace("'", '"')
            type_ = _spelled_out(one.annotation, function)
            shown.append(f"{'**' * (one.kind is one.VAR_KEYWORD)}{one.name}: {type_}{default}")
    result = "" if inspect.isclass(function) else f" -> {_spelled_out(signature.return_annotation, function)}"
    line = f"{function.__name__}({', '.join(shown)}){result}"
    if len(line) > _WIDTH:
        line = "\n".join([f"{function.__name__}(", *(f"    {one}," for one in shown), f"){result}"])
    return line


def _members(kind: Any) -> list[tuple[str, str, str]]:
    """Name, type and comment of what a class itself declares."""
    found = _MEMBER.findall(inspect.getsource(kind))
    return [(name, _spelled_out(annotation, kind), comment) for name, annotation, comment in found]


def _spelled_out(annotation: str, owner: Any) -> str:
    """An annotation with what stands behind our own names for choices, unions and mappings."""
    known = vars(sys.modules[owner.__module__])

    def meaning(name: re.Match[str]) -> str:
        value = known.get(name[0])
        return name[0] if get_origin(value) is None else _MODULE.sub("", str(value))

    return re.sub(r"\b[A-Z]\w+\b(?!\[)", meaning, annotation).replace("'", '"')


def _keywords(group: Any, command: str) -> str:
    """A group of options, as the flags of a command explain them."""
    flags = {flag: option for option in commands()[command].params for flag in option.opts}
    of_scorer = _entries(dict(_PART.findall(inspect.cleandoc(batchscore.Scorer.__doc__ or "")))["Args"])
    rows = []
    for name, type_, comment in _members(group):
        option = flags.get(f"--{name.replace('_', '-')}")
        text = option.help + _ending(option) if option else of_scorer[f"`{name}`"].capitalize()
        rows.append(_row(f"`{name}`", f"`{type_}`", f"{text} In Python: {comment}." if comment else text))
    bases = re.findall(r"\((\w+Options),", inspect.getsource(group))  # which Python 3.10 does not tell of a TypedDict
    beside = "".join(f" Beside these, [{base}](#{base.lower()})." for base in bases)
    return f"\n### {group.__name__}\n\n{group.__doc__}{beside}\n{_table(('Keyword', 'Type', ''), rows)}"


def _error_table() -> str:
    rows = [
        _row(f"`{name}`", ", ".join(f"`{base.__name__}`" for base in kind.__bases__), f"{kind.exit_code}", kind.__doc__)
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, errors.BatchscoreError)
    ]
    return _table(("Error", "Is a", "Exit code", ""), rows)


def _table(heads: tuple[str, ...], rows: list[str]) -> str:
    return "\n".join(["", _row(*heads), "|" + "---|" * len(heads), *rows, ""])


def main() -> None:
    """Write the pages."""
    models = DOCS / "models.md"
    written = {DOCS / "cli.md": cli_page(), DOCS / "api.md": api_page(), models: models_page(models.read_text("utf-8"))}
    for page, text in written.items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
