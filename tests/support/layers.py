"""The folders of the package from top to bottom: each imports only those below it, and the README's tree lists them so."""

LAYERS = [
    *("cli", "quickstart", "run", "recipe", "baselines", "train", "publish", "results", "loss", "model", "record"),
    *("batches", "tokens", "data", "environment", "errors", "log", "lazy", "_version"),
]
