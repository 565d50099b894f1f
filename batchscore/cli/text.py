"""What commands print on standard output: JSON for programs, lines and tables for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from batchscore.inspection import Inspection
    from batchscore.verification.result import Verification

_FEW = 5  # swapped pairs that are shown


def print_result(values: Any, lines: Sequence[str], *, as_json: bool) -> None:
    """Print a result: its values as JSON, or its lines."""
    typer.echo(json.dumps(values, ensure_ascii=False, indent=2) if as_json else "\n".join(lines))


def inspection_lines(inspection: Inspection) -> list[str]:
    """The spec, the prompt, the tokens and the tensors, and last what would stop a run."""
    findings = inspection.findings
    lines = [f"model {inspection.model}"]
    if "spec" in findings:
        lines += ["", "spec", *_spec_lines(findings["spec"]), f"  score_range = {findings['score_range']}"]
        if not findings["listed"]:
            lines.append("  this architecture is not listed by name: it is read like others of its kind")
    for side, text in findings.get("prompt", {}).items():
        lines += ["", f"prompt ({side})", *(f"  {line!r}" for line in text.splitlines(keepends=True))]
    for sequence in findings.get("sample", []):
        lines += ["", f"tokens ({sequence['side']}, {len(sequence['ids'])})", *_token_lines(sequence)]
    if "media" in findings:
        lines += ["", *_media_lines(findings["media"])]
    if "tensors" in findings:
        used, unused = findings["tensors"]["used"], findings["tensors"]["unused"]
        lines += ["", f"tensors: {len(used)} used, {len(unused)} unused", *(f"  unused {name}" for name in unused)]
    if "tensors_unchecked" in findings:
        lines += ["", f"tensors: not checked, {findings['tensors_unchecked']}"]
    lines += ["", "ready: a run would start" if not inspection.problems else "a run would fail"]
    for problem in inspection.problems:
        lines += [f"  {problem.message}", *([f"  hint: {problem.hint}"] if problem.hint else [])]
    return lines


def _media_lines(media: Mapping[str, Any]) -> list[str]:
    """How an image is read."""
    size = " x ".join(map(str, media["size"]))
    resized = (
        f", resized to {' x '.join(map(str, media['resized']))} by {media['backend']}" if "resized" in media else ""
    )
    lines = [
        f"image ({media['image']}, {size} pixels{resized})",
        f"  {media['tokens']} tokens of {media['sequence']} in all, {media['patches']} patches in a grid of "
        f"{' x '.join(map(str, media['grid']))}",
    ]
    if media["placeholder"]:
        lines.append(f"  stands in the prompt as {media['placeholder']!r}")
    lines.append(f"  around it: {' '.join(media['tokens_around'])}")
    if media["frames"]:
        rule = ", ".join(f"{name} {value}" for name, value in media["frames"].items())
        lines.append(f"  of a video file: {rule}; of a list of frames all are read")
    return lines


def _spec_lines(spec: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Each field that is set, with its source."""
    width = max(map(len, spec))
    shown = {name: entry for name, entry in spec.items() if _is_set(entry["value"])}
    return [f"  {name:<{width}} = {entry['value']!r}  ({entry['source']})" for name, entry in shown.items()]


def _is_set(value: object) -> bool:
    return any(value) if isinstance(value, list) else bool(value)


def _token_lines(sequence: Mapping[str, Any]) -> list[str]:
    counted = sequence.get("counted") or [True] * len(sequence["ids"])
    tokens = zip(sequence["ids"], sequence["tokens"], counted, strict=True)
    cells = [f"{token}:{number}" if counts else f"({token}:{number})" for number, token, counts in tokens]
    note = [] if all(counted) else ["  (tokens in brackets are read but not compared)"]
    return [f"  {' '.join(cells)}", *note]


def verification_lines(verification: Verification) -> list[str]:
    """What was compared and how it came out; the last line, if all is well, stands on its own."""
    setup, reference = verification.setup, verification.reference
    spec, placement = setup.spec, setup.placement
    lines = [f"model      {verification.model}: {spec.score_type}, max_length {spec.max_length}"]
    lines.append(f"reference  {f'{reference} ({reference.model_class})' if reference else 'none'}")
    lines.append(f"numbers    {placement.dtype} on {placement.device}, tolerance {verification.tolerance:g}")
    rows = []
    for comparison in verification.comparisons:
        difference, row = comparison.worst
        scores = f"{comparison.expected[row]:.7g} {comparison.found[row]:.7g}"
        cells = {"comparison": comparison.name, "pairs": str(comparison.count), "worst": f"{difference:.1e}"}
        rows.append(cells | {"scores": scores, "on": verification.named(row) if difference else ""})
    lines += ["", *table_lines(rows, "text"), ""]
    if order := verification.order_differences():
        swapped = ", ".join(f"{one + 1} and {other + 1}" for one, other in order[:_FEW])
        more = f" and {len(order) - _FEW} more" if len(order) > _FEW else ""
        lines.append(f"order      the reference ranks the other way round: pairs {swapped}{more}")
    elif reference:
        lines.append("order      as the reference ranks the pairs")
    if verification.beyond:
        lines.append(f"beyond     the tolerance: pairs {_numbers(verification.beyond)}")
    for reason in dict.fromkeys(verification.left_out.values()):
        left_out = [row for row, why in sorted(verification.left_out.items()) if why == reason]
        lines.append(f"left out   pairs {_numbers(left_out)}: {reason}")
    lines += [
        f"note       {library} is not the reference: {reason}" for library, reason in verification.refused.items()
    ]
    lines += [f"note       {note}" for note in verification.notes]
    return lines if verification.problem else [*lines, f"verified: {verification.summary}"]


def _numbers(rows: Sequence[int]) -> str:
    return ", ".join(str(row + 1) for row in rows)


def table_lines(rows: Sequence[Mapping[str, str]], form: str) -> list[str]:
    """Rows as aligned text, or as a Markdown table."""
    heads, lines = list(rows[0]), [list(row.values()) for row in rows]
    if form == "markdown":
        named = [[f"`{name}`", *(f"`{cell}`" if "/" in cell else cell for cell in others)] for name, *others in lines]
        return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *named)]
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in (heads, *lines)]
