"""The arrows between rooms, and the packages that fmjax never imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "fmjax"

# room → the rooms that it may import (docs/design.md, "Rooms").
ALLOWED = {
    "core": set(),
    "nn": {"core", "quant"},
    "quant": {"core"},
    "models": {"core", "nn", "convert"},
    "convert": {"core", "quant"},
    "objectives": {"core", "nn"},
    "peft": {"core", "nn", "convert", "models", "parallel", "quant"},
    "parallel": {"core", "quant"},
    "data": {"core"},
    "train": {"core", "parallel"},
    "generate": {"core", "nn"},
    "evals": {"core", "data", "generate"},
    "plan": {"core"},
    "report": set(),
}
FORBIDDEN = {"torch", "transformers", "tensorflow", "peft", "bitsandbytes", "diffusers", "pickle"}


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_rooms_import_only_what_the_design_allows(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "fmjax" and len(parts) > 1 and (ROOT / parts[1]).is_dir():
                assert parts[1] in ALLOWED[room] | {room}, f"{path} imports {name}"


def test_families_do_not_import_each_other() -> None:
    families = {p.name for p in (ROOT / "models").iterdir() if (p / "model.py").exists()}
    assert families >= {"bert", "gpt2", "llama"}
    for family in families:
        for path in (ROOT / "models" / family).glob("*.py"):
            for name in imports(path):
                parts = name.split(".")
                if parts[:2] == ["fmjax", "models"] and len(parts) > 2:
                    assert parts[2] not in families - {family}, f"{path} imports {name}"


def test_no_file_imports_torch_or_tensorflow() -> None:
    for path in ROOT.rglob("*.py"):
        found = {name.split(".")[0] for name in imports(path)} & FORBIDDEN
        assert not found, f"{path} imports {found}"


def test_importing_everything_leaves_torch_and_tensorflow_out() -> None:
    modules = [
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        for path in sorted(ROOT.rglob("*.py"))
        if path.name not in ("__init__.py", "__main__.py")
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(sorted({'torch', 'transformers', 'tensorflow'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip().splitlines()[-1:] == ["[]"], result.stdout + result.stderr
