"""Places: what kind of file system a file is on. A network's is none for SQLite: its locks do not always hold."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from omniactors.errors import BackendUnusable

_MOUNTS: Final = Path("/proc/self/mountinfo")

_POINT: Final = 4
"""The field of its lines that is the mount point; the kind comes after a lone dash."""

_NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ncpfs", "ceph", "lustre", "beegfs", "gpfs", "fuse.sshfs"}
    | {"fuse.glusterfs", "fuse.cephfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.davfs2", "davfs"}
)
"""As the kernel names them. Clusters' file systems are here too: nobody has proved ours right on one."""


def file_system(path: Path) -> str | None:
    """The kernel's name of the file system that `path` is on, or None where it cannot be told (only Linux tells)."""
    try:
        table = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        return kind_of(os.path.realpath(path), table)
    except OSError:
        return None


def kind_of(path: str, table: str) -> str | None:
    """The kind of the mount that an absolute path is below, by the kernel's table of mounts; the last one counts."""
    best, kind = "", None
    for line in table.splitlines():
        mount, _, rest = line.partition(" - ")
        fields = mount.split(" ")
        if len(fields) <= _POINT or not rest:
            continue
        point = _unescape(fields[_POINT])
        if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, rest.split(" ", 1)[0]
    return kind


def refuse_other_names(path: Path) -> None:
    """Raise BackendUnusable when this file, with no symbolic link in its path, has names in other folders.

    SQLite's log stands beside the name: who opens the file by another one does not see it, and damages the file.
    """
    if not path.is_file():
        return  # there is none yet
    names = path.stat().st_nlink
    if names > 1:
        raise BackendUnusable(
            f"{path} has {names} names (hard links), and a database may have one only: its log stands beside the name. "
            f"Remove the others; find -samefile {path} finds them"
        )
    if _is_mounted_alone(str(path)):
        raise BackendUnusable(
            f"{path} is mounted as a file of its own, and its log stands in another folder: mount its folder instead"
        )


def _is_mounted_alone(path: str) -> bool:
    try:
        table = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    return any(
        _unescape(point) == path for line in table.splitlines() for point in line.split(" ")[_POINT : _POINT + 1]
    )


def network_warning(path: Path, kind: str | None) -> str | None:
    """What is wrong with a place of this kind, as a sentence, or None when nothing is known against it."""
    if kind not in _NETWORK:
        return None
    return f"{path} is on a network file system ({kind}), where locks are not reliable: the file can be damaged"


def _unescape(text: str) -> str:
    """A path of the mount table: spaces and the like are octal there."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
