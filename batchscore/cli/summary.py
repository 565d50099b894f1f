"""What a run says before and after the work, as lines for a person."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from batchscore.cli.options import Shares
from batchscore.io.source import Source
from batchscore.io.units import Unit
from batchscore.jobs.output import Output
from batchscore.jobs.parts import Parts
from batchscore.jobs.plan import Plan
from batchscore.jobs.shards import Shard


def work_lines(source: Source, shard: Shard, shares: Shares, parts: Parts, todo: Sequence[Unit]) -> list[str]:
    """The input, whose share of it this is, and what of that is not done yet."""
    files, units, rows = len(source.files), len(parts.units), parts.rows
    here = sum(unit.rows for unit in todo)
    lines = [f"input    {files} file{'s' * (files != 1)}, {rows:,} rows in {units:,} unit{'s' * (units != 1)}"]
    if shard.count > 1 or shares.claim == "dynamic":
        how = "as they come" if shares.claim == "dynamic" else "by turns"
        lines.append(f"share    shard {shard.index}/{shard.count} ({shard.origin}), units {how}")
    if here < rows:
        lines.append(f"to do    {here:,} rows in {len(todo):,} units")
    return lines


def summary_lines(
    plan: Plan, output: Output, done: Mapping[str, Any], counts: Mapping[str, Any], result: str, record: str
) -> list[str]:
    """How it went; the last line stands on its own.

    Args:
        plan: of the run.
        output: what was asked for.
        done: counts of this run.
        counts: of all runs of the job, with seconds and memory of this one.
        result: where the output is.
        record: where the record is.
    """
    seconds, placement = counts["seconds"], plan.setup.placement
    stages = ", ".join(f"{stage} {spent:.1f}" for stage, spent in seconds.items() if stage != "total")
    cut = ", ".join(f"{name} {number:,}" for name, number in counts.get("cut", {}).items() if number) or "none"
    spent = max(seconds["total"], 1e-3)
    texts, tokens, memory = counts.get("texts", 0), counts.get("tokens", 0), counts["peak_rss_mb"]
    lines = [
        f"texts    {texts:,} distinct, {tokens:,} tokens; peak memory {memory:,} MB",
        f"cut      {cut}",
        f"seconds  {stages} (reading, tokenising and writing run beside the model)",
        f"record   {record}",
    ]
    if faulty := counts.get("faulty"):
        lines.append(f"errors   {faulty:,} rows at fault ({plan.errors}): {output.errors}")
    speed = f"{done['rows'] / spent:,.0f} rows/s, {done['tokens'] / spent:,.0f} tokens/s"
    where = f"on {placement.device} in {placement.dtype} -> {result}"
    return [*lines, f"{done['rows']:,} rows in {spent:,.1f} s ({speed}) {where}"]


def peak_rss_mb() -> int:
    """Peak resident memory of the largest process, workers included."""
    unit = 1024 if sys.platform == "linux" else 1024**2
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(max(resource.getrusage(who).ru_maxrss for who in whose) / unit)
