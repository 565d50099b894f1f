"""The commands, by name: what is made of a unit's rows, and how parts become one output."""

from __future__ import annotations

from batchscore.jobs.commands.base import BadRow, Command, Counts, UnitRows
from batchscore.jobs.commands.encode import EncodeCommand
from batchscore.jobs.commands.requests import RequestsCommand
from batchscore.jobs.commands.rerank import RerankCommand
from batchscore.jobs.commands.score import ScoreCommand

COMMANDS: dict[str, type[ScoreCommand | RerankCommand | EncodeCommand | RequestsCommand]] = {
    command.name: command for command in (ScoreCommand, RerankCommand, EncodeCommand, RequestsCommand)
}

__all__ = [
    "COMMANDS",
    "BadRow",
    "Command",
    "Counts",
    "EncodeCommand",
    "RequestsCommand",
    "RerankCommand",
    "ScoreCommand",
    "UnitRows",
]
