"""`python -m batchscore`."""

from batchscore.cli.main import app

app(prog_name="batchscore")
