"""Profiles of runs; `test_clock.py` has them run in a process of their own."""

import jax
import pytest
import toy_lm

from fmjax.objectives import CausalLM
from fmjax.train import Profile, adamw, fit, make_step


def run_with(profile, steps=6, **options):
    step = make_step(toy_lm.apply, CausalLM(), adamw(1e-2))
    state = step.init({"params": toy_lm.params()}, jax.random.key(0))
    return fit(step, state, toy_lm.Batches(), steps=steps, profile=profile, **options)


# Of jaxlib's reader on Python 3.12; as an error it would abort the process.
@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__:DeprecationWarning")
def test_a_profile_of_a_range_of_steps(tmp_path, capsys):
    profile = Profile.of("3:4", tmp_path / "profile")
    run_with(profile)
    assert f"profile of steps 3 to 4: {tmp_path}" in capsys.readouterr().err
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(trace))
    numbers = {
        value
        for plane in data.planes
        for line in plane.lines
        for event in line.events
        for name, value in event.stats
        if event.name == "train" and name == "step_num"
    }
    assert numbers == {3, 4}
    assert (tmp_path / "profile" / "memory.prof").stat().st_size > 0


def test_a_profile_beyond_the_end_is_written_and_one_before_the_start_is_not(tmp_path):
    run_with(Profile(tmp_path / "a", 5, 50), progress=False)
    assert list((tmp_path / "a").rglob("*.xplane.pb"))
    run_with(None, out_dir=tmp_path / "run", progress=False)
    run_with(Profile(tmp_path / "b", 2, 3), 8, out_dir=tmp_path / "run", progress=False)
    assert not (tmp_path / "b").exists()
