"""Writes what docs/ repeats from the program: the options in cli.md and the table of architectures in models.md.

Run it with `make docs`. tests/test_docs.py fails while a file differs from what this would write.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from typer.main import get_command

from batchscore.cli.main import app
from batchscore.cli.report import table_lines
from batchscore.inspection import architecture_table

DOCS = Path(__file__).parent
_INTRODUCTION = """# Command line

<!-- Written by docs/generate.py. Change the help texts in batchscore/cli/options.py, then run `make docs`. -->

`batchscore COMMAND --help` shows the same. An underscore in an option's name is read as a hyphen. Options may also come
[from files and the environment](cron.md#options-from-files-and-the-environment).
"""
_KINDS = {int: "N", float: "N", str: "TEXT", bool: ""}


def cli_page() -> str:
    """All commands with their arguments and options; a panel that an earlier command has too is not repeated."""
    printed: dict[str, str] = {}  # panel -> the command it was printed for
    sections = [_section(name, command, printed) for name, command in commands().items()]
    return _INTRODUCTION + "".join(sections)


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
    if option.required:
        text += " Required."
    elif option.default is not None and not option.is_flag:
        text += f" (default: {option.default})"
    return f"| `{_escaped(spelling)}` | {_escaped(text)} |"


def _values(kind: Any) -> str:
    """The choices of an option, or what kind of value it takes."""
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    (kind,) = {*(get_args(kind) or [kind])} - {NoneType}  # X | None is optional
    return _KINDS[kind] if kind in _KINDS else _values(kind)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def main() -> None:
    """Write both pages."""
    (DOCS / "cli.md").write_text(cli_page(), encoding="utf-8")
    models = DOCS / "models.md"
    models.write_text(models_page(models.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
