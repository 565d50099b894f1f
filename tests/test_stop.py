"""The first request lets what is begun come to its end; a second signal does not wait."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event, Timer
from time import monotonic

import pytest

from batchscore import stop as stopping
from batchscore.errors import StoppedError
from batchscore.stop import SIGNALS, Stop

# ---- requests


def test_nothing_happens_before_the_end_is_asked_for() -> None:
    stop = Stop()
    stop.check()
    with stop.polling():
        stop.check()
    assert not stop.requested


def test_the_first_request_is_told_by_every_check() -> None:
    stop = Stop()
    stop.request("SIGTERM")
    stop.request("--max-seconds")
    assert stop.requested
    for call in (stop.check, stop.check, stop.polling().__enter__):
        with pytest.raises(StoppedError) as caught:
            call()
        assert (caught.value.message, caught.value.exit_code) == ("stopped by SIGTERM", 75)
        assert caught.value.hint == "run the same command again to resume"


def test_a_polled_block_says_so_until_it_is_left() -> None:
    stop = Stop()
    with stop.polling():
        assert stop.polled
    assert not stop.polled
    with pytest.raises(ZeroDivisionError), stop.polling():
        _ = 1 // 0
    assert not stop.polled


def test_time_asks_for_the_end() -> None:
    stop, never = Stop(), Stop()
    stop.after(0.01)
    never.after(3600)
    waited: Future[None] = Future()
    with pytest.raises(StoppedError, match="stopped by --max-seconds"):
        stop.result(waited)
    assert not never.requested


# ---- waiting


def test_a_result_is_what_the_future_gives() -> None:
    stop = Stop()
    with ThreadPoolExecutor(1) as threads:
        assert stop.result(threads.submit(int, "7")) == 7
        with pytest.raises(ValueError, match="invalid literal"):
            stop.result(threads.submit(int, "x"))


def test_waiting_ends_when_the_end_is_asked_for() -> None:
    stop, waited = Stop(), Future[int]()
    Timer(0.05, stop.request, ["SIGUSR1"]).start()
    with pytest.raises(StoppedError, match="stopped by SIGUSR1"):
        stop.result(waited)
    assert not waited.done()


def test_results_that_are_there_do_not_hide_the_request() -> None:
    """Packs may come so fast that nobody ever waits for one."""
    stop, done = Stop(), Future[int]()
    done.set_result(7)
    stop.request("SIGTERM")
    with pytest.raises(StoppedError, match="stopped by SIGTERM"):
        stop.result(done)


def test_settling_drops_what_has_not_begun_and_waits_for_the_rest() -> None:
    stop, begun, go_on = Stop(), Event(), Event()

    def work() -> str:
        begun.set()
        go_on.wait(20)
        return "done"

    with ThreadPoolExecutor(1) as threads:
        first, second, third = (threads.submit(work) for _ in range(3))
        begun.wait(20)
        stop.request("SIGTERM")
        Timer(0.1, go_on.set).start()
        stop.settle([first, second, third])
        assert first.result(0) == "done"
    for future in (second, third):
        with pytest.raises(CancelledError):
            future.result(0)
    assert not stop.unsettled


@pytest.mark.parametrize("is_requested", [False, True])
def test_settling_waits_no_longer_than_the_grace_and_says_so(
    is_requested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "GRACE_SECONDS", 0.2)
    stop, running = Stop(), Future[None]()
    running.set_running_or_notify_cancel()
    if is_requested:
        stop.request("SIGTERM")
    began = monotonic()
    stop.settle([running])
    assert stop.unsettled
    assert 0.15 < monotonic() - began < 20
    stop.settle([])  # which does not undo it
    assert stop.unsettled


def test_the_grace_begins_with_the_request_and_not_with_each_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, running = Stop(), Future[None]()
    running.set_running_or_notify_cancel()
    stop.request("SIGTERM")
    requested = monotonic()
    monkeypatch.setattr(stopping, "monotonic", lambda: requested + stopping.GRACE_SECONDS + 1)
    began = monotonic()
    stop.settle([running])
    assert monotonic() - began < stopping.GRACE_SECONDS / 2
    assert stop.unsettled


# ---- signals


HEAD = """
import signal, sys, time
from batchscore.errors import StoppedError
from batchscore.stop import Stop

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores in its background
stop = Stop()
"""

# looks often, and finishes what it is at
POLLED = """
stop.listen()
with stop.polling():
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("asked", flush=True)
    sys.stdin.readline()
    try:
        stop.check()
    except StoppedError as error:
        print(error.message, flush=True)
        sys.exit(error.exit_code)
"""

# does not look: the signal raises where it finds the program
UNPOLLED = """
stop.listen()
try:
    with stop.interruptible():
        print("ready", flush=True)
        try:
            time.sleep(60)
        except Exception:  # as libraries do
            print("caught", flush=True)
except StoppedError as error:
    print(error.message, flush=True)
    sys.exit(error.exit_code)
"""


def run(code: str, talk: Callable[[subprocess.Popen[str], Callable[[], str]], None]) -> int:
    """The exit code of a process that one talks with."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD + code],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stdout = process.stdout
    assert stdout is not None
    try:
        assert stdout.readline() == "ready\n"
        talk(process, lambda: stdout.readline().strip())
        process.communicate(timeout=30)
        return process.returncode
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_first_signal_waits_and_a_second_ends_at_once(number: signal.Signals) -> None:
    def once(process: subprocess.Popen[str], said: Callable[[], str]) -> None:
        process.send_signal(number)
        assert said() == "asked"
        assert process.stdin is not None
        print(file=process.stdin, flush=True)
        assert said() == f"stopped by {number.name}"

    def twice(process: subprocess.Popen[str], said: Callable[[], str]) -> None:
        process.send_signal(number)
        assert said() == "asked"
        process.send_signal(number)  # it waits for a line that never comes

    assert run(POLLED, once) == 75
    assert run(POLLED, twice) == 128 + number


def test_the_second_signal_names_the_exit_code_and_the_first_the_reason() -> None:
    def both(process: subprocess.Popen[str], said: Callable[[], str]) -> None:
        process.send_signal(signal.SIGTERM)
        assert said() == "asked"
        process.send_signal(signal.SIGINT)

    assert run(POLLED, both) == 130


def test_after_the_clock_the_first_signal_is_still_the_first() -> None:
    """Slurm sends SIGTERM at about the time that --max-seconds was set to; only exit code 75 starts the job again."""

    def once(process: subprocess.Popen[str], said: Callable[[], str]) -> None:
        assert said() == "asked"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.stdin is not None
        print(file=process.stdin, flush=True)
        assert said() == "stopped by --max-seconds"

    assert run("stop.after(0.2)\n" + POLLED, once) == 75


def test_where_nobody_looks_a_signal_raises() -> None:
    def once(process: subprocess.Popen[str], said: Callable[[], str]) -> None:
        process.send_signal(signal.SIGUSR1)
        assert said() == "stopped by SIGUSR1"

    assert run(UNPOLLED, once) == 75


def test_a_signal_that_is_ignored_stays_so() -> None:
    def send(process: subprocess.Popen[str], said: Callable[[], str]) -> None:
        process.send_signal(signal.SIGINT)  # as in a shell's background, or under nohup
        process.send_signal(signal.SIGTERM)
        assert said() == "stopped by SIGTERM"

    assert run("signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + UNPOLLED, send) == 75


def test_the_signals_are_those_of_schedulers_and_people() -> None:
    expected: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    assert expected == SIGNALS


@pytest.mark.slow
def test_a_signal_in_the_seconds_of_loading_ends_a_run_with_75(tmp_path: Path) -> None:
    """Of the work nothing is begun, and a scheduler that starts it again does the right thing."""
    command = [sys.executable, "-m", "batchscore", "score", "--model", "none", "--in", "none", "--out", "o.parquet"]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    maps = Path(f"/proc/{run.pid}/maps")
    while "libtorch" not in maps.read_text():
        assert run.poll() is None
    run.send_signal(signal.SIGUSR1)

    assert run.wait(30) == 75
