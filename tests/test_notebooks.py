"""The notebooks run, are those that their generator writes, and are small."""

import importlib.util
import json
import re

import pytest
from demo_models import save_model

NAMES = ("Mask_R-CNN_demo", "shapes_from_zero", "own_data_in_five_minutes")


@pytest.fixture(scope="module")
def maker(repository):
    for module in ("nbformat", "nbclient", "ipykernel"):
        pytest.importorskip(module, reason=f"no {module}; pip install maskrcnn_bench[dev]")
    spec = importlib.util.spec_from_file_location("make_notebooks", repository / "demo" / "make_notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def place(tmp_path, monkeypatch, repository):
    """A folder like the repository's demo/, from which the package can be imported."""
    monkeypatch.setenv("PYTHONPATH", str(repository))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "demo").mkdir()
    return tmp_path / "demo"


def pictures(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/jpeg" in output.get("data", {})]


def printed(notebook):
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))


def sources(cells):
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebook_is_what_the_generator_writes(maker, repository, name):
    path = repository / "demo" / f"{name}.ipynb"
    committed = json.loads(path.read_text(encoding="utf-8"))
    assert path.stat().st_size <= maker.MOST_BYTES
    assert sources(committed["cells"]) == sources(maker.parse(maker.NOTEBOOKS[name]).cells), "python demo/make_notebooks.py writes it anew"
    code = [cell for cell in committed["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "executed from the top"
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)


def test_texts_become_cells(maker):
    notebook = maker.parse("# %% [markdown]\n# # Title\n#\n# text\n# %%\nx = 1\n\n# a comment\n# %%\nx\n")
    assert sources(notebook.cells) == [("markdown", "# Title\n\ntext"), ("code", "x = 1\n\n# a comment"), ("code", "x")]


def test_demo_runs_with_a_model_that_is_there(maker, place):
    save_model(place.parent / "output" / "demo")
    notebook = maker.parse(maker.NOTEBOOKS["Mask_R-CNN_demo"])
    maker.execute(notebook, place, 120)
    assert len(pictures(notebook)) == 5 and "It knows: cat, dog, bird, 猫" in printed(notebook)
    assert not [cell for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})]


def shortened(text, iterations):
    """The same notebook with a training that is no training."""
    text, count = re.subn(r"^ITERATIONS = \d+$", f"ITERATIONS = {iterations}", text, flags=re.MULTILINE)
    assert count == 1
    return text


@pytest.mark.full
@pytest.mark.parametrize("name,shown", [("shapes_from_zero", 3), ("own_data_in_five_minutes", 1)])
def test_training_notebooks_run(maker, place, name, shown):
    notebook = maker.parse(shortened(maker.NOTEBOOKS[name], 4))
    maker.execute(notebook, place, 300)
    assert len(pictures(notebook)) == shown
    assert "exit code 0" in printed(notebook) or name == "shapes_from_zero"
