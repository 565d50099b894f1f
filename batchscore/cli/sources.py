"""Where the value of an option comes from: the command line, else the environment, else a job file, else its default.

A variable is named after its flag (BATCHSCORE_UNIT_ROWS), and so is a key of a job file (unit-rows = 4096). Both reach
typer as further defaults, and as text, so that one parser checks a value wherever it is from.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from batchscore.errors import BatchscoreError, NotFoundError, UsageError, first_line, flags_in

_PREFIX = "BATCHSCORE"
_NO_OPTIONS = ("BATCHSCORE_DEBUG", "BATCHSCORE_KERNELS")
_CLOSE = 0.8  # how similar a name must be to be a slip: other programs may have variables of the same prefix
_HELP = "batchscore {} --help lists the options"
_INPUTS = ("inputs", "queries", "corpus", "run", "qrels", "all_pairs")  # any of them says what is read
_CLICK_USAGE_ERROR: Any = typer.BadParameter.__base__  # typer has its own copy of click, or on Python 3.10 click itself
_CLICK_MISSING: Any = vars(sys.modules[typer.BadParameter.__module__])["MissingParameter"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value is from that is not on the command line."""

    place: str  # a file, or a variable
    key: str | None = None  # of the file

    def __str__(self) -> str:
        return self.place if self.key is None else f"{self.place}: {self.key}"


Origins = dict[str, Origin]  # by the names of parameters
_flags_from_elsewhere: ContextVar[Mapping[str, Origin] | None] = ContextVar("flags", default=None)


class SettledCommand(TyperCommand):
    """A command whose options are settled from all sources, and which can show them."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """As typer does it; what is wrong with the call is also told in the forms that the call asks for."""
        given = list(args)
        try:
            return super().make_context(info_name, args, parent, **extra)
        except (BatchscoreError, _CLICK_USAGE_ERROR) as error:
            lenient = {**extra, "resilient_parsing": True, "ignore_unknown_options": True, "allow_extra_args": True}
            asked = super().make_context(info_name, given, parent, **lenient).params
            if isinstance(error, _CLICK_MISSING):
                self._name_all_missing(error, asked)
            self._refuse(error, asked)
            raise

    def _name_all_missing(self, error: Any, asked: Mapping[str, Any]) -> None:
        """Have the message about a missing option name the others too, and show a call that has them."""
        reads = any(asked.get(name) for name in _INPUTS)
        needed = (param for param in self.params if param.required or (param.name == "inputs" and not reads))
        missing = [param for param in needed if not asked.get(param.name)]
        if any(param.param_type_name != "option" for param in missing):
            return
        example = f"batchscore {self.name} "
        lines = [line.strip() for line in (self.help or "").splitlines() if line.strip().startswith(example)]
        error.param, error.param_type = None, "option" if len(missing) == 1 else "options"
        error.param_hint = ", ".join(f"'{max(param.opts, key=len)}'" for param in missing)
        error.message = "".join(f"For example: {line}" for line in lines[:1])

    def _refuse(self, error: Any, asked: Mapping[str, Any]) -> None:
        """Show what is wrong with a call, unless that is left to typer."""
        from batchscore.cli.display import exit_on_error
        from batchscore.cli.result import Result

        result = Result.asked_for(str(self.name), asked) if "metrics_file" in asked else None
        is_typers = not isinstance(error, BatchscoreError)
        wrong = UsageError(error.format_message(), hint=_HELP.format(self.name)) if is_typers else error
        if result is not None:
            result.failed(wrong)
        if is_typers and not (result and result.display.is_json):
            return
        with exit_on_error(result.display if result is not None else None):
            raise wrong

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Add what the environment says; `read_job` adds the job file once its name is known."""
        ctx.default_map, ctx.meta[__name__] = _from_environment(self)
        if not ctx.resilient_parsing:
            _refuse_unknown_variables(ctx)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if error.param is not None and (origin := _origin(ctx, error.param.name)) is not None:
                error.param_hint = str(origin)
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command, or show its options."""
        if ctx.params["print_config"]:
            typer.echo(_as_json(ctx) if ctx.params.get("as_json") else _as_toml(ctx))
            raise typer.Exit
        origins = {flag: _origin(ctx, param.name) for param in self.params for flag in param.opts}
        token = _flags_from_elsewhere.set({flag: origin for flag, origin in origins.items() if origin is not None})
        try:
            return super().invoke(ctx)
        finally:
            _flags_from_elsewhere.reset(token)


def hint_of(error: BatchscoreError) -> str | None:
    """The hint of an error, and where the flags that its message names are set, if not on the command line."""
    places = _flags_from_elsewhere.get() or {}
    flags = [f"--{flag}" for flag in flags_in(error) if f"--{flag}" in places]
    hints = [*([error.hint] if error.hint else []), *(f"{flag} is set by {places[flag]}" for flag in flags)]
    return "; ".join(hints) or None


def _origin(ctx: Any, name: str) -> Origin | None:
    """Where the value of a parameter is from; None: the command line, or its default."""
    is_elsewhere = ctx.get_parameter_source(name).name == "DEFAULT_MAP"
    return ctx.meta[__name__][name] if is_elsewhere else None


def read_job(ctx: typer.Context, path: str | None) -> str | None:
    """Take options from a job file that neither the command line nor the environment has. The callback of --job."""
    if path is None:
        return None
    try:
        settings = _settings(path, ctx)
    except BatchscoreError:
        if ctx.resilient_parsing:  # a name is being completed, or the call was refused already
            return path
        raise
    origins, defaults = ctx.meta[__name__], ctx.default_map
    for name, (key, value) in settings.items():
        if name not in origins and defaults is not None:
            origins[name], defaults[name] = Origin(path, key), value
    return path


def variables(command: Any) -> dict[str, str]:
    """The environment variables that a command reads, and the names of their parameters.

    Its context settings may have a longer prefix, which keeps apart flags that mean something else in other commands.
    """
    prefix = command.context_settings.get("auto_envvar_prefix") or _PREFIX
    return {f"{prefix}_{key.replace('-', '_').upper()}": param.name for key, param in _flags(command).items()}


def _flags(command: Any) -> dict[str, Any]:
    """The options of a command by the long names that they have without hyphens in front."""
    return {
        flag.removeprefix("--"): param
        for param in command.params
        for flag in param.opts
        if flag.startswith("--") and param.name != "print_config"
    }


# ---- the environment


def _from_environment(command: Any) -> tuple[dict[str, Any], Origins]:
    """The values that variables give to parameters, one a line to those that take several, and which variables."""
    values: dict[str, Any] = {}
    origins: Origins = {}
    repeatable = {param.name for param in command.params if param.multiple}
    for variable, name in variables(command).items():
        text = os.environ.get(variable)
        if text and name not in values:
            values[name] = text.splitlines() if name in repeatable else text
            origins[name] = Origin(variable)
    return values, origins


def _refuse_unknown_variables(ctx: Any) -> None:
    """Raise UsageError for a variable that is nearly called like one of any command."""
    commands = getattr(ctx.find_root().command, "commands", {}).values()
    known = {name for command in commands if isinstance(command, SettledCommand) for name in variables(command)}
    known.update(_NO_OPTIONS)
    for variable in sorted(os.environ.keys() - known):
        if variable.startswith(f"{_PREFIX}_"):
            names = {name.removeprefix(f"{_PREFIX}_"): name for name in known}
            close = difflib.get_close_matches(variable.removeprefix(f"{_PREFIX}_"), names, 1, _CLOSE)
            if close:
                raise UsageError(f"{variable} is no variable of batchscore", hint=f"did you mean {names[close[0]]}?")


# ---- a job file


def _settings(path: str, ctx: Any) -> dict[str, tuple[str, Any]]:
    """The file's values for this command, by parameter, each with its key: those of its table after those of none."""
    content, commands = _content(path), getattr(ctx.find_root().command, "commands", {})
    tables = {key: value for key, value in content.items() if isinstance(value, dict) and key in commands}
    outside = {key: value for key, value in content.items() if key not in tables}
    return {**_checked(path, outside, ctx), **_checked(path, tables.get(ctx.info_name, {}), ctx)}


def _checked(path: str, table: Mapping[str, Any], ctx: Any) -> dict[str, tuple[str, Any]]:
    """A table's values and keys by parameter; UsageError for a key that no parameter has, or two of the same one."""
    arguments = (param for param in ctx.command.params if param.param_type_name == "argument")
    known = {**{param.name.replace("_", "-"): param for param in arguments}, **_flags(ctx.command)}
    del known["job"]
    found: dict[str, tuple[str, Any]] = {}
    for key, value in table.items():
        param = known.get((ctx.token_normalize_func or str)(str(key)))
        if param is None:
            names = [*known, *getattr(ctx.find_root().command, "commands", {})]
            close = difflib.get_close_matches(str(key).replace("_", "-"), names, 1)
            hint = f"did you mean {close[0]}?" if close else f"keys are the flags of batchscore {ctx.info_name}"
            raise UsageError(f"{path}: {ctx.info_name} has no option {key!r}", hint=hint)
        if param.name in found:
            raise UsageError(f"{path}: {found[param.name][0]} and {key} are one option", hint="drop one of them")
        found[param.name] = str(key), _value(f"{path}: {key}", value, param)
    return found


def _content(path: str) -> Mapping[str, Any]:
    """The mapping in a TOML or YAML file."""
    file = Path(path).expanduser()
    if file.suffix not in (".toml", ".yaml", ".yml"):
        raise UsageError(f"--job {path}: cannot tell what it is", hint="name it .toml, .yaml or .yml")
    try:
        content = _read_toml(file) if file.suffix == ".toml" else _read_yaml(file)
    except FileNotFoundError as error:
        raise NotFoundError(f"--job {path}: no such file", hint="a path begins at the working directory") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no options", hint="write `unit-rows: 4096`, one a line")
    return content


def _read_toml(file: Path) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(file.read_text("utf-8"))


def _read_yaml(file: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """YAML's own, except that a key which comes twice is an error, as in TOML."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            if twice := {key for key in keys if keys.count(key) > 1}:
                raise ValueError(f"line {node.start_mark.line + 1}: {min(map(str, twice))} is there twice")
            return dict(super().construct_mapping(node, deep))

    try:
        return yaml.load(file.read_text("utf-8"), Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _value(place: str, value: Any, param: Any) -> Any:
    """A value of a file as the command line has it: text, a list of texts, or whether a flag is set."""
    if param.multiple or param.nargs == -1:
        return [_scalar(place, one) for one in (value if isinstance(value, list) else [value])]
    metavar = param.metavar or ""
    if isinstance(value, dict | list) and metavar == "JSON":
        return json.dumps(value)
    if isinstance(value, list) and "," in metavar:
        return ",".join(_scalar(place, one) for one in value)
    if getattr(param, "is_flag", False) and isinstance(value, bool):
        return value
    return _scalar(place, value)


def _scalar(place: str, value: Any) -> str:
    """A value as text; UsageError if it is none, or has been read as something else than was written."""
    if value is None:
        raise UsageError(f"{place} has no value", hint="drop the line, or put the word null into quotes")
    if isinstance(value, bool):
        raise UsageError(f"{place}: {str(value).lower()} is neither text nor a number", hint="put a word into quotes")
    if isinstance(value, dict | list):
        raise UsageError(f"{place} takes one value, not several", hint="write one number or text")
    return str(value)


# ---- all of them


def _settled(ctx: Any) -> Iterator[tuple[str, Any, str]]:
    """(key, value, where it is from) of each option."""
    for param in ctx.command.params:
        if param.name in ("job", "print_config"):
            continue
        key = next((flag for flag in param.opts if flag.startswith("--")), param.name).removeprefix("--")
        value, origin = ctx.params[param.name], _origin(ctx, param.name)
        is_given = ctx.get_parameter_source(param.name).name == "COMMANDLINE"
        place = origin.place if origin is not None else "flag" if is_given else "default"
        yield key, None if value in ((), []) else value, place


def _as_toml(ctx: Any) -> str:
    """A job file with these options, which says in comments where they are from."""
    settled = [
        (f"# {key} =" if value is None else f"{key} = {json.dumps(value, ensure_ascii=False)}", place)
        for key, value, place in _settled(ctx)
    ]
    width = min(60, max(len(line) for line, _ in settled))
    return "\n".join(f"{line:<{width}}  # {place}" for line, place in settled)


def _as_json(ctx: Any) -> str:
    options = {key: {"value": value, "source": place} for key, value, place in _settled(ctx)}
    return json.dumps(options, ensure_ascii=False, indent=2)
