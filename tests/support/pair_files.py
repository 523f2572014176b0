"""Preference rows in files of every kind that a source may be."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset

from simpo_trainer.data.load import DataConfig, load_preferences
from toy import toy_pairs

ROWS = toy_pairs(4)


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> str:
    """Writes rows in the format that the file name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        Dataset.from_list(rows).to_csv(path)
    else:
        Dataset.from_list(rows).to_parquet(path)
    return str(path)


def load(name: Any, **config: Any) -> tuple[Any, Any]:
    return load_preferences(DataConfig(dataset_name=str(name), **config))
