"""The benchmark script: what it counts, what it trains on, and that its rows are runs of equal steps."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from answering import write_chat_model, write_lines
from models import tiny_architecture
from reference import in_float64, score_pairs
from simpo_trainer.tokens.rows import TOKEN_COLUMNS
from toy import toy_pairs

SCRIPTS = Path(__file__).parents[2] / "scripts"
# The parts of the script import each other by name, as they do when it runs.
sys.path.append(str(SCRIPTS))

import bench_rows  # noqa: E402
import benchmark  # noqa: E402
from bench_parts import around  # noqa: E402
from bench_profile import kind_of  # noqa: E402
from bench_training import largest_difference, losses_agree, make_job, summary  # noqa: E402
from bench_worker import RANKED, ROWS, StepClock  # noqa: E402

TINY = ["--hidden", "32", "--layers", "2", "--vocab", "500", "--max-length", "64", "--steps", "2", "--repeats", "1"]


def run_benchmark(*arguments: str) -> tuple[list[str], dict]:
    command = [sys.executable, str(SCRIPTS / "benchmark.py"), *arguments]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    return lines, json.loads(lines[-1])


def shape(**fields: int) -> dict:
    return bench_rows.model_shape("small", 500, 64, fields.get("hidden", 32), fields.get("layers", 2))


def pair(*lengths: int) -> dict[str, list[int]]:
    return {name: [3] * length for name, length in zip(TOKEN_COLUMNS, lengths, strict=True)}


@pytest.mark.slow
def test_every_row_takes_the_same_steps():
    lines, result = run_benchmark(*TINY, "--device", "cpu", "--pairs", "4")
    assert [row["row"] for row in result["rows"]] == [name for name in ROWS if name != RANKED]
    assert result["losses_agree"] and "losses agree" in lines
    first = result["rows"][0]["losses"]
    assert len(set(first)) == 4  # two steps of warm-up, two that count
    for row in result["rows"]:
        assert row["losses"] == pytest.approx(first, rel=1e-4)
        assert row["pairs_per_second"] == pytest.approx(8 / row["pass_seconds"][0])
        assert row["over_trl"] == pytest.approx(row["pairs_per_second"] / result["rows"][0]["pairs_per_second"])
        assert row["over_floor"] > 1 and 0 < row["waits"] < 1
    assert result["setting"]["command"].startswith("python scripts/benchmark.py --hidden 32")


@pytest.mark.slow
def test_a_model_of_a_folder_trains_on_conversations(tmp_path):
    """Its own weights, tokens and chat template: the first loss is that of the reference on the same rows."""
    folder = write_chat_model(tmp_path / "model", tie_word_embeddings=True)
    file = write_lines(tmp_path / "pairs.jsonl", toy_pairs(20, conversational=True))
    words = ["--model", str(folder), "--data", str(file), "--pairs", "4", "--steps", "2", "--repeats", "1", "--lora"]
    words += ["--gradient-checkpointing"]
    lines, result = run_benchmark(*words, "--device", "cpu", "--max-length", "128", "--rows", "trl CPO", "ours, packed")
    trl, ours = result["rows"]
    assert result["losses_agree"] and len(trl["losses"]) == 4
    apart = max(abs(one - other) for one, other in zip(trl["losses"], ours["losses"], strict=True))
    assert result["largest_difference"] == pytest.approx(apart) and apart < 1e-4
    assert f"largest difference of a loss between rows: {apart:.1e}, of 4 steps" in lines
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert result["setting"]["model"] == f"{folder} (32 x 2)"
    assert result["setting"]["vocab"] == model.config.vocab_size

    rows = bench_rows.choose_batches(bench_rows.real_pairs(str(file), str(folder), 128), size=4, steps=2, seed=42)
    first = bench_rows.epochs_in_order(rows, size=4, epochs=1, seed=42)[:4]
    assert ours["losses"][0] == pytest.approx(score_pairs(in_float64(model), first).loss().item(), rel=1e-5)


@pytest.mark.slow
def test_ranked_answers_take_the_steps_of_their_pairs():
    rows = ["--rows", "ours, shared_prefix", RANKED]
    lines, result = run_benchmark(*TINY, "--device", "cpu", "--ranked", "4", "--pairs", "3", *rows)
    name = f"{RANKED} K=4"
    assert [row["row"] for row in result["rows"]] == ["ours, shared_prefix", name]
    assert result["losses_agree"]
    assert (result["setting"]["prompts a step"], result["setting"]["pairs a step"]) == (3, 18)
    first, rows = result["rows"][0]["losses"], {row["row"]: row for row in result["rows"]}
    assert len(set(first)) == 4
    for row in result["rows"]:
        assert row["losses"] == pytest.approx(first, rel=1e-4)
        assert row["pairs_per_second"] == pytest.approx(36 / row["pass_seconds"][0])
    over = rows[name]["pairs_per_second"] / rows["ours, shared_prefix"]["pairs_per_second"]
    assert rows[name]["over_two_by_two"] == pytest.approx(over)
    assert (
        f"ours, ranked K=4: {over:.2f} times the pairs/s of ours, shared_prefix on the same pairs two by two" in lines
    )


@pytest.mark.slow
def test_the_head_alone():
    _, result = run_benchmark(
        "--what", "head", "--vocab", "500", "--hidden", "32", "--positions", "64", "--repeats", "1"
    )
    assert result["rows"][0]["way"] == "one product, forward only"
    assert all(row["error"] < 1e-4 for row in result["rows"][1:])


def test_counted_products_are_those_that_torch_counts():
    """One answer a row and nothing shared: torch counts the same, but for attention, which it does not halve."""
    from torch.utils.flop_counter import FlopCounterMode

    fields = shape()
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.set_attn_implementation("eager")
    backbone = bench_rows.backbone_parameters(fields)
    prompt, answer = 7, 5
    length = prompt + answer - 1
    hidden = torch.randn(1, length, 32, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        output = model.model(inputs_embeds=hidden, use_cache=False).last_hidden_state
        model.lm_head(output[:, prompt - 1 :]).sum().backward()

    both = bench_rows.needed_flops([pair(prompt, answer, answer)], fields, backbone)
    # The second answer costs its own tokens: without them, one row as above is left.
    per_answer = 6 * (backbone * (answer - 1) + 32 * 500 * answer)
    per_answer += 12 * 32 * 2 * ((answer - 1) * prompt + (answer - 1) * answer // 2)
    unseen = 12 * 32 * 2 * (length * (length - 1) // 2)
    norms = 6 * 32 * 5 * length  # weights that multiply no matrix
    # torch also counts the outer product of positions and frequencies, forward alone.
    assert both - per_answer + unseen - norms == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_ranked_rows_are_their_pairs_with_each_answer_once():
    """Answers are chosen and rejected ones in turn; what is counted is that of one prompt and its answers."""
    profile = bench_rows.PROFILES["hh"]
    rows = bench_rows.random_ranked(profile, vocab=1000, seed=3, answers=4)
    pairs = bench_rows.two_by_two(rows)
    assert len(pairs) == 6 * len(rows)
    assert pairs[5] == dict(
        zip(TOKEN_COLUMNS, (rows[0]["prompt_ids"], rows[0]["response_ids"][2], rows[0]["response_ids"][3]), strict=True)
    )
    for found, wanted in zip(bench_rows.medians(rows).values(), profile.medians, strict=True):
        assert abs(math.log(found / wanted)) < 0.15
    assert bench_rows.two_by_two(pairs[:7]) == pairs[:7]
    two = bench_rows.random_pairs(profile, vocab=1000, seed=3)
    assert bench_rows.two_by_two(bench_rows.random_ranked(profile, vocab=1000, seed=3, answers=2)) == two
    fields, row = (
        shape(layers=1),
        {"prompt_ids": [3] * 3, "response_ids": [[3] * 2, [3] * 4, [3]], "chosen": [], "rejected": []},
    )
    products = bench_rows.needed_flops([row], fields, backbone=1000)
    assert products == 6 * (1000 * 7 + 32 * 500 * 7) + 12 * 32 * (6 + 4 + 15)
    assert bench_rows.unique_tokens([row]) == 10


def test_counted_products_of_two_answers():
    fields = shape(layers=1)
    products = bench_rows.needed_flops([pair(3, 2, 4)], fields, backbone=1000)
    # Queries: 3 of the prompt, 1 and 3 of the answers; they see 1+2+3, 4, and 4+5+6 keys.
    assert products == 6 * (1000 * 7 + 32 * 500 * 6) + 12 * 32 * (6 + 4 + 15)
    frozen = bench_rows.needed_flops([pair(3, 2, 4)], fields, backbone=1000, frozen=True)
    assert frozen == 4 * (1000 * 7 + 32 * 500 * 6) + 12 * 32 * (6 + 4 + 15)


def test_queries_may_be_wider_than_the_model():
    fields = {**shape(layers=1), "head_dim": 3 * 32 // shape()["num_attention_heads"]}
    narrow, wide = (bench_rows.needed_flops([pair(3, 2, 4)], each, backbone=1000) for each in (shape(layers=1), fields))
    assert wide - narrow == 2 * 12 * 32 * (6 + 4 + 15)


def test_the_shape_of_a_folder_is_that_of_its_model(tmp_path):
    fields = bench_rows.folder_shape(str(write_chat_model(tmp_path / "model")))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert fields["vocab_size"] == len(model.get_input_embeddings().weight)
    backbone = sum(p.numel() for p in model.model.parameters()) - model.get_input_embeddings().weight.numel()
    assert bench_rows.backbone_parameters(fields) == backbone
    tiny_architecture("gpt2").save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit, match="other holds a gpt2; --model takes the folder of a Llama"):
        bench_rows.folder_shape(str(tmp_path / "other"))


@pytest.mark.parametrize("name", bench_rows.PROFILES)
def test_profiles_have_their_lengths(name):
    profile = bench_rows.PROFILES[name]
    pairs = bench_rows.random_pairs(profile, vocab=1000, seed=3)
    assert pairs == bench_rows.random_pairs(profile, vocab=1000, seed=3)
    assert pairs != bench_rows.random_pairs(profile, vocab=1000, seed=4)
    for found, wanted in zip(bench_rows.medians(pairs).values(), profile.medians, strict=True):
        assert abs(math.log(found / wanted)) < 0.15
    for row in pairs:
        answers = len(row["chosen_ids"]), len(row["rejected_ids"])
        assert min(*answers, len(row["prompt_ids"])) >= 1
        assert len(row["prompt_ids"]) + max(answers) <= profile.max_length
        assert all(3 <= token < 1000 for ids in row.values() for token in ids)


def test_pairs_of_token_ids_are_taken_as_they_are(tmp_path):
    pairs = bench_rows.random_pairs(bench_rows.Profile((20, 10, 8), (0.5, 0.5), 64), vocab=400, seed=1, count=20)
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in pairs))
    found = bench_rows.real_pairs(str(tmp_path / "pairs.jsonl"), None, 64)
    assert sorted(found, key=str) == sorted(pairs, key=str)


def test_batches_are_alike_in_length_within_and_evenly_chosen():
    pairs = bench_rows.random_pairs(bench_rows.PROFILES["hh"], vocab=1000, seed=3)
    chosen = bench_rows.choose_batches(pairs, size=8, steps=4, seed=42)
    totals = [sum(map(len, row.values())) for row in chosen]
    batches = [totals[start : start + 8] for start in range(0, 32, 8)]
    assert all(max(shorter) <= min(longer) for shorter, longer in zip(batches, batches[1:], strict=False))
    # The trainer, given these pairs alone, makes the same batches of them in every epoch.
    order = bench_rows.epochs_in_order(chosen, size=8, epochs=2, seed=42)
    groups = [{id(row) for row in order[start : start + 8]} for start in range(0, 64, 8)]
    expected = [{id(row) for row in chosen[start : start + 8]} for start in range(0, 32, 8)]
    assert all(groups.count(group) == 2 for group in expected)


def test_too_few_pairs_are_said():
    with pytest.raises(SystemExit, match="5 rows make 2 batches of 2; 3 steps need more"):
        bench_rows.choose_batches([pair(3, 2, 2)] * 5, size=2, steps=3, seed=0)


def test_a_row_is_the_median_of_the_passes_after_the_first():
    result = {"seconds": [9.0, 9.0, 1.0, 2.0, 2.0, 3.0, 7.0, 9.0], "losses": [0.5, 0.4], "peak_bytes": None}
    result["waits"] = [1.0, 1.0, 0.0, 0.5, 0.5, 0.0, 0.0, 1.4]
    row = summary(result, pairs=10, tokens=100, steps=2, floor=2.5)
    assert row["pass_seconds"] == [3.0, 5.0, 16.0]
    assert (row["pairs_per_second"], row["tokens_per_second"], row["over_floor"]) == (2.0, 20.0, 2.0)
    assert row["last_loss"] == 0.4
    assert row["waits"] == pytest.approx(2.4 / 24)


def test_disagreeing_losses_are_found():
    rows = [{"losses": [1.0, 2.0]}, {"error": "killed"}, {"losses": [1.0, 2.001]}]
    assert losses_agree(rows, 1e-3)
    assert not losses_agree([*rows, {"losses": [1.01, 2.0]}], 1e-3)
    assert not losses_agree([*rows, {"losses": [1.0]}], 1e-3)
    assert largest_difference(rows) == pytest.approx(1e-3)
    assert largest_difference([*rows, {"losses": [1.01, 2.0]}]) == pytest.approx(1e-2)
    assert largest_difference(rows[:2]) is None


def test_arguments_that_cannot_be_are_refused(capsys, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit):
        benchmark.parse(["--steps", "0"])
    assert "--steps must be at least 1" in capsys.readouterr().err
    for words, message in (
        (["--ranked", "1"], "--ranked makes random prompts with at least 2 answers"),
        (["--ranked", "4", "--data", "x.jsonl"], "no --data"),
        (["--what", "scaling", "--pairs", "3"], "--pairs is 3; 2 processes need a multiple of them"),
        (["--rows", "ours, ranked"], "the row 'ours, ranked' needs --ranked K"),
        (["--model", "smal"], "--model is smal, neither one of small, 1b, 8b nor a folder with a config.json"),
        (["--model", str(tmp_path), "--layers", "2"], "--hidden, --layers and --vocab are of random models"),
        (["--model", str(tmp_path), "--vocab", "500"], "leave them out with a folder as --model"),
    ):
        with pytest.raises(SystemExit):
            benchmark.parse(words)
        assert message in capsys.readouterr().err
    assert benchmark.parse(["--model", str(tmp_path)]).model == str(tmp_path)
    assert benchmark.parse(["--data", "my pairs.jsonl"]).arguments == ["--data", "'my pairs.jsonl'"]


def test_the_clock_can_leave_out_what_others_do():
    wall, own = (StepClock(cuda=False, clock=clock) for clock in ("wall", "cpu"))
    for clock in (wall, own):
        clock.ends.append(clock._now())
    time.sleep(0.3)
    for clock in (wall, own):
        clock.ends.append(clock._now())
    assert wall.seconds()[0] >= 0.3 > 0.1 > own.seconds()[0] > 0
    options = benchmark.parse(["--clock", "cpu", "--device", "cuda"])
    with pytest.raises(SystemExit, match="--clock cpu leaves out the work of the card"):
        make_job(options)


@pytest.mark.slow
def test_a_profile_tells_kinds_of_operators_apart():
    lines, result = run_benchmark(
        *TINY, "--what", "profile", "--device", "cpu", "--pairs", "4", "--rows", "ours, packed"
    )
    (row,) = result["rows"]
    assert row["row"] == "ours, packed" and row["total"] == pytest.approx(sum(row["kinds"].values()))
    assert all(seconds > 0 for seconds in row["kinds"].values())
    assert 0 < row["around"] < 1
    assert any("largest of the rest" in line or "largest" in line for line in lines)


@pytest.mark.slow
def test_answers_of_both_have_the_same_number_of_tokens():
    words = ["--what", "answers", "--device", "cpu", "--pairs", "2", "--new-tokens", "4", "--answers-at-once", "10"]
    _, result = run_benchmark(*TINY, *words)
    ours, plain = result["tokens_per_second"]["simpo generate"], result["tokens_per_second"]["generate, a plain loop"]
    assert result["times_plain"] == pytest.approx(ours / plain)
    assert result["tokens"] == {"simpo generate": 4 * 4 * 5, "generate, a plain loop": 4 * 4 * 5}


@pytest.mark.slow
def test_two_processes_train_the_same_as_one():
    lines, result = run_benchmark(*TINY, "--what", "scaling", "--device", "cpu", "--pairs", "4")
    one, two = result["rows"]
    assert (one["processes"], two["processes"]) == (1, 2) and result["losses_agree"]
    assert two["over_one"] == pytest.approx(two["pairs_per_second"] / one["pairs_per_second"])
    assert any("efficiency" in line for line in lines)


def test_what_is_around_the_model_is_what_no_part_has():
    steps = [{"forward": 1.0, "backward": 2.0, "optimiser": 0.5}, {"forward": 1.0, "backward": 2.0, "optimiser": 0.5}]
    assert around(steps, [4.0, 4.0]) == pytest.approx(1 / 8)


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::mm", "products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::_fused_adamw_", "optimiser"),
        ("aten::exp_", "rest"),
    ],
)
def test_kinds_of_operators(operator, kind):
    assert kind_of(operator) == kind
