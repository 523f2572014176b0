"""The scorer that is a Python function of the user."""

import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

from ..data.messages import shorten
from ..errors import SimPOError, did_you_mean, first_line
from ..log import get_logger
from ..record.privacy import public_label
from .failures import Failures
from .scorer import Row, Scored

logger = get_logger(__name__)

_GIVEN = ("prompt", "answer", "row")
# Rows are handed on, to be written to the disk, as often as this, in seconds.
_GROUP_SECONDS = 1.0


class FunctionScorer:
    """Scores answers by a function, which is called with prompt (messages), answer (text) and row (all columns).

    Args:
        name: `module.function`, with the current directory among the places of modules, or `file.py:function`.

    Raises:
        SimPOError: there is no such module or function, it cannot be imported, or it does not take three arguments.
    """

    def __init__(self, name: str) -> None:
        module, function_name = _load(name)
        self._function = _function_of(module, function_name, name)
        self._source: str | None = getattr(module, "__file__", None)
        text = Path(self._source).read_bytes() if self._source else None
        self.identity: dict[str, Any] = {
            "scorer": "function",
            "name": _public_name(name),
            "source": None if text is None else hashlib.sha256(text).hexdigest()[:16],
        }

    def scores(self, rows: Sequence[Row]) -> Iterator[list[Scored]]:
        """Yields rows with the scores of their answers; those of a call that fails are None, with a warning."""
        failures = Failures("could not be scored by the function")
        group: list[Scored] = []
        since = time.monotonic()
        for row in rows:
            # What the function does to its arguments is not to reach the file.
            own = deepcopy(dict(row))
            group.append((row, [self._score(own, answer, failures) for answer in row["answers"]]))
            if time.monotonic() - since > _GROUP_SECONDS:
                yield group
                group, since = [], time.monotonic()
        if group:
            yield group
        failures.tell_rest()

    def _score(self, row: dict[str, Any], answer: str, failures: Failures) -> float | None:
        try:
            return _number(self._function(row["prompt"], answer, row))
        except Exception as error:  # code of the user can raise anything
            failures.tell(row, f"{type(error).__name__}: {first_line(error)}{_place(error, self._source)}")
            return None


def _number(value: Any) -> float:
    """Returns what the function returned as a number.

    Raises:
        ValueError: it is none.
    """
    try:
        # Tensors and numpy's scalars have `item`.
        number = float(value.item() if hasattr(value, "item") else value) if not isinstance(value, str) else math.nan
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"it returned {shorten(repr(value))}, which is no finite number")
    return number


def _place(error: Exception, source: str | None) -> str:
    """Returns " (file, line N)": the last line that ran of the user's file, or else of any other; "" of this one."""
    places = traceback.extract_tb(error.__traceback__)
    last = next((place for place in reversed(places) if place.filename == source), places[-1])
    return f" ({Path(last.filename).name}, line {last.lineno})" if last.filename != __file__ else ""


def _public_name(name: str) -> str:
    path, colon, function = name.rpartition(":")
    return f"{public_label(path) if os.sep in path else path}:{function}" if colon else name


# --- From a name to a function ----------------------------------------------------------------------------------------


def _load(name: str) -> tuple[ModuleType, str]:
    """Returns the module of a function's name, imported, and the function's own name in it."""
    is_file = ":" in name or name.endswith(".py")
    place, _, function = name.rpartition(":") if ":" in name else name.rpartition(".")
    if not place or not function or name.endswith(".py"):
        example = f"{name}:score" if name.endswith(".py") else "my_rules.score or my_rules.py:score"
        raise SimPOError(f"score is {name!r}; it must name a file or module and a function in it, as {example}.")
    if is_file and place.endswith(".py"):
        path = Path(place).expanduser()
        if not path.is_file():
            raise SimPOError(f"score is {name!r}, but there is no file {place}.{_near_files(path)}")
        return _imported(name, lambda: _import_file(path)), function
    _make_importable(Path.cwd())
    return _imported(name, lambda: _import_module(place, name)), function


def _import_file(path: Path) -> ModuleType:
    # Beside it may lie modules that it imports, as with `python FILE`. Its own name may be that of another module.
    _make_importable(path.resolve().parent)
    own = f"simpo_score_{path.stem}"
    spec = importlib.util.spec_from_file_location(own, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[own] = module
    spec.loader.exec_module(module)
    return module


def _import_module(module: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a module that this one imports
        raise SimPOError(
            f"score is {name!r}, but there is no module {error.name!r} here ({Path.cwd()}) or among the installed "
            f"packages.{_near_files(Path(f'{error.name}.py'))} Run the command in the module's folder, or give its "
            "file, as path/my_rules.py:score."
        ) from None


def _imported(name: str, load: Callable[[], ModuleType]) -> ModuleType:
    try:
        return load()
    except SimPOError:
        raise
    except Exception as error:  # code of the user can raise anything
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else _place(error, None)
        raise SimPOError(
            f"score is {name!r}, which cannot be imported: {type(error).__name__}: {first_line(error)}{line}. Correct "
            "it."
        ) from error


def _make_importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _near_files(path: Path) -> str:
    folder = path.parent
    return did_you_mean(path.name, [file.name for file in folder.glob("*.py")]) if folder.is_dir() else ""


def _function_of(module: ModuleType, function_name: str, name: str) -> Callable[..., Any]:
    """Returns a function of a module, checked to take what it will be given."""
    function = getattr(module, function_name, None)
    if function is None:
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        has = f" It has {', '.join(known)}." if known else " It has no function."
        raise SimPOError(
            f"score is {name!r}, but there is no {function_name!r} in it.{did_you_mean(function_name, known) or has}"
        )
    if not callable(function):
        raise SimPOError(f"score is {name!r}, which is {type(function).__name__}; it must be a function.")
    if inspect.iscoroutinefunction(function):
        raise SimPOError(f"score is {name!r}, an async function; it must return its number. Write it without async.")
    try:
        signature = inspect.signature(function)
    except ValueError:  # of a function in C, which does not tell
        return function
    parameters = list(signature.parameters)
    try:
        signature.bind(*_GIVEN)
    except TypeError:
        fits = False
    else:
        fits = all(own == given for own, given in zip(parameters, _GIVEN, strict=False) if own in _GIVEN)
    if not fits:
        raise SimPOError(
            f"score is {name!r}, which takes ({', '.join(parameters)}); it is called with (prompt, answer, row), in "
            "this order: the messages, the text, and all columns of its row."
        )
    return function
