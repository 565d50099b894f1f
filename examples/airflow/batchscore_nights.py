"""Rerank and evaluate every night, with Airflow (2 or 3): copy this file into the folder of DAGs.

A task that was stopped (exit code 75) or killed is tried again, and resumes. An evaluation that fails is not: its exit
code 9 means that the ranking is not good enough, and its log says what fell.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow import DAG

try:
    from airflow.providers.standard.operators.bash import BashOperator
except ImportError:  # Airflow 2 without the provider
    from airflow.operators.bash import BashOperator

FOLDER = "/data/search"  # with night.toml (examples/night.toml is one), and where the nights go
NIGHT = "nights/{{ ds }}"

with DAG(
    "batchscore_nights",
    description="Rerank and evaluate every night",
    schedule="30 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"cwd": FOLDER, "append_env": True},
) as dag:
    rerank = BashOperator(
        task_id="rerank",
        # exit code 7 is a success with some bad rows, which the log names
        bash_command=f"mkdir -p {NIGHT} && batchscore rerank --job night.toml --out {NIGHT}/ranked.parquet "
        "--store nights/store --log-format json || [ $? -eq 7 ]",
        retries=3,
        retry_delay=timedelta(minutes=5),
    )
    evaluate = BashOperator(
        task_id="evaluate",
        bash_command=f"batchscore eval {NIGHT}/ranked.parquet --job night.toml --out {NIGHT}/queries.parquet",
        retries=0,
    )
    rerank >> evaluate
