"""Files are whole whatever happens while they are written."""

import errno
import os
import signal
import sys
import threading
import tracemalloc

import pytest

from tests import forks
from vae_book.files import PART, WriteError, alone, check_writable, replacing


@pytest.fixture
def path(tmp_path):
    """A file that is there already."""
    path = tmp_path / "run" / "result.txt"
    with replacing(path) as part:  # in a folder that does not exist yet
        part.write_text("old")
    return path


def fails(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_new_content_takes_the_place_of_the_old(path):
    assert path.read_text() == "old"
    with replacing(str(path)) as part:
        part.write_text("new")
        assert path.read_text() == "old"
        assert part.suffix == path.suffix  # by which picture formats are told apart
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_is_named_with_the_file_and_spoils_nothing(path, monkeypatch, step):
    if step != "write":
        monkeypatch.setattr(os, step, fails)
    said = rf"^{path} could not be written: No space left .*the disk at / has \d+\.\d MiB free\)"
    monkeypatch.setattr(os.path, "ismount", lambda folder: str(folder) == "/")
    write = fails if step == "write" else str
    with pytest.raises(WriteError, match=said), replacing(path) as part:
        write(part.write_text("the beginning of"))
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == [path.name]


def test_an_error_of_another_kind_passes_as_it_is(path):
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        part.write_text(f"{1 / 0}")
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == [path.name]


def test_all_is_on_the_disk_before_the_names_change_and_then_the_names(path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def synced(number):
        done.append("folder" if os.path.sameopenfile(number, folder) else os.fstat(number).st_size)
        fsync(number)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *names: done.append("names") or replace(*names))
    folder = os.open(path.parent, os.O_RDONLY)
    with replacing(path) as part:
        part.write_text("12345")
    os.close(folder)
    assert done == [5, "names", "folder"]


def test_several_writers_leave_the_content_of_one(path):
    path.write_bytes(bytes(100_000))
    seen, over = set(), threading.Event()

    def write(number):
        for _ in range(20):
            with replacing(path) as part, part.open("wb") as file:
                for _ in range(10):
                    file.write(bytes([number]) * 10_000)
                    file.flush()

    def read():
        while not over.is_set():
            content = path.read_bytes()
            seen.add((len(content), *set(content)))

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(number,)) for number in range(1, 5)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    reader.join()
    assert seen <= {(100_000, number) for number in range(5)}
    assert len(seen) > 1
    assert os.listdir(path.parent) == [path.name]


def test_a_folder_is_one_writer_s_until_it_ends_however_it_does(tmp_path):
    pytest.importorskip("fcntl", reason="this system has no locks of files")
    folder = tmp_path / "run"
    with alone(folder):
        with pytest.raises(BlockingIOError), alone(folder):
            pass
        with alone(tmp_path / "other"):
            pass
    with pytest.raises(ZeroDivisionError), alone(folder):
        raise ZeroDivisionError
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from vae_book.files import alone\n"
        "with alone(Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert forks.run("-c", program, folder).returncode == -signal.SIGKILL
    with alone(folder):
        assert os.listdir(folder) == []


def test_where_there_are_no_locks_nobody_is_kept_out(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="this system has no locks of files")

    def unsupported(*arguments):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with alone(tmp_path), alone(tmp_path):
        pass
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with alone(tmp_path), alone(tmp_path):
        pass


def test_a_killed_writer_leaves_the_old_file_and_the_next_run_clears_up(path):
    program = (
        "import os, signal, sys\n"
        "from vae_book.files import replacing\n"
        "with replacing(sys.argv[1]) as part:\n"
        "    part.write_text('the beginning of')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = forks.run("-c", program, path)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert [name.startswith(PART) for name in sorted(os.listdir(path.parent))] == [True, False]
    check_writable(path, 10)
    assert os.listdir(path.parent) == [path.name]
    assert path.read_text() == "old"


def test_what_cannot_be_written_is_found_out_beforehand(tmp_path, path):
    taken = tmp_path / "taken"
    taken.mkdir()
    for place, reason in [
        (taken, "it is a folder"),
        (path / "run.pt", f"{path} is a file and no folder"),
        (path / "run" / "run.pt", "Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ]:
        said = f"{place.name} could not be written: {reason}; choose another place"
        with pytest.raises(WriteError, match=said):
            check_writable(place, 1)
    assert not list(taken.iterdir())


def test_to_ask_for_room_takes_little_memory(path):
    tracemalloc.start()
    try:
        check_writable(path, 50 * 2**20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * 2**20


def test_too_little_room_is_found_out_beforehand(path):
    program = (
        "import resource, sys\n"
        "from vae_book.files import WriteError, check_writable\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "check_writable(sys.argv[1], 1000)\n"
        "print('fits', flush=True)\n"
        "try:\n"
        "    check_writable(sys.argv[1], 1001)\n"
        "except WriteError as error:\n"
        "    sys.exit(f'WriteError: {error}')\n"  # a traceback has no room
    )
    done = forks.run("-c", program, path, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.stdout == "fits\n"
    assert f"WriteError: {path} could not be written: File too large" in done.stderr
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_room_is_asked_for_where_there_is_too_little(path, monkeypatch, reason):
    def full(*arguments):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "fsync", full)
    said = rf"{os.strerror(reason)} \(the disk at .*\); make room there or choose another place"
    with pytest.raises(WriteError, match=said):
        check_writable(path, 1)


@pytest.mark.parametrize("reason", [errno.EROFS, errno.EACCES, errno.EIO, errno.EISDIR])
def test_room_is_not_asked_for_where_it_would_not_help(path, monkeypatch, reason):
    def refuses(*arguments):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "replace", refuses)
    said = rf"written: {os.strerror(reason)}; choose another place \(what was there before"
    with pytest.raises(WriteError, match=said), replacing(path) as part:
        part.write_text("new")


@pytest.mark.parametrize("there", [True, False])
def test_a_link_goes_on_pointing_to_the_file_that_is_written(path, tmp_path, there):
    if not there:
        path.unlink()
    link, beside = tmp_path / "links" / "result.txt", tmp_path / "links" / "again.txt"
    link.parent.mkdir()
    link.symlink_to(os.path.join("..", "run", path.name))
    beside.symlink_to(link)
    check_writable(beside, 10)
    with replacing(beside) as part:
        part.write_text("new")
    assert link.is_symlink()
    assert beside.is_symlink()
    assert path.read_text() == "new"
    assert not path.is_symlink()
    assert sorted(os.listdir(link.parent)) == ["again.txt", "result.txt"]
    assert os.listdir(path.parent) == [path.name]
