"""`batchscore status` and `batchscore merge`: a job from outside, while it runs or after."""

from __future__ import annotations

from typing import Any

import typer

from batchscore.cli import options as o
from batchscore.cli.text import print_result


def status(out: o.OutArgument, as_json: o.AsJson = False) -> None:
    """Show how far a job is: units and rows done, what runs where, what failed, and when it will be done.

    batchscore status scores/
    """
    from batchscore.cli.display import exit_on_error
    from batchscore.jobs.status import job_status

    with exit_on_error():
        state = job_status(out)
        print_result(state, _lines(state), as_json=as_json)


def merge(
    out: o.OutArgument,
    file: o.MergedFile,
    out_format: o.OutputFormat = "auto",
    run_tag: o.RunTag = None,
    partial: o.Partial = False,
    quiet: o.Quiet = False,
) -> None:
    """Assemble the parts of a job: rows in input order, or for rerank whole rankings with their top_n.

    batchscore merge scores/ --out scores.parquet
    """
    from batchscore.cli.display import exit_on_error
    from batchscore.errors import OutputError
    from batchscore.io.outputs import chosen_format
    from batchscore.io.storage import target_path
    from batchscore.jobs.checks import refuse_merging_into
    from batchscore.jobs.merge import assemble
    from batchscore.jobs.output import find_parts, find_record
    from batchscore.stop import Stop

    stop = Stop()
    stop.listen()
    with exit_on_error(), stop.interruptible():
        parts = find_parts(out)
        if parts is None:
            find_record(out)
            raise OutputError(f"{out} is complete: nothing to merge", hint="it is the merged output itself")
        file = target_path(file)
        refuse_merging_into(parts, file)
        assemble(parts, file, stop, form=chosen_format(file, out_format, run_tag), partial=partial)
        if not quiet:
            typer.echo(f"{len(parts.finished()):,} of {len(parts.units):,} units -> {file}", err=True)


def _lines(state: dict[str, Any]) -> list[str]:
    units, rows = state["units"], state["rows"]
    lines = [f"job      {state['command']} of {', '.join(state['inputs'])}"]
    if units is not None:
        lines.append(
            f"units    {units['done']:,} of {units['total']:,} done, {units['running']:,} running, "
            f"{units['missing']:,} missing, {units['failed']:,} failed"
        )
    if texts := state["texts"]:
        blocks = f"{texts['blocks_done']:,} of {texts['blocks']:,} blocks done, {texts['blocks_running']:,} running"
        lines.append(f"texts    {texts['done']:,} of {texts['total']:,} encoded: {blocks}")
    lines.append(f"rows     {rows['done']:,} of {rows['total']:,} done, {rows['faulty']:,} bad")
    for worker in state["workers"]:
        speed = f"{worker['rows_in_work']:,} rows in work, {worker['rows_per_second']:,.0f} rows/s"
        tasks = f"blocks {worker['blocks']}" if worker["blocks"] else f"units {worker['units']}, {speed}"
        lines.append(f"worker   {worker['process']}, shard {worker['shard']}: {tasks}")
    lines += [f"failed   unit {unit}: {reason}" for unit, reason in state["failed"].items()]
    if state["complete"]:
        return [*lines, "complete"]
    eta = state["eta_seconds"]
    left = "no process is running" if not state["workers"] else "no rate yet" if eta is None else f"{eta:,} s to go"
    return [*lines, f"{rows['done'] / max(1, rows['total']):.0%} of the rows, {left}"]
