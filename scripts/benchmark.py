"""Measure training steps, or the language-model head alone, against trl and against what cannot be avoided.

    python scripts/benchmark.py [--profile ultrafeedback] [--vocab 32000] [--repeats 3]
    python scripts/benchmark.py --data pairs.jsonl --tokenizer NAME
    python scripts/benchmark.py --data pairs.jsonl --model FOLDER
    python scripts/benchmark.py --ranked 4 --pairs 2
    python scripts/benchmark.py --what head [--positions 4096]
    python scripts/benchmark.py --what profile [--profile hh]
    python scripts/benchmark.py --what scaling [--processes 2]
    python scripts/benchmark.py --what answers [--new-tokens 64]

The last line of the output is the same as JSON. What the columns mean stands in bench_training.py and bench_head.py.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from bench_answers import run_answers
from bench_head import run_head
from bench_model import ATTENTIONS
from bench_profile import run_profile
from bench_rows import MODELS, PROFILES
from bench_scaling import run_scaling
from bench_training import run_training
from bench_worker import RANKED, ROWS


def main(arguments: Sequence[str]) -> None:
    """Parse the arguments, run one of the two."""
    options = parse(arguments)
    if options.what == "head":
        options.hidden = options.hidden or 256
        run_head(options)
    elif options.what == "profile":
        run_profile(options)
    elif options.what == "scaling":
        run_scaling(options)
    elif options.what == "answers":
        run_answers(options)
    else:
        run_training(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; `arguments` among them are the words as given, quoted for a shell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=["training", "head", "profile", "scaling", "answers"], default="training")
    parser.add_argument("--vocab", type=int, default=32000, help="32000, 128256 and 256000 are common")
    parser.add_argument("--hidden", type=int, help="hidden size instead of the model's")
    parser.add_argument("--repeats", type=int, default=3, help="after one that is warm-up")
    parser.add_argument("--positions", type=int, default=4096, help="of the head benchmark")
    training = parser.add_argument_group("training")
    training.add_argument("--profile", choices=PROFILES, default="ultrafeedback", help="lengths of random pairs")
    training.add_argument("--data", help="JSON or Parquet file of pairs instead, text or token ids")
    training.add_argument("--tokenizer", help="of such text, instead of the model's where that is a folder")
    training.add_argument("--max-length", type=int, help="instead of the profile's")
    training.add_argument("--model", default="small", help=f"random: {', '.join(MODELS)}; or the folder of a Llama")
    training.add_argument("--layers", type=int, help="instead of the model's")
    training.add_argument("--pairs", type=int, default=8, help="in an optimiser step; with --ranked, prompts")
    training.add_argument("--ranked", type=int, metavar="K", help="random prompts with K answers, all pairs of them")
    training.add_argument("--steps", type=int, default=4, help="in a pass, each over another batch")
    training.add_argument("--learning-rate", type=float, default=1e-4)
    training.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    clock = "seconds that pass, or those of the process's own work, where others use the CPU too"
    training.add_argument("--clock", choices=["wall", "cpu"], default="wall", help=clock)
    training.add_argument("--gradient-checkpointing", action="store_true")
    training.add_argument("--lora", action="store_true", help="rank 16 on all linear layers of the backbone")
    training.add_argument("--qlora", action="store_true", help="the same over weights in 4 bits; needs bitsandbytes")
    training.add_argument("--attention", choices=ATTENTIONS, default="sdpa", help="of the model")
    training.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"some of: {'; '.join(ROWS)}")
    training.add_argument("--processes", type=int, default=2, help="of --what scaling, at most")
    training.add_argument("--new-tokens", type=int, default=64, help="in an answer of --what answers")
    training.add_argument("--answers-at-once", type=int, default=20, help="of --what answers, 5 to a prompt")
    training.add_argument("--seed", type=int, default=42)
    options = parser.parse_args(arguments)
    for name in ("vocab", "repeats", "positions", "pairs", "steps", "processes", "new_tokens", "answers_at_once"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if options.ranked is not None and (options.ranked < 2 or options.data):
        parser.error("--ranked makes random prompts with at least 2 answers; give a number from 2 on, and no --data")
    if options.what == "scaling" and options.pairs % options.processes:
        parser.error(f"--pairs is {options.pairs}; {options.processes} processes need a multiple of them")
    if RANKED in (options.rows or ()) and not options.ranked:
        parser.error(f"the row {RANKED!r} needs --ranked K")
    if options.model not in MODELS:
        if not (Path(options.model) / "config.json").is_file():
            shapes = ", ".join(MODELS)
            parser.error(f"--model is {options.model}, neither one of {shapes} nor a folder with a config.json")
        if {options.hidden, options.layers, options.vocab} != {None, parser.get_default("vocab")}:
            parser.error("--hidden, --layers and --vocab are of random models; leave them out with a folder as --model")
    if options.vocab < 16:
        parser.error("--vocab must be at least 16")
    options.arguments = [shlex.quote(argument) for argument in arguments]
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
