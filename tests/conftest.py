"""What all tests share: the folder of real data, the number of threads, and the marks `gpu` and `full`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskrcnn_bench.utils.logger import NAME, close_handlers

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also run the tests marked full, which take long")


def pytest_configure() -> None:
    import torch

    # Small tensors are slower on many threads, and a test should not depend on the number of processors.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    no_gpu = pytest.mark.skip(reason="needs a CUDA device")
    long = pytest.mark.skip(reason="long; runs with --full")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        if "full" in item.keywords and not config.getoption("--full"):
            item.add_marker(long)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real images and of other implementations' outputs; tests that need it skip without it."""
    folder = Path(os.environ.get("MASKRCNN_BENCH_SHARED") or REPOSITORY.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; MASKRCNN_BENCH_SHARED may name it")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(autouse=True)
def quiet_afterwards() -> Iterator[None]:
    """A program that a test called may have set up its log; the next test's output is not that program's."""
    yield
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] == NAME and isinstance(logging.root.manager.loggerDict[name], logging.Logger):
            logger = logging.getLogger(name)
            close_handlers(logger)
            logger.propagate = True
