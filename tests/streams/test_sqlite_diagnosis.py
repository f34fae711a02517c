# ruff: noqa: ASYNC240 -- a file in a temporary folder answers at once
"""What the embedded file says about itself, also when it cannot be used."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from omniactors.streams.sqlite.backend import SqliteBackend
from omniactors.streams.sqlite.lock import FileLock
from omniactors.streams.sqlite.places import file_system, kind_of, network_warning
from tests.streams.contract_kit import LIMIT, event, numbered, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from omniactors.streams.backend import Finding

MOUNTS = r"""
22 28 0:20 / / rw,relatime shared:7 - ext4 /dev/root rw
23 22 0:21 / /proc rw - proc proc rw
24 22 0:22 / /data rw,noatime shared:9 master:1 - nfs4 host:/data rw
25 24 0:23 / /data/my\040disk rw - xfs /dev/sdb rw
26 22 0:24 / /over rw - ext4 /dev/sdc rw
27 26 0:25 / /over rw - cifs //host/over rw
this is no mount
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "omni.db"


@pytest.fixture
async def backend(path: Path) -> AsyncIterator[SqliteBackend]:
    backend = SqliteBackend(path)
    with trio.fail_after(6 * LIMIT):
        yield backend
    await backend.close()


def finding(findings: list[Finding], check: str) -> Finding:
    return next(one for one in findings if one.check == check)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data", "nfs4"),
        ("/data/omni.db", "nfs4"),
        ("/database/omni.db", "ext4"),
        ("/data/my disk/omni.db", "xfs"),
        ("/over/omni.db", "cifs"),
        ("/", "ext4"),
    ],
)
def test_the_kind_of_a_place_is_that_of_the_mount_it_is_below(path: str, kind: str) -> None:
    assert kind_of(path, MOUNTS) == kind
    assert (network_warning(Path(path), kind) is not None) == (kind in {"nfs4", "cifs"})


def test_the_kernels_table_is_read() -> None:
    assert file_system(Path("/proc/self/mountinfo")) == ("proc" if Path("/proc/self/mountinfo").exists() else None)


async def test_a_sound_file_has_nothing_to_complain_of(backend: SqliteBackend) -> None:
    await backend.publish(numbered(3))
    async with serving(backend):
        findings = await backend.diagnose()
    checks = [one.check for one in findings]
    assert checks == [
        *("store", "folder", "file system", "disk space", "sqlite", "durability"),
        *("file lock", "damage", "clock", "consumers"),
    ]
    assert {one.status for one in findings if one.check != "disk space"} == {"ok"}


async def test_a_lock_that_is_held_is_a_finding_that_names_the_holder(path: Path) -> None:
    backend = SqliteBackend(path, lock_wait=0.05)
    await backend.publish(numbered(1))
    lock = FileLock(path.with_name("omni.db.lock"))
    lock.acquire(1)
    first = (await backend.diagnose())[0]
    assert (first.check, first.status) == ("store", "error")
    assert "by process" in first.message
    lock.release()
    lock.close()
    await backend.close()


@pytest.mark.parametrize("content", [b"dear diary, " * 100, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_file_that_is_no_database_is_a_finding(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    backend = SqliteBackend(path)
    findings = await backend.diagnose()
    assert (findings[0].check, findings[0].status) == ("store", "error")
    assert str(path) in findings[0].message
    assert finding(findings, "folder").status == "ok"
    await backend.close()


async def test_damage_is_found(backend: SqliteBackend, path: Path) -> None:
    await backend.publish([event(str(number), body=b'"%s"' % (b"x" * 3000)) for number in range(300)])
    await backend.close()
    with path.open("r+b") as file:
        file.seek(40 * 4096)
        file.write(b"\xee" * 40 * 4096)
    findings = await backend.diagnose()
    damage = finding(findings, "damage") if any(one.check == "damage" for one in findings) else findings[-1]
    assert damage.status == "error"
    assert "damaged" in damage.message


async def test_less_than_full_durability_is_told(path: Path) -> None:
    backend = SqliteBackend(path, synchronous="NORMAL")
    assert finding(await backend.diagnose(), "durability").status == "warning"
    await backend.close()


async def test_a_clock_that_went_back_is_told(backend: SqliteBackend, path: Path) -> None:
    await backend.publish(numbered(1))
    slow = SqliteBackend(path, clock=lambda: time.time() - 3600)
    clock = finding(await slow.diagnose(), "clock")
    assert clock.status == "warning"
    assert "3,600 s behind" in clock.message or "3,599 s behind" in clock.message
    await slow.close()


async def test_a_consumer_that_is_gone_is_told(backend: SqliteBackend, path: Path) -> None:
    reader = SqliteBackend(path)
    async with serving(backend) as consumer:
        assert "at work: 1" in finding(await reader.diagnose(), "consumers").message
        path.with_name("omni.db.consumers").joinpath(consumer).unlink()
        consumers = finding(await reader.diagnose(), "consumers")
        assert consumers.status == "warning"
        assert "1 of 1" in consumers.message
    await reader.close()
