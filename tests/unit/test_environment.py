"""What readers' machines say and have does not change what the two commands do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import chromium
import processes

ROOT = Path(__file__).parents[2]


def run(*command, cwd=ROOT, **environment):
    """A command with other variables of the environment; code, and what was said."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **environment},
        capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


# What make hands on -------------------------------------------------------------------------------


def handed_on(tmp_path, **environment):
    """The environment of what make runs, where make has this one."""
    makefile = tmp_path / "Makefile"
    makefile.write_text("include Makefile\nshow: ; @env\n")
    code, said = run("make", "-f", makefile, "show", **environment)
    assert code == 0, said
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PYTHONDONTWRITEBYTECODE", "1"),  # torch is compiled by each process
        ("PYTHONOPTIMIZE", "1"),  # the chapters' asserts are not executed
        ("PYTHONPATH", "/opt/ros/lib/python3"),  # modules and plugins of another Python
        ("PYTHONSAFEPATH", "1"),  # tools do not find each other
        ("PYTHONWARNINGS", "error"),  # packages that warn cannot be imported
        ("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1"),  # pytest does not know -n
        ("JUPYTER_PATH", "/opt/jupyter"),  # python3 is the kernel of another Python
        ("MATPLOTLIBRC", "/home/me/paper.rc"),  # figures of another size, by LaTeX
        ("MPLBACKEND", "module://ide"),  # a backend that this Python does not have
        ("MYPYPATH", "/home/me/lib"),  # types of another module of the same name
        ("TQDM_DISABLE", "1"),  # no progress bars, which tests look at
    ],
)
def test_a_variable_that_changes_what_is_run_is_not_handed_on(tmp_path, name, value):
    assert name not in handed_on(tmp_path, **{name: value})


def test_settings_of_the_reader_are_not_read_and_nothing_is_written_among_them(tmp_path):
    theirs = dict.fromkeys(("IPYTHONDIR", "MPLCONFIGDIR", "PYTHONPYCACHEPREFIX"), "/home/me")
    made = handed_on(tmp_path, **theirs, PYTHONUTF8="0", JUPYTER_PREFER_ENV_PATH="0")
    for name in theirs:
        assert Path(made[name]).parent == ROOT / ".venv"
    assert made["PYTHONUTF8"] == made["JUPYTER_PREFER_ENV_PATH"] == "1"


def test_a_log_stays_one_that_is_written_at_once(tmp_path):
    assert handed_on(tmp_path, PYTHONUNBUFFERED="1")["PYTHONUNBUFFERED"] == "1"


# What is installed --------------------------------------------------------------------------------


def test_a_clone_that_was_moved_or_whose_python_has_gone_is_set_up_anew(tmp_path):
    here, there = tmp_path.resolve() / "a clone", tmp_path / "moved"
    python = here / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    shutil.copy("/bin/true", python)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, here)
    (here / ".venv" / ".packages").write_text(f"{here}\n")
    (here / ".venv" / ".ready").touch()
    assert "install" not in run("make", "-n", "book", cwd=here)[1]
    python.rename(python.with_name("gone"))  # as after an upgrade of the system
    assert "install.py requirements.lock" in run("make", "-n", "book", cwd=here)[1]
    python.with_name("gone").rename(python)
    here.rename(there)
    assert "install.py requirements.lock" in run("make", "-n", "book", cwd=there)[1]


def test_an_edition_that_there_is_none_of_is_refused():
    """Else a mistyped one would publish the solutions."""
    code, said = run("make", "-n", "book", "EDITION=exercise")
    assert code == 2
    assert 'EDITION is "exercise"; the only one there is is "exercises"' in said
    assert "--without-solutions" in run("make", "-n", "book", "EDITION=exercises")[1]


def test_tests_find_a_place_for_temporary_files():
    code, said = run("make", "-n", "test")
    assert code == 0
    command = said.split("&&")[0]  # TMPDIR=$(...)
    code, said = run("sh", "-c", f"{command} && echo $TMPDIR && rmdir $TMPDIR", TMPDIR="/nowhere")
    assert (code, said[:5]) == (0, "/tmp/")


def test_pip_installs_here_whatever_its_settings_say(tmp_path):
    (tmp_path / "pip.py").write_text("import os, sys\nprint(sys.argv, sorted(os.environ))")
    names = ["PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_CONSTRAINT"]
    theirs = dict.fromkeys(names, "1")
    paths = {"PYTHONPATH": str(tmp_path), "PIP_INDEX_URL": "https://mirror"}
    code, said = run(sys.executable, ROOT / "tools/install.py", "--package", ".", **theirs, **paths)
    assert code == 0
    assert "'--no-user'" in said
    assert "'PIP_INDEX_URL'" in said
    assert [name for name in names if f"'{name}'" in said] == []


# Processes and cores ------------------------------------------------------------------------------


def test_processes_are_not_all_bound_to_the_first_core():
    names = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
    program = f"import processes, os; print([n for n in {names} if n in os.environ])"
    theirs = dict.fromkeys(names, "true")
    tools = str(ROOT / "tools")
    assert run(sys.executable, "-c", program, PYTHONPATH=tools, **theirs) == (0, "[]\n")


TWO = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}


@pytest.mark.parametrize("tool", ["book", "full"])
def test_what_names_the_device_of_a_chapter_has_its_one_thread(tool, tmp_path):
    """Before it imports torch, which reads the number once."""
    ask = f"import os\nprint([os.environ[name] for name in {[*TWO]}], flush=True)\nos._exit(3)\n"
    (tmp_path / "torch.py").write_text(ask)
    paths = os.pathsep.join(map(str, [tmp_path, ROOT / "tools", ROOT]))
    said = run(sys.executable, "-c", f"import {tool}", PYTHONPATH=paths, **TWO)
    assert said == (3, "['1', '1']\n")


def test_torch_has_one_thread_where_it_is_imported_later():
    program = "import processes, torch; print(torch.get_num_threads())"
    paths = str(ROOT / "tools")
    assert run(sys.executable, "-c", program, PYTHONPATH=paths, **TWO) == (0, "1\n")


@pytest.mark.parametrize(
    ("limits", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), (None, 8)],
)
def test_a_container_works_with_as_many_processes_as_its_time_is_for(
    monkeypatch, tmp_path, limits, cores
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(processes, "QUOTA", tmp_path / "cpu.max")
    if limits:
        processes.QUOTA.write_text(f"{limits}\n")
    assert processes.workers("cpu") == cores


# What readers name --------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_an_error_of_use(monkeypatch, request):
    plugin = request.config.pluginmanager.get_plugin(str(ROOT / "conftest.py"))
    monkeypatch.setenv("VAE_BOOK_DEVICE", "garbage")
    with pytest.raises(pytest.UsageError, match="'garbage' cannot be used on this machine"):
        plugin.pytest_xdist_auto_num_workers(request.config)


def test_a_browser_that_is_not_there_is_none(monkeypatch):
    monkeypatch.setenv("VAE_BOOK_BROWSER", "/no/such/chromium")
    assert chromium.find() is None
    monkeypatch.setenv("VAE_BOOK_BROWSER", sys.executable)
    assert chromium.find() == sys.executable


@pytest.mark.parametrize("name", ["not there", "there, but of a name too long for a socket" * 2])
def test_a_browser_gets_a_folder_for_temporary_files_that_it_can_use(tmp_path, name):
    theirs = tmp_path / name
    if "there," in name:
        theirs.mkdir()
    program = "import chromium, os; t = os.environ['TMPDIR']; print(os.path.isdir(t), len(t) < 60)"
    tools = str(ROOT / "tools")
    ended = run(sys.executable, "-c", program, PYTHONPATH=tools, TMPDIR=str(theirs))
    assert ended == (0, "True True\n")


@pytest.mark.parametrize("name", ["FORCE_COLOR", "PY_COLORS", "COLUMNS"])
def test_programs_that_tests_start_write_plain_text(name):
    assert name not in os.environ
