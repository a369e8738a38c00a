"""The notebook runs from its first to its last cell, with a tiny setting."""

from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"


# Jupyter's own.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_quickstart_notebook(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("FMJAX_NOTEBOOK_TINY", "1")
    monkeypatch.setenv("FMJAX_NOTEBOOK_OUT", str(tmp_path / "out"))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    there = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=there).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    for text in ("bits/byte", "trained parameters", "model.safetensors", "This movie is"):
        assert text in printed
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells
               for output in cell.get("outputs", ()))  # fmt: skip
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    assert "%pip install" in cells[0].source and "find_spec" in cells[0].source
