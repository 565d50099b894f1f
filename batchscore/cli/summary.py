"""What a person reads after a run."""

from __future__ import annotations

from batchscore.jobs.events import Outcome


def summary_lines(outcome: Outcome) -> list[str]:
    """How a run went; the last line stands on its own."""
    counts, plan = outcome.counts, outcome.plan
    seconds, spec, placement = counts["seconds"], plan.setup.spec, plan.setup.placement
    stages = ", ".join(f"{stage} {spent:.1f}" for stage, spent in seconds.items() if stage != "total")
    cut = ", ".join(f"{name} {number:,}" for name, number in counts.get("cut", {}).items() if number) or "none"
    # a model that reads a pair at once has no texts of its own to count
    label = "pairs" if spec.score_type == "cross-encoder" else "texts"
    distinct, tokens, memory = counts.get("texts", 0), counts.get("tokens", 0), counts["peak_rss_mb"]
    lines = [
        f"{label}    {distinct:,} distinct, each counted once per unit; {tokens:,} tokens; peak memory {memory:,} MB",
        f"cut      {cut}",
        f"seconds  {stages} (these overlap, and add up over workers)",
        f"record   {outcome.record}",
    ]
    if outcome.bad_rows:
        lines.append(f"errors   {outcome.bad_rows:,} bad rows ({plan.errors}): {outcome.errors}")
    rows, spent = outcome.done["rows"], max(seconds["total"], 1e-3)
    # forwarded, as in the lines of progress: tokens that a cache or an earlier run answered took no time
    speed = f"{rows / spent:,.0f} rows/s, {counts['tokens_forwarded'] / spent:,.0f} tokens/s"
    where = f"on {placement.device} in {placement.dtype} -> {outcome.output}"
    return [*lines, f"{rows:,} rows in {spent:,.1f} s ({speed}) {where}"]
