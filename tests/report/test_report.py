"""A report is made of a run's files alone, is safe with any text in them, and shows the figures of the log."""

import json
import re
import stat
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

from models import random_pairs
from runs import make_trainer, watched_run
from simpo_trainer.cli.app import app
from simpo_trainer.errors import SimPOError
from simpo_trainer.record.findings import Finding
from simpo_trainer.record.pair_scores import PairScores, ScoredSet, read_scores, save_scores
from simpo_trainer.report import charts, parts
from simpo_trainer.report.command import report_of, write_report
from simpo_trainer.report.page import element, page, zoned
from simpo_trainer.report.parts import spearman
from simpo_trainer.report.run_files import read_run

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&]]>\u202e[bold]{{ x }} https://example.com/a.png"


class Tags(HTMLParser):
    """The tags and attributes of a page, and its text."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with evaluations, samples and a finding, and hostile text wherever text can come from."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    trainer = watched_run(folder)
    trainer.finish()
    manifest = json.loads((folder / "run_manifest.json").read_text())
    manifest["model"]["label"] = manifest["data"]["sets"]["train"]["tokenization"] and EVIL
    manifest["recipe"] = {"name": EVIL, "settings": {EVIL: EVIL, "beta": 2.0}, "origins": {EVIL: EVIL}}
    found = Finding("chosen falls", 4, "eval", "logps/chosen", EVIL, EVIL, EVIL)
    manifest["findings"] = [found.as_json()]
    (folder / "run_manifest.json").write_text(json.dumps(manifest))
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    (folder / "samples.jsonl").write_text("".join(json.dumps({**row, "answer": EVIL}) + "\n" for row in rows))
    return folder


def test_every_run_leaves_a_report_for_its_owner(tmp_path):
    trainer = make_trainer(tmp_path, random_pairs(8), max_steps=1)
    trainer.train()
    assert not (tmp_path / "report.html").exists()
    trainer.finish()
    assert stat.S_IMODE((tmp_path / "report.html").stat().st_mode) == 0o600
    assert "SimPO" in (tmp_path / "report.html").read_text()


def test_no_text_from_outside_is_markup(folder):
    content = report_of([folder])
    found = Tags(content)
    assert not {"script", "img", "iframe", "link", "object", "bold"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on") or name == "style"]
    assert "".join(found.text).count("<script>alert(1)</script>") >= 6  # it is shown, as text
    # Nothing is asked for from anywhere: links are those inside pictures.
    addresses = [value for name, value in found.attributes if name in ("href", "src", "xlink:href", "action")]
    assert all(value.startswith("#") for value in addresses)
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", content)


def test_the_policy_allows_the_one_style_sheet_and_nothing_else(folder):
    import base64
    import hashlib

    content = report_of([folder])
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', content)
    [style] = re.findall(r"<style>(.*?)</style>", content, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_it_has_the_parts_that_the_files_have_facts_for(folder):
    text = "".join(Tags(report_of([folder])).text)
    for title in ("Health", "Curves", "Held-out pairs before and after", "Answers while it trained", "Data"):
        assert title in text
    for words in ("Finished at", "step 6 of 6", "UTC", "Spearman's rho", "step 0", "Settings"):
        assert words in text
    assert len(report_of([folder]).encode()) < 5_000_000


def test_figures_are_those_of_the_log(folder):
    run = read_run(folder, "run")
    metrics = run.manifest["held_out"]["eval"]
    scored = run.scores["eval"]
    for averages, figures in ((scored.start, metrics["start"]), (scored.end, metrics["end"])):
        assert averages[:, 0].mean() == pytest.approx(figures["chosen"], abs=1e-4)
        assert (averages[:, 0] > averages[:, 1]).mean() == pytest.approx(figures["accuracy"])
    assert scored.step == 6
    [loss] = [chart for chart in charts.curves(run) if chart.title == "Loss"]
    logged = [entry["loss"] for entry in run.log if "loss" in entry]
    assert f"from {logged[0]:.4g} to {logged[-1]:.4g}" in loss.text


def test_a_finding_stands_on_the_curve_of_its_metric(folder):
    found = {chart.title: chart.text for chart in charts.curves(read_run(folder, "run"))}
    assert "findings at steps 4" in found["Log-probability of answers"]
    assert "findings" not in found["Loss"]


def test_a_finding_is_marked_at_the_foot_of_every_other_curve(folder):
    for chart in charts.curves(read_run(folder, "run")):
        assert ("finding elsewhere" in chart.svg) == (chart.title != "Log-probability of answers")


def test_settings_are_told_with_their_defaults(folder):
    run = read_run(folder, "run")
    given = {"beta": 2.0, "seed": 7, "model_name_or_path": "m", "use_peft": True}
    facts = {"settings": given, "defaults": {"beta": 2.0, "seed": 42, "model_name_or_path": None, "use_peft": False}}
    found = parts.settings(replace(run, manifest={"recipe": {**facts, "origins": {"seed": "r.yaml:3"}}}))
    rows = re.findall(r"<tr>(.*?)</tr>", found)[1:]
    assert [re.sub("<[^>]*>", " ", row).split() for row in rows] == [
        ["seed", "7", "42", "r.yaml:3"],
        ["model_name_or_path", "m"],
        ["use_peft", "true", "false"],
    ]
    assert "the same as the default: beta." in found


def test_accuracy_by_source_is_told_to_the_owner_alone(tmp_path, folder):
    averages = np.array([[-1.0, -2.0], [-2.0, -1.0], [-1.0, -2.0]])
    scores = PairScores(averages, np.ones((3, 2)), [EVIL, "b", "b"])
    save_scores(tmp_path, "eval", "a", scores, 0)
    save_scores(tmp_path, "eval", "a", PairScores(-averages, np.ones((3, 2)), scores.sources), 5)
    run = replace(read_run(folder, "run"), scores=read_scores(tmp_path))
    text = " ".join(Tags(parts.before_and_after(run)).text)
    assert re.search(r"accuracy by source pairs before after b 2 50.0% 50.0% <script>.* 1 100.0% 0.0%", text)
    assert "<script>" not in parts.before_and_after(run)
    assert "by source" not in parts.before_and_after(run, public=True)


def test_a_killed_run_and_an_old_one_have_reports(folder, tmp_path):
    """Without a state and a checkpoint the log's own file is read; without any of the newer files, what there is."""
    manifest = json.loads((folder / "run_manifest.json").read_text()) | {"status": "running", "finished": None}
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "run_manifest.json").write_text(json.dumps(manifest))
    log = (folder / "log.jsonl").read_text().splitlines()[:3]
    (killed / "log.jsonl").write_text("\n".join(log) + '\n{"loss": 1.0, "st')
    text = "".join(Tags(report_of([killed])).text)
    assert "Running or killed" in text and "Curves" in text and "Answers while" not in text
    old = {name: manifest[name] for name in ("status", "model", "method", "results")}
    (killed / "run_manifest.json").write_text(json.dumps(old))
    (killed / "log.jsonl").unlink()
    assert "a version without a health monitor" in report_of([killed])


def test_several_runs_share_pictures_and_a_table_of_differences(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("run_manifest.json", "log.jsonl", "trainer_state.json"):
        (other / name).write_text((folder / name).read_text())
    manifest = json.loads((other / "run_manifest.json").read_text())
    manifest["recipe"]["settings"]["beta"] = 2.5
    (other / "run_manifest.json").write_text(json.dumps(manifest))
    file = write_report([folder, other], tmp_path / "both.html")
    text = "".join(Tags(file.read_text()).text)
    assert "2 runs" in text and "Settings in which they differ" in text and "2.5" in text
    with pytest.raises(SimPOError, match="needs the name of its file. Add --output"):
        write_report([folder, other])


def test_the_command_says_what_it_wrote_and_what_is_wrong(folder, tmp_path):
    done = CliRunner().invoke(app, ["report", str(folder), "--output", str(tmp_path / "page.html")])
    assert done.exit_code == 0 and f"Wrote {tmp_path}/page.html" in done.output
    (tmp_path / "empty").mkdir()
    for words, error in (
        ([str(tmp_path / "empty")], "report needs the output folder of a run"),
        ([str(folder), "--output", str(tmp_path)], "is a folder; a report is a file"),
        ([str(folder), "--watch", "--output", "x.html"], "--watch writes no file"),
    ):
        failed = CliRunner().invoke(app, ["report", *words])
        assert failed.exit_code == 1 and error in failed.output


def test_curves_are_thinned_and_keep_their_ends():
    log = [{"step": step, "loss": 1.0, "other": 1} for step in range(1, 10_001)] + [{"step": 5, "eval_loss": 2.0}]
    kept = charts.thinned(log, ["loss"])
    assert len(kept) == charts.MOST_POINTS and kept[0]["step"] == 1 and kept[-1]["step"] == 10_000
    assert charts.thinned(log, ["eval_loss"]) == log[-1:]


def test_spearman_is_the_correlation_of_ranks():
    one = np.array([3.0, 1.0, 4.0, 1.0, 5.0])
    assert spearman(one, np.exp(one)) == pytest.approx(1.0) and spearman(one, -one) == pytest.approx(-1.0)
    # Ranks 3, 1.5, 4, 1.5, 5 against 1, 2, 3, 4, 5, by hand: 4 / sqrt(9.5 * 10).
    assert spearman(one, np.arange(5.0)) == pytest.approx(4 / 95**0.5)
    assert spearman(one, np.ones(5)) is None


def test_scores_of_a_large_set_are_thinned_alike_at_start_and_end(tmp_path):
    averages = np.arange(10_000.0).reshape(-1, 2)
    for step in (0, 5):
        save_scores(tmp_path, "eval", "a", PairScores(averages + step, averages.astype(int)), step)
    found = read_scores(tmp_path)["eval"]
    assert found.start.shape == (2000, 2) and (found.end - found.start == 5).all() and found.step == 5
    save_scores(tmp_path, "eval", "b", PairScores(averages[:3], averages[:3].astype(int)), 5)
    assert read_scores(tmp_path)["eval"].start is None  # other pairs: the start was not theirs
    (tmp_path / "pair_scores.json").write_text('{"eval": {"leng')
    assert read_scores(tmp_path) == {}


def test_length_is_judged_among_answers_of_one_side(tmp_path):
    """All rejected answers are longer and less likely; among chosen ones, the longer are the less likely."""
    lengths = np.array([[1, 10], [2, 11], [3, 12], [4, 13]])
    averages = np.array([[-1.0, -9.0], [-1.2, -8.0], [-1.3, -7.0], [-1.1, -6.0]])
    rows = str(parts._held_out_table(ScoredSet(lengths, averages, None, 0)))
    chosen, rejected = re.findall(r"(?:chosen|rejected) answers</td><td class=\"number\">([^<]*)</td>", rows)
    assert (float(chosen), float(rejected)) == pytest.approx((-0.4, 1.0))  # by hand: -2 of 5


def test_html_is_escaped_unless_it_is_html():
    assert element("p", "<b>", element("i", "&"), title='"x') == '<p title="&quot;x">&lt;b&gt;<i>&amp;</i></p>'
    assert "<title>&lt;x&gt;</title>" in page("<x>", element("p", "y"))
    assert zoned("2026-11-29T16:59:10+00:00") == "2026-11-29 16:59 UTC" and zoned("soon") == zoned(None) == "unknown"


def test_a_page_that_cannot_be_made_costs_a_warning_and_not_the_run(tmp_path, monkeypatch, caplog):
    def fail(folders):
        raise ValueError("no ink")

    monkeypatch.setattr("simpo_trainer.train.finish.write_report", fail)
    trainer = make_trainer(tmp_path, random_pairs(8), max_steps=1)
    trainer.train()
    trainer.finish()
    assert f"No report was written: no ink. Try again with: simpo report {tmp_path}" in caplog.text
    assert (tmp_path / "seal.json").is_file() and not (tmp_path / "report.html").exists()
