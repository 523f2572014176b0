"""The folders of the package from top to bottom, as the README lists them: each imports only those below it."""

LAYERS = [
    *(
        "cli",
        "quickstart",
        "rounds",
        "scores",
        "answers",
        "run",
        "recipe",
        "baselines",
        "train",
        "publish",
        "report",
        "results",
        "health",
        "loss",
        "model",
        "record",
    ),
    *("batches", "tokens", "data", "environment", "knobs", "value_types", "errors", "log", "lazy", "_version"),
]
