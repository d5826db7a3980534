"""Every notebook runs from top to bottom, briefly, with no error or warning left in a cell."""

from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PPVAE_SMOKE", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "error::UserWarning:ppvae")
    monkeypatch.setenv(
        "OMP_NUM_THREADS", "1"
    )  # the tensors are tiny, and other tests may run beside
    notebook = jupytext.read(path)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_there_are_notebooks():
    assert NOTEBOOKS
