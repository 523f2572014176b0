"""What a report needs of a run, read from its folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..record.findings import Finding
from ..record.folders import MANIFEST
from ..record.log_file import read_log
from ..record.pair_scores import ScoredSet, read_scores
from ..record.reader import read_record
from ..record.samples import SAMPLES_FILE, read_samples

Json = Mapping[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """A run as its files tell it.

    Args:
        name: its name on the page.
        manifest: `run_manifest.json` with the final results.
        log: the entries of its log, oldest first.
        findings: what the health monitor found; None for a run of a version without one.
        samples: the answers that the model wrote.
        scores: the held-out pairs one by one, by the name of their set.
        modified: when the manifest was written last, seconds since 1970.
    """

    name: str
    manifest: Json
    log: list[Json]
    findings: list[Finding] | None
    samples: list[dict[str, Any]]
    scores: dict[str, ScoredSet]
    modified: float

    @property
    def finished(self) -> bool:
        """Returns whether the training came to its end."""
        return self.manifest.get("status") == "finished"

    @property
    def step(self) -> int:
        """Returns the last step that is known of."""
        steps = [int(entry.get("step", 0)) for entry in self.log]
        return max([*steps, int((self.manifest.get("results") or {}).get("steps") or 0)])

    @property
    def planned(self) -> int:
        """Returns the steps of the whole run, 0 where they are not known."""
        return int((self.manifest.get("batch") or {}).get("optimiser_steps") or 0)


def read_run(folder: Path, name: str) -> RunFiles:
    """Returns what is in the folder of a run, also of one that was killed, or is from an earlier version.

    Raises:
        SimPOError: there is no manifest, or it cannot be read.
    """
    manifest, log = read_record(folder)
    written = read_log(folder)
    if manifest.get("status") != "finished" or not log:
        log = [*written] or log
    found = manifest.get("findings")
    return RunFiles(
        name=name,
        manifest=manifest,
        log=sorted(log, key=lambda entry: int(entry.get("step", 0))),
        findings=None if found is None else [Finding.of(each) for each in found],
        samples=read_samples(folder / SAMPLES_FILE),
        scores=read_scores(folder),
        modified=(folder / MANIFEST).stat().st_mtime,
    )
