"""Tests a model on data sets; `--help` shows the arguments. The same as `maskrcnn-bench test`."""

import sys
from pathlib import Path

# A checkout works without being installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from maskrcnn_bench.engine.arguments import test_main  # noqa: E402

if __name__ == "__main__":
    sys.exit(test_main())
