import importlib
from typing import Any

# Imported when they are asked for: the command that checks data answers without torch.
_PLACES = {"check_dataset": "check", "make_data_loader": "build", "make_dataset": "build", "make_datasets": "build"}

__all__ = ["check_dataset", "make_data_loader", "make_dataset", "make_datasets"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
