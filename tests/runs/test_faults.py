"""A handful of the faults of `make test-faults`: a run is killed or damaged, and the same command ends it as ever."""

import pytest

import fault_points as points
from fault_cases import damaged, killed
from fault_runs import Trial, make_reference

pytestmark = pytest.mark.slow

CASES = {
    "killed in a checkpoint": killed(points.LATER_CHECKPOINT["checkpoint-24, in the middle of the optimizer"]),
    "killed in the rotation": killed(points.ROTATION["after one old file"]),
    "killed in the final save": killed(points.END["in the middle of the final model"]),
    "a changed byte": damaged("optimizer.pt", lambda file: file.write_bytes(file.read_bytes()[:-1] + b"?")),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run without a fault."""
    folder = tmp_path_factory.mktemp("whole")
    make_reference(folder, "alone")
    return folder / "out"


@pytest.mark.parametrize("what", CASES)
def test_the_same_command_goes_on_to_the_same_end(whole, tmp_path, what):
    trial = Trial(tmp_path / "case", "alone", whole)
    try:
        CASES[what](trial)
    finally:
        trial.end_all()
    assert (trial.starts, trial.kills) == (2, 1)
