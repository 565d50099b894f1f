"""Kill runs at random moments, run the same command again, and compare the output with an undisturbed one.

    python benchmarks/kills.py [KILLS [SEED]]

Each kill is a SIGKILL at a moment drawn evenly over the time that an undisturbed run takes; every fourth is aimed at
the write of a part or at the assembly, which are short; outputs are compared byte for byte. Runs are forks of a process
that has loaded everything, so that a kill costs a second and not ten. Prints what each kill hit, and a table.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: no threads that a fork would lose

from memory import write_pairs
from models import model_folder

from batchscore.cli.main import app
from batchscore.jobs.files import score_files as _  # noqa: F401  what a fork need not load again

ROWS = 20_000
OPTIONS = ["--unit-rows", "500", "--quiet"]
PART, ASSEMBLY = "in the write of a part", "in the assembly"
AIMED = {0: ASSEMBLY, 5: ASSEMBLY, 7: ASSEMBLY, 12: PART}  # of sixteen kills
SCENES = {
    "score to Parquet": ("score", "out.parquet"),
    "score to JSONL": ("score", "out.jsonl"),
    "score to parts/": ("score", "parts/"),
    "rerank, queries scattered": ("rerank", "ranked.parquet"),
}


def begin(model: str, command: str, out: str) -> int:
    """Process id of a run."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        try:
            app([command, "--model", model, "--in", "pairs.parquet", "--out", out, *OPTIONS])
        except SystemExit as end:
            os._exit(int(end.code or 0))
        os._exit(1)
    return process


def exit_code(process: int) -> int:
    """Wait for its end."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def content(out: str) -> dict[str, bytes]:
    """The output, without records of when and where."""
    path = Path(out)
    files = [path] if path.is_file() else [file for file in path.iterdir() if not file.name.startswith("_run")]
    return {file.name: file.read_bytes() for file in files}


def moment(out: str) -> str:
    """What a run was at when it was killed."""
    folder = Path(out) if out.endswith("/") else Path(f".{out}.parts")
    if not folder.exists():
        return "before the first unit" if not Path(out).exists() else "after the end"
    names = os.listdir(folder)
    if any(".tmp-" in name for name in names):
        return PART
    if any(name.startswith(f".{out}.tmp-") for name in os.listdir(".")):
        return ASSEMBLY
    if "texts.json" not in names:
        return "while texts were collected" if "_job.json" in names else "before the first unit"
    encoded = sum(name.startswith("block-") and name.endswith(".safetensors") for name in names)
    if encoded < len(json.loads((folder / "texts.json").read_bytes())["blocks"]):
        return "while texts were encoded"
    units = -(-ROWS // 500)
    if sum(name.startswith("part-") and name.endswith(".parquet") for name in names) == units:
        return "after the last part"
    return "in a unit"


def wait_for(process: int, out: str, what: str, seconds: float) -> None:
    """Until a run is at it, after so many seconds, or is over."""
    if what == PART:
        time.sleep(seconds)
    while moment(out) != what:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            return


def clean(out: str) -> None:
    """Nothing is left of a job."""
    os.system(f"rm -rf {out} .{out}.parts .{out}.tmp-* {out}.run.json")


def main() -> None:
    """Kill and compare."""
    kills, seed = (int(argument) for argument in (sys.argv[1:] + ["100", "0"][len(sys.argv) - 1 :]))
    draw, hits, same, lost = random.Random(seed), Counter[str](), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        model = str(model_folder("tiny bi-encoder", Path(folder)))
        write_pairs(Path("pairs.parquet"), ROWS)
        whole, seconds = {}, {}
        for scene, (command, out) in SCENES.items():
            start = time.perf_counter()
            assert exit_code(begin(model, command, out)) == 0, scene
            seconds[scene], whole[scene] = time.perf_counter() - start, content(out)
            clean(out)
            print(f"{scene}: {seconds[scene]:.1f} s undisturbed", flush=True)
        for kill in range(kills):
            scene = list(SCENES)[kill % len(SCENES)]
            command, out = SCENES[scene]
            alive = False
            while not alive:  # a run that was quicker than the first is no kill
                clean(out)
                process = begin(model, command, out)
                if kill % 16 in AIMED and not out.endswith("/"):
                    wait_for(process, out, AIMED[kill % 16], draw.uniform(0, 0.6 * seconds[scene]))
                else:
                    time.sleep(draw.uniform(0, seconds[scene]))
                os.kill(process, signal.SIGKILL)
                alive = exit_code(process) == -signal.SIGKILL
            what = moment(out)
            code = exit_code(begin(model, command, out))
            there = code == 0 and Path(out).exists()
            equal = there and content(out) == whole[scene]
            hits[what] += 1
            same += equal
            lost += not equal
            print(
                f"kill {kill + 1:3}  {scene:26} {what:27} {'identical' if equal else f'DIFFERENT, code {code}'}",
                flush=True,
            )
            clean(out)
    print("\n".join(f"{number:4} {what}" for what, number in hits.most_common()))
    print(f"{kills} kills, {same} identical outputs, {lost} different")
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
