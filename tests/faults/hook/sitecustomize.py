"""Python runs this file at its start: it puts one fault into the process that `SIMPO_FAULT` names, and in no other.

So the command itself stays what a user types, and a launcher's processes have the fault too. The variable holds JSON:

    rank      LOCAL_RANK of the process; "" for one that no launcher started, which the launcher itself is too
    at        "module:attribute", called where the fault is; "module" alone for its import
    match     a part of an argument that a call must have to count
    call      the number of the call that counts, from 1
    when      "before", "after", or "half": after, with the file that was written cut in half
    do        "kill", "pause" (until the file of `reached` is removed), or "fill" (the disk, but for `left` bytes)
    reached   a file that is made when the fault is
"""

import importlib.abc
import importlib.util
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

# A process that is paused goes on after so many seconds, whoever was to let it go.
_LONGEST = 90


class Fault:
    """One fault of this process."""

    def __init__(self, fault):
        self.module, _, self.attribute = fault["at"].partition(":")
        self.match, self.call, self.when = fault.get("match", ""), fault.get("call", 1), fault.get("when", "before")
        self.do, self.reached, self.left = fault["do"], Path(fault["reached"]), fault.get("left", 0)
        self.disk, self.seen, self.process = fault.get("disk", ""), 0, os.getpid()

    def strike(self, file=None):
        if self.when == "half" and file:
            os.truncate(file, os.path.getsize(file) // 2)
        self.reached.touch()
        if self.do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.do == "fill":
            with (Path(self.disk) / "ballast").open("wb") as ballast:
                while (free := shutil.disk_usage(self.disk).free) > self.left:
                    ballast.write(bytes(min(free - self.left, 1 << 20)))
                    ballast.flush()
        elif self.do == "pause":
            end = time.monotonic() + _LONGEST
            while self.reached.exists() and time.monotonic() < end:
                time.sleep(0.05)

    def patch(self, module):
        owner = module
        *path, name = self.attribute.split(".")
        for part in path:
            owner = getattr(owner, part)
        real = getattr(owner, name)

        def faulty(*args, **given):
            words = [str(each) for each in (*args, *given.values()) if isinstance(each, str | os.PathLike)]
            found = next((word for word in words if self.match in word), None)
            if os.getpid() != self.process or (self.match and found is None):
                return real(*args, **given)
            self.seen += 1
            if self.seen != self.call:
                return real(*args, **given)
            if self.when == "before":
                self.strike()
                return real(*args, **given)
            result = real(*args, **given)
            self.strike(found)
            return result

        setattr(owner, name, faulty)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the module of a fault, and patches it as soon as it is imported."""

    def __init__(self, fault):
        self.fault = fault

    def find_spec(self, name, path=None, target=None):
        if name != self.fault.module:
            return None
        sys.meta_path.remove(self)
        if not self.fault.attribute:
            self.fault.strike()
            return None
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def run_and_patch(module):
            run(module)
            self.fault.patch(module)

        spec.loader.exec_module = run_and_patch
        return spec


def _install():
    wanted = json.loads(os.environ.get("SIMPO_FAULT", "null"))
    if wanted is None or os.environ.get("LOCAL_RANK", "") != wanted.get("rank", ""):
        return
    fault = Fault(wanted)
    if fault.module in sys.modules:
        fault.patch(sys.modules[fault.module])
    else:
        sys.meta_path.insert(0, Finder(fault))


_install()
