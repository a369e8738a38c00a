"""The commands of docs/launch.md are ones that fmjax understands."""

import re
import shlex
from pathlib import Path

import pytest
import tyro

from fmjax.cli.console import MARKERS
from fmjax.recipes import Pretrain
from fmjax.recipes.measure import check_length
from fmjax.recipes.models import architecture

TEXT = (Path(__file__).parents[1] / "docs" / "launch.md").read_text(encoding="utf-8")
SHELL = re.findall(r"fmjax train (--model(?:[^\n]*\\\n)*[^\n]*)", TEXT)
(YAML,) = re.findall(r"command: \[fmjax, train, (.*?)\]", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("line", SHELL)
def test_shell(line):
    arguments = shlex.split(line.replace("\\\n", " ").rstrip('"').replace('"', ""))
    check(tyro.cli(Pretrain, args=arguments, config=MARKERS))


def test_yaml():
    arguments = [word.strip().strip('"') for word in YAML.replace("\n", " ").split(",")]
    arguments = [word for word in arguments if word]
    # The comma of the mesh is no separator.
    joined = arguments.index("data=1")
    arguments[joined : joined + 2] = [",".join(word.strip('"') for word in arguments[joined:][:2])]
    check(tyro.cli(Pretrain, args=arguments, config=MARKERS))


def check(options):
    assert options.model == "llama-7b" and options.hardware.mesh == "data=1,fsdp=-1"
    assert options.data.batch_size == 64 and options.hardware.remat == "full"
    assert str(options.out).endswith("/run")
    check_length(architecture(options.model, options.override), options.data.sequence_length)


def test_there_are_recipes():
    assert len(SHELL) == 2
