"""The package imports where the parts of POSIX are missing that it uses elsewhere."""

import subprocess
import sys

import pytest

# The libraries come first: they have guards of their own.
_IMPORTS_WITHOUT = """
import os, pkgutil, signal, sys
import accelerate, datasets, peft, torch, transformers, trl, xxhash, psutil

for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGSTOP", "SIGCONT", "SIGCHLD", "SIGPIPE"):
    delattr(signal, name)
for name in ("register_at_fork", "getuid", "geteuid", "O_DIRECTORY", "killpg", "setsid", "getpgid"):
    delattr(os, name)
for name in ("fcntl", "resource", "termios", "pwd", "grp", "tty", "pty"):
    sys.modules[name] = None
import simpo_trainer

modules = [each.name for each in pkgutil.walk_packages(simpo_trainer.__path__, "simpo_trainer.")]
for name in modules:
    if not name.endswith("__main__"):
        __import__(name)
print(len(modules))
"""


@pytest.mark.slow
def test_every_module_imports_without_posix():
    words = [sys.executable, "-c", _IMPORTS_WITHOUT]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 100
