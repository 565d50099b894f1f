"""What `--quantize` does to the scores of a job: the first process measures it, and keeps it in the job's folder."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import asdict

from batchscore.engine.batcher import Batcher
from batchscore.engine.layouts import RequestPairs
from batchscore.engine.quantization import QuantizationError, measure
from batchscore.io.source import Source
from batchscore.jobs.parts import QUANTIZATION, Parts
from batchscore.jobs.plan import Plan
from batchscore.jobs.records import as_json
from batchscore.stop import Stop


def quantization_error(
    plan: Plan, source: Source, parts: Parts, batcher: Batcher | None, stop: Stop
) -> QuantizationError | None:
    """What another process has measured, or what this one measures on rows of the first unit.

    Args:
        plan: of the job.
        source: its input.
        parts: its folder.
        batcher: of the quantized model; None: it is loaded for this.
        stop: ends the work between packs.

    Returns:
        None if the model is not quantized, or no row can be scored.

    Raises:
        StoppedError: `stop` was requested.
    """
    if plan.setup.placement.quantize == "none":
        return None
    if (known := parts.quantization) is not None:
        return QuantizationError(**known)
    found = plan.command.load_pairs(source, parts.units[0]).pairs
    rows = found.pairs if isinstance(found, RequestPairs) else found
    if not len(rows):
        return None
    with ExitStack() as stack:
        error = measure(batcher or stack.enter_context(closing(Batcher(plan.setup))), rows, stop)
    if error is not None:
        parts.folder.create(QUANTIZATION, as_json(asdict(error)))
    return error
