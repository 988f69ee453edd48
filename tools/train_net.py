"""Trains a model and tests it at the end; `--help` shows the arguments. The same as `maskrcnn-bench train`."""

import sys
from pathlib import Path

# A checkout works without being installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from maskrcnn_bench.engine.arguments import train_main  # noqa: E402

if __name__ == "__main__":
    sys.exit(train_main())
