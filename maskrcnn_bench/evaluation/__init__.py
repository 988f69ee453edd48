"""Evaluation: predictions of a data set against its ground truth."""

from .dispatch import evaluate
from .results import check_expected_results, format_results, write_results

__all__ = ["check_expected_results", "evaluate", "format_results", "write_results"]
