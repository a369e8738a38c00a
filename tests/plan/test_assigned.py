"""Memory from what TPUs' compiler prints, and processes that end there; without a compiler."""

import dataclasses
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from fmjax.core.errors import ConfigError, FmjaxError
from fmjax.plan import assigned
from fmjax.plan.assigned import Sizes
from fmjax.recipes.plan_apart import plan_apart
from fmjax.recipes.plan_cases import Case

TEXT = """BufferAssignment:
allocation 0: size 4, color 8, page 0, thread-local:
allocation 1: size 4096, page 0, thread-local:
allocation 2: size 100, page 0, parameter 2, shape |f32[5,5]| at ShapeIndex {}, maybe-live-out:
 value: <5585 param.103 @0> (size=100,offset=0): f32[5,5]{1,0}
allocation 3: size 60, page 0, parameter 0, shape |f32[15]| at ShapeIndex {}:
allocation 4: size 200, color 5, page 0, parameter 1, shape |f32[50]{0:S(5)}| at ShapeIndex {}:
allocation 5: size 512, page 0, constant:
allocation 6: size 8, page 0, output shape is |(f32[5,5], s32[])|, maybe-live-out:
allocation 7: size 999, color 1, page 0, preallocated-temp:
allocation 8: size 5000, page 0, preallocated-temp:
allocation 9: size 300, color 5, page 0, preallocated-temp:
"""
SIZES = Sizes(argument=160, temp=5000, output=108, alias=100, host=500)
CASE = Case("llama-7b", "v5e:4", 8, 256, override=("num_hidden_layers=2",))


def printed(directory: Path) -> None:
    for name, text in {
        "after_optimizations-buffer-assignment": TEXT,
        "after_optimizations": "HloModule a",
        "after_optimizations_after_buffer_assignment": "HloModule a",
    }.items():
        (directory / f"module_0000.jit_f.{name}.txt").write_text(text)


def test_allocations_add_up_to_what_the_program_takes() -> None:
    assert assigned.read(TEXT) == SIZES
    assert SIZES.total == 160 + 5000 + 108 - 100
    assert assigned.read("another format") is None


def test_nobody_waits_for_machine_code(tmp_path: Path) -> None:
    done = threading.Event()

    def compile_() -> None:
        printed(tmp_path)
        done.wait(60)

    assert assigned.before_codegen(compile_, tmp_path, 0.05) == (None, SIZES, "HloModule a")
    done.set()


def test_a_compiler_that_prints_nothing_is_waited_for(tmp_path: Path) -> None:
    program = SimpleNamespace()
    assert assigned.before_codegen(lambda: program, tmp_path, 0.05) == (program, None, "")


def test_what_the_compiler_raises_after_it_has_printed_counts(tmp_path: Path) -> None:
    def compile_() -> None:
        printed(tmp_path)
        raise RuntimeError("Used 17.0G of 15.75G hbm")

    with pytest.raises(RuntimeError, match="Used 17.0G"):
        assigned.before_codegen(compile_, tmp_path, 0.05)


def test_what_is_wrong_is_said_from_the_other_process() -> None:
    with pytest.raises(ConfigError, match=r"^--topology v5e:3: no slice of 3 chips"):
        plan_apart(dataclasses.replace(CASE, topology="v5e:3"))


def test_a_process_that_dies_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(FmjaxError, match="planned llama-7b on v5e:4 ended with exit code 1"):
        plan_apart(CASE)
