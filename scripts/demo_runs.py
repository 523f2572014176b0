"""The steps of the demonstration, each a command of the package that goes on where it was."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from demo_prompts import make_prompts
from demo_scores import Evaluation, evaluate
from real_model import prepare

ROOT = Path(__file__).parents[1]
SCORE = f"{Path(__file__).with_name('demo_rules.py')}:score"
# The file that holds the weights of a run, which is removed once the run is evaluated, if it is not the best.
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Size:
    """Numbers of prompts, and of answers to each."""

    prompts: int
    search_prompts: int
    held_out: int
    held_out_sampled: int
    answers: int
    new_tokens: int


FULL = Size(prompts=198, search_prompts=44, held_out=308, held_out_sampled=55, answers=4, new_tokens=96)
SMALL = Size(prompts=44, search_prompts=11, held_out=33, held_out_sampled=11, answers=3, new_tokens=64)

_RECIPE = """\
# SmolLM2-135M-Instruct learns from its own answers to obey instructions that a program can check.
model_name_or_path: {folder}/model
dataset_name: {folder}/prompts.jsonl
output_dir: {folder}/run

beta: 2.0
gamma_beta_ratio: 0.5
learning_rate: 5.0e-6
global_batch_size: 8              # pairs; a few hundred of them make some tens of steps
per_device_train_batch_size: 8
num_train_epochs: 1
bf16: {bf16}
lr_scheduler_type: cosine
warmup_steps: 0.1                 # a share of all steps
max_length: 320                   # tokens
max_prompt_length: 160
logging_steps: 5
eval_strategy: epoch
per_device_eval_batch_size: 8
save_strategy: "no"               # a run of two minutes; its model is saved at the end
seed: 42

generate:
  num_answers: {answers}
  temperature: 0.9
  top_p: 1.0
  max_new_tokens: {new_tokens}
  batch_size: 60
annotate:
  score: {score}
"""

_ROUNDS = """\
# The same in rounds, each from the model of the one before: fewer prompts, shorter answers.
extends: recipe.yaml
dataset_name: {folder}/rounds-prompts.jsonl
eval_dataset_name: {folder}/search.jsonl
output_dir: {folder}/rounds
learning_rate: {rate:g}

generate:
  num_answers: {answers}
  temperature: 0.9
  top_p: 1.0
  max_new_tokens: 64
  batch_size: 60
"""
# Processors with these instructions multiply bfloat16 a few times as fast as float32.
_FAST_BF16 = "amx_bf16"
# Prompts of the rounds, a share of those of the demonstration.
_OF_ROUNDS = 1 / 3


class Demo:
    """A folder in which the demonstration runs; what is there already is not made again.

    Args:
        folder: of everything that is made.
        size: numbers of prompts and answers.
    """

    def __init__(self, folder: Path, size: Size) -> None:
        self.folder = folder
        self.size = size
        self.recipe = folder / "recipe.yaml"
        self.pairs = folder / "pairs.jsonl"
        self.held_out_pairs = folder / "held-out-pairs.jsonl"
        self.seconds: dict[str, float] = {}
        processor = Path("/proc/cpuinfo")
        self.bf16 = processor.exists() and _FAST_BF16 in processor.read_text(encoding="utf-8")

    def make_ready(self) -> None:
        """Write the model, the prompts and the recipe."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "model").exists():
            prepare(self.folder / "model")
        size = self.size
        train = make_prompts(size.prompts + size.search_prompts, held_out=False, seed=0)
        held_out = make_prompts(size.held_out, held_out=True, seed=1)
        self._write("prompts", train[size.search_prompts :])
        self._write("search", train[: size.search_prompts])
        self._write("held-out", held_out)
        self._write("held-out-sampled", held_out[: size.held_out_sampled])
        values = {"folder": self.folder, "score": SCORE, "bf16": str(self.bf16).lower(), **asdict(size)}
        self.recipe.write_text(_RECIPE.format(**values), encoding="utf-8")

    def answer(self) -> None:
        """Sample answers to the prompts, score them and make pairs; the same for some held-out prompts."""
        for prompts, answers, pairs in (
            ("prompts", "answers", self.pairs),
            ("held-out-sampled", "held-out-answers", self.held_out_pairs),
        ):
            source, file = str(self.folder / f"{prompts}.jsonl"), str(self.folder / f"{answers}.jsonl")
            # The start model is rounded anyway; greedy answers of trained ones are in float32.
            dtype = ["--dtype", "bfloat16"] if self.bf16 else []
            self.call("generate", str(self.recipe), "--dataset_name", source, "--output", file, *dtype)
            self.call("annotate", file, "--recipe", str(self.recipe), "--output", str(pairs))

    def train(self, name: str, words: Sequence[str], pairs: Path | None = None) -> Path:
        """Train from the start model, and return the folder of the run.

        Args:
            name: of the run.
            words: overrides of the recipe.
            pairs: to train on, instead of those that were made of the answers.
        """
        run = self.folder / name
        given = ["--dataset_name", str(pairs or self.pairs), "--eval_dataset_name", str(self.held_out_pairs)]
        self.call("train", str(self.recipe), *given, "--output_dir", str(run), *words)
        return run

    def rounds(self, rate: float, count: int = 3) -> None:
        """Answer, score and train in rounds; the search prompts, which make no pairs, measure them.

        Args:
            rate: the learning rate.
            count: of rounds at most.
        """
        lines = (self.folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        kept = lines[: round(_OF_ROUNDS * len(lines))]
        (self.folder / "rounds-prompts.jsonl").write_text("".join(kept), encoding="utf-8")
        recipe = self.folder / "rounds.yaml"
        recipe.write_text(_ROUNDS.format(folder=self.folder, rate=rate, answers=self.size.answers), encoding="utf-8")
        self.call("iterate", str(recipe), "--rounds", str(count))

    def greedy(self, model: Path, prompts: str, name: str) -> Evaluation:
        """Returns what the greedy answers of a model to a file of prompts come to."""
        file = self.folder / f"{name}-{prompts}.jsonl"
        words = ["--model_name_or_path", str(model), "--dataset_name", str(self.folder / f"{prompts}.jsonl")]
        greedy = ["--temperature", "0", "--num_answers", "1", "--output", str(file)]
        self.call("generate", str(self.recipe), *words, *greedy)
        return evaluate(file)

    def drop_weights(self, run: Path) -> None:
        """Remove the weights of a run that has been evaluated: half a gigabyte each."""
        (run / _WEIGHTS).unlink(missing_ok=True)

    def call(self, *words: str) -> None:
        """Run a command of the package, shown as one would type it; its failure ends the demonstration."""
        shown = [word.replace(f"{ROOT}/", "") for word in words]
        print(f"\n$ simpo {shlex.join(shown)}", flush=True)
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "simpo_trainer", *words])
        self.seconds[words[0]] = self.seconds.get(words[0], 0.0) + time.monotonic() - start
        if done.returncode:
            raise SystemExit(done.returncode)

    def results(self, run: Path) -> dict[str, dict[str, float]]:
        """Returns the figures of the held-out pairs that a run has left, at its `start` and at its `end`."""
        return json.loads((run / "run_manifest.json").read_text(encoding="utf-8"))["held_out"]["eval"]

    def _write(self, name: str, rows: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
