"""docs/dialects.md says what the library computes, for every column of the table."""

from __future__ import annotations

import importlib.util
from dataclasses import fields

import pytest

from maskrcnn_bench.config.dialect import DIALECTS, Dialect

# Columns that say yes or no, or count, where one number would not say more than the value.
WITHOUT_EXAMPLE = {
    "min_detection_size",
    "clip_rescaled",
    "cascade_redraws",
    "cascade_gradient_share",
    "cascade_masks",
    "freeze_statistics",
    "keypoints_in_object",
    "top_relu",
    "retinanet_first_label",
    "retinanet_clip",
}


@pytest.fixture(scope="module")
def tool(repository):
    spec = importlib.util.spec_from_file_location("dialects_page", repository / "tools" / "dialects_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_library_computes(tool):
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run `python tools/dialects_page.py`"


def test_every_column_and_project_is_on_it(tool):
    names = [field.name for field in fields(Dialect) if field.name != "name"]
    assert [field for _, field, _ in tool.columns()] == names
    text = tool.PAGE.read_text(encoding="utf-8")
    assert all(f"### `{name}`" in text for name in names)
    assert all(text.count(f"| {name} |") == len(names) for name in DIALECTS)
    assert set(names) - set(tool.EXAMPLES) == WITHOUT_EXAMPLE


def test_an_example_tells_projects_apart_whose_values_differ(tool):
    """Otherwise it would not show what the column does."""
    for field, (_, function) in tool.EXAMPLES.items():
        shown = {name: function(row) for name, row in DIALECTS.items()}
        values = {name: getattr(row, field) for name, row in DIALECTS.items()}
        assert len(set(shown.values())) > 1 or len(set(values.values())) == 1, field


def test_a_known_source_stands_behind_each_value(tool):
    """Where a project differs from the others, its file is named."""
    said = tool.sources()
    for field in fields(Dialect):
        values = {name: getattr(row, field.name) for name, row in DIALECTS.items()}
        for name, value in values.items():
            if field.name != "name" and list(values.values()).count(value) == 1:
                assert said[name, field.name], (name, field.name)
