"""Files that are written whole or not at all, and read whole or not at all."""

import errno
import io
import os
import secrets
import shutil
import socket
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch


class WriteError(OSError):
    """A file that could not be written; the message names it and its disk."""


PART = ".part-"  # how the names of files begin that are not whole yet
PIECE = 2**20  # bytes that are written at once
HOUR = 3600  # seconds after which a writer on another machine counts as gone
TOO_LITTLE_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def numbers_in(content: bytes) -> Any:
    """What ``torch.save`` wrote into a file, with tensors on the CPU: numbers and never code.

    Raises:
        Exception: of a dozen kinds, if the file is damaged.
    """
    # torch.load does not look at the checksums.
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} is wrong")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A new file to write to in the block, which then takes the place of ``path``.

    If that is a link, of the file to which it points. After a crash or a full disk the old file is
    still there, and of several writers one wins. Whatever the block leaves is on the disk before
    the names change.

    Raises:
        WriteError: the disk is full, or the file cannot be written for another reason.
    """
    path = _behind_links(path)
    with _part(path) as part:
        yield part
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
        with suppress(OSError):  # the new name; not every system can
            _sync_folder(path.parent)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep others who ask for a folder out of it in the block; it is made if it is missing.

    The system lets go of it however the process ends. Where it has no such locks, as Windows and
    some network drives, nobody is kept out.

    Raises:
        BlockingIOError: another process has it.
    """
    lock = _locked(folder)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """A lock on a folder, held until it is closed; None where there are no locks."""
    try:
        import fcntl  # here, since Windows has none

        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # what writes there will say what is wrong
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return lock


def check_writable(path: Path | str, size: int) -> None:
    """Raise WriteError unless ``size`` bytes can be written to ``path``, which stays as it is.

    Clears away what writers in the same folder left when they were killed.
    """
    path = _behind_links(path)
    with _part(path) as part:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        clear_up(path.parent)
        with part.open("wb") as rehearsal:
            for start in range(0, size, PIECE):
                rehearsal.write(bytes(min(PIECE, size - start)))
            rehearsal.flush()
            os.fsync(rehearsal.fileno())


def clear_up(folder: Path) -> None:
    """Delete what writers in a folder left when they were killed."""
    for left in [each for each in folder.glob(f"{PART}*") if not _is_being_written(each)]:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def part_name() -> str:
    """How the name of a file or folder begins that is not whole yet: with who is at it."""
    return f"{PART}{os.getpid()}-{_host()}-{secrets.token_hex(8)}-"


def _behind_links(path: Path | str) -> Path:
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


@contextmanager
def _part(path: Path) -> Iterator[Path]:
    """A name for a file beside ``path`` that nobody else writes to; gone after the block."""
    part = path.with_name(f"{part_name()}{path.name}")
    try:
        try:
            if path.parent.is_file():
                raise NotADirectoryError(f"{path.parent} is a file and no folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
        finally:
            with suppress(OSError):
                part.unlink()
    except OSError as error:
        full = error.errno in TOO_LITTLE_ROOM
        advice = f"{_room(path.parent)}; make room there or" if full else ";"
        raise WriteError(
            f"{path} could not be written: {error.strerror or error}{advice} choose another place "
            "(what was there before is unharmed)"
        ) from error


def _is_being_written(part: Path) -> bool:
    """Whether its writer is still there."""
    process, host, *_ = [*part.name.removeprefix(PART).split("-", 2), ""]
    try:
        if host == _host() and os.name == "posix":
            os.kill(int(process), 0)
            return True
        return time.time() - part.stat().st_mtime < HOUR
    except (OSError, ValueError):
        return False


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _room(folder: Path) -> str:
    """Which disk a folder is on, and how much room it has."""
    with suppress(OSError):
        folder = folder.absolute()
        disk = next(each for each in (folder, *folder.parents) if os.path.ismount(each))
        return f" (the disk at {disk} has {shutil.disk_usage(disk).free / 2**20:.1f} MiB free)"
    return ""


def _sync_folder(folder: Path) -> None:
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)
