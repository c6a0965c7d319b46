"""Runs an experiment: `python main.py --config=experiments/demo.py`. Once installed, the command `ecgbyte` does the same."""

import sys

try:
    from ecgbyte_jax.main import start
except ModuleNotFoundError as error:
    sys.exit(f"error: {sys.executable} has no module {error.name!r}; run make demo once, then: source .venv/bin/activate")

if __name__ == "__main__":
    start()
