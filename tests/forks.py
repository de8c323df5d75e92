"""Programs that need not import torch anew: forks of a process that has imported it.

Each import takes 2 to 3 s of a core, which is most of what a small program does. `run` and `start`
take what follows ``python`` on a command line. The program has a process, an environment, files and
random numbers of its own, and so has each that torchrun starts for it, which is a fork, too. What
depends on how an interpreter starts or ends has to be tested with a real one, as everything is
where there is no safe fork.
"""

import gc
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from multiprocessing import resource_tracker
from pathlib import Path

FORKS = sys.platform == "linux"
IMPORTED = ["torch.distributed.run", "vae_book.commands"]
SIGNALS = {signal.SIGINT: signal.default_int_handler} | dict.fromkeys(
    (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT), signal.SIG_DFL
)


def run(*arguments, **options):
    """Run a program to its end; like `subprocess.run` with all that it said as text."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = start(*arguments, stdout=out, stderr=err, **options)
        try:
            code = process.wait(timeout=300)
        finally:
            process.kill()
        said = [file.seek(0) or file.read() for file in (out, err)]
    return subprocess.CompletedProcess(arguments, code, *said)


def start(*arguments, stdout, stderr, env=None, cwd=None):
    """Start a program; it is like what `subprocess.Popen` makes."""
    arguments, env = [*map(str, arguments)], dict(os.environ if env is None else env)
    if not FORKS:
        command = [sys.executable, *arguments]
        return subprocess.Popen(command, stdout=stdout, stderr=stderr, env=env, cwd=cwd)
    return Fork(arguments, (stdout.fileno(), stderr.fileno()), env, cwd)


class Fork:
    """A program in a fork of the process that has imported torch."""

    def __init__(self, arguments, files, env, cwd):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        # A file is opened once more by its name, as only numbers could be sent along.
        files = [f"/proc/{os.getpid()}/fd/{number}" for number in files]
        target, given = _program, (arguments, files, env, str(cwd or os.getcwd()))
        self._process = context.Process(target=target, args=given, daemon=True)
        self._process.start()
        self.pid = self._process.pid
        self.kill = self._process.kill

    def poll(self):
        """The exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout=None):
        """The exit code, once it has ended."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("a fork", timeout)
        return self.poll()

    def send_signal(self, number):
        """Send a signal to this process alone."""
        os.kill(self.pid, number)


def _program(arguments, files, env, cwd):
    for number, name in enumerate(files, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(cwd)
    sys.exit(_interpret(arguments, env))


def _interpret(arguments, env):
    """Do what ``python`` does with these arguments and this environment; the exit code."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    gc.freeze()  # or each fork would look through all that was imported
    SubprocessHandler._popen = lambda self, command, env: Rank(command, env=env)
    os.environ.clear()
    os.environ.update(env)
    for number, handler in SIGNALS.items():
        signal.signal(number, handler)
    kind, *rest = arguments
    try:
        if kind == "-m":
            sys.argv = rest
            sys.modules.pop(rest[0], None)
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv = [kind, *rest[1:]]
            exec(rest[0], {"__name__": "__main__"})
        else:
            sys.argv = arguments
            runpy.run_path(kind, run_name="__main__")
        return 0
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()


class Rank(subprocess.Popen):
    """One of the processes of torchrun: a fork of it that becomes what it would have started."""

    def _execute_child(self, command, executable, preexec, close, keep, cwd, env, *_):
        self._child_created = True
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            os.setsid()
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            # What has the number of its pipe by then would be written to, and closed.
            if (pipe := resource_tracker._resource_tracker._fd) is not None:
                os.dup2(os.open(os.devnull, os.O_WRONLY), pipe)
            Path("/proc/self/comm").write_text(f"rank {env['RANK']}")
            signal.set_wakeup_fd(-1)
            logging.disable(logging.NOTSET)
            _, unbuffered, *arguments = command
            assert unbuffered == "-u"
            code = _interpret(arguments, env)
        finally:
            os._exit(code)
