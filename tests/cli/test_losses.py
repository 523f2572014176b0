"""`simpo losses`: a true table, and curves that are the losses."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simpo_trainer.cli.app import app
from simpo_trainer.loss.losses import LOSSES
from simpo_trainer.results.loss_curves import curve


def run(*arguments):
    return CliRunner().invoke(app, ["losses", *arguments])


def test_the_table_tells_every_loss():
    text = run().stdout
    for name, loss in LOSSES.items():
        entry = text[text.index(f"{name}\n    ") :].partition("\n\n")[0]
        assert loss.formula in entry and loss.source in entry
        assert all(f"{setting}=" in entry for setting in loss.uses)
    assert "settings: beta=0.1, label_smoothing=0, sft_weight=1" in text  # cpo
    assert "settings: none" in text  # simper


def test_the_table_tells_what_the_health_monitor_judges():
    """As docs/health.md lists it."""
    lines = run().stdout.split("\n\n")
    with_target = {lines_of.split()[0] for lines_of in lines if "and on the target margin" in lines_of}
    on_held_out = {lines_of.split()[0] for lines_of in lines if "of held-out pairs alone" in lines_of}
    page = (Path(__file__).parents[2] / "docs" / "health.md").read_text()
    [listed] = re.findall(r"compare averages per token: ([^.]*)\.", page)
    assert with_target == set(re.findall("`([a-z]+)`", listed)) and len(with_target) == 5
    assert on_held_out == {"cpo", "slic"} and "(not `cpo`, `slic`, or" in page


def test_only_the_losses_asked_for():
    text = run("simper", "ipo").stdout
    assert "SimPER" in text and "IPO" in text and "ORPO" not in text


def test_unknown_names():
    result = run("sigmod", "apo_zero")
    assert result.exit_code == 1
    assert "Did you mean sigmoid" in result.stderr and "Set method: dpo" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_picture(tmp_path, ending):
    file = tmp_path / f"losses.{ending}"
    assert f"Wrote their curves to {file}." in run("sigmoid", "cpo", "--plot", str(file), "--beta", "3").stdout
    assert file.read_bytes()[:4] in (b"\x89PNG", b"<?xm")


@pytest.mark.slow
def test_pictures_that_cannot_be_written(tmp_path):
    for file in (tmp_path / "missing" / "a.png", tmp_path / "a.abc"):
        result = run("ipo", "--plot", str(file))
        assert result.exit_code == 1 and "Give --plot another file" in result.stderr


@pytest.mark.parametrize("name", LOSSES)
def test_slopes_are_those_of_the_curve(name):
    margins, values, slopes = curve(name, {"discopop_tau": 0.5})  # without a dip narrower than the steps
    step = margins[1] - margins[0]
    for number in range(20, len(margins) - 20, 7):
        if name in ("hinge", "slic", "rrhf") and slopes[number - 1] != slopes[number + 1]:
            continue  # at the corner
        rise = (values[number + 1] - values[number - 1]) / (2 * step)
        assert rise == pytest.approx(slopes[number], rel=0.05, abs=0.02)


def test_settings_replace_a_losss_own():
    margins, values, _ = curve("hinge", {"beta": 3.0, "gamma_beta_ratio": 0.2})
    assert values == pytest.approx([max(0.0, 1 - 3 * (margin - 0.2)) for margin in margins])
