"""The README's Python runs as it stands, on a tiny model in the place of a real one."""

import re
from pathlib import Path

import jax
import pytest

import fmjax
from fmjax.data import load_corpus, load_tokenizer, train_sentencepiece

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user stands who has a model directory called `model`."""
    root = tmp_path_factory.mktemp("readme")
    texts = [review["text"] for review in load_corpus("movie_reviews", split="validation")]
    train_sentencepiece(texts[:400], root / "tokenizer", vocab_size=512)
    tokenizer = load_tokenizer(root / "tokenizer")
    model = fmjax.build(
        {
            "model_type": "llama",
            "vocab_size": tokenizer.vocab_size,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
    )
    params = fmjax.init_params(model, jax.random.key(0))
    for name in ("model", "some/dir"):
        fmjax.save_pretrained(root / name, model, params, tokenizer=tokenizer)
    return root


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(block: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    exec(compile(block, "README.md", "exec"), {"ids": jax.numpy.ones((1, 4), int)})
    assert (directory / "out").is_dir()
