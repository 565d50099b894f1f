"""How many cores a process may use, by the files of Linux's control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchscore.runners import device
from batchscore.runners.device import choose_device, cpu_quota, usable_cores


def files(root: Path, **content: str) -> Path:
    """A root with these files in it."""
    for name, text in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("content", "quota"),
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "5000 100000\n"}, 1),
        ({"sys/fs/cgroup/jobs/one/cpu.max": "300000 100000\n"}, 3),
        ({"sys/fs/cgroup/jobs/one/cpu.max": "max 100000\n", "sys/fs/cgroup/jobs/cpu.max": "200000 100000\n"}, 2),
        ({"sys/fs/cgroup/jobs/one/cpu.max": "200000 100000\n", "sys/fs/cgroup/jobs/cpu.max": "800000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "nonsense\n"}, None),
    ],
    ids=["no file", "whole", "no limit", "part", "little", "nested", "of the group around", "the smaller", "damaged"],
)
def test_the_quota_of_version_2_is_the_smallest_on_the_way_up(
    tmp_path: Path, content: dict[str, str], quota: int | None
) -> None:
    assert cpu_quota(files(tmp_path, **content, **{"proc/self/cgroup": "0::/jobs/one\n"})) == quota


@pytest.mark.parametrize(("quota_us", "quota"), [("-1", None), ("400000", 4), ("250000", 3)])
@pytest.mark.parametrize("path", ["", "docker/one/"], ids=["container's own root", "host's path"])
def test_the_quota_of_version_1_is_its_two_numbers(tmp_path: Path, path: str, quota_us: str, quota: int | None) -> None:
    group = f"sys/fs/cgroup/cpu,cpuacct/{path}"
    numbers = {f"{group}cpu.cfs_quota_us": f"{quota_us}\n", f"{group}cpu.cfs_period_us": "100000\n"}
    lines = "9:memory:/docker/one\n4:cpu,cpuacct:/docker/one\n3:cpuset:/docker/one\n"

    assert cpu_quota(files(tmp_path, **numbers, **{"proc/self/cgroup": lines})) == quota


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


def test_no_more_packs_run_at_once_than_the_quota_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(64))
    monkeypatch.setattr(device, "cpu_quota", lambda: 4)
    assert (choose_device("cpu", "float32").workers, usable_cores()) == (4, 4)

    monkeypatch.setattr(device, "cpu_quota", lambda: None)
    assert (choose_device("cpu", "float32").workers, usable_cores()) == (64, 64)


def test_a_quota_beyond_the_affinity_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(2))
    monkeypatch.setattr(device, "cpu_quota", lambda: 16)

    assert (choose_device("cpu", "float32").workers, usable_cores()) == (2, 2)
