import importlib.util
import io
import itertools
import json
import os
import signal

import jax
import numpy as np
import optax
import pytest
import toy_lm
from rich.console import Console

from fmjax.core.errors import CheckpointError, ConfigError, DataError
from fmjax.objectives import CausalLM
from fmjax.parallel import make_mesh
from fmjax.train import (
    JsonlLogger,
    TensorBoardLogger,
    adamw,
    fit,
    make_step,
    matmul_params,
    peak_flops,
    train_flops_per_token,
)
from fmjax.train.checkpoint import Checkpointer
from fmjax.train.meter import Meter
from fmjax.train.progress import Display, describe, has_bars


class Recorder:
    """A logger that keeps what it gets."""

    def __init__(self):
        self.lines, self.resumed, self.closed = [], None, False

    def resume(self, step):
        self.resumed = step

    def write(self, step, metrics):
        self.lines.append((step, metrics))

    def close(self):
        self.closed = True


def start(variables=None, **kwargs):
    step = make_step(toy_lm.apply, CausalLM(), adamw(1e-2), learning_rate=1e-2, **kwargs)
    return step, step.init(variables or {"params": toy_lm.params()}, jax.random.key(0))


def held_out():
    return [next(toy_lm.Batches(seed=9))]


def test_order_of_things():
    recorder = Recorder()
    outcome = fit(
        *start(),
        toy_lm.Batches(),
        steps=7,
        log_every=2,
        eval_batches=held_out,
        eval_every=3,
        loggers=[recorder],
        progress=False,
    )
    names = [(step, "eval_loss" in m) for step, m in recorder.lines]
    assert names == [
        (2, False),
        (3, True),
        (4, False),
        (6, False),
        (6, True),
        (7, False),
        (7, True),
    ]
    assert recorder.resumed == 0 and recorder.closed
    assert outcome.step == 7 and not outcome.stopped and int(outcome.state.step) == 7
    logged = recorder.lines[0][1]
    assert {"loss", "grad_norm", "tokens", "learning_rate", "skipped"} <= set(logged)
    assert {"loss", "eval_loss", "eval_perplexity", "eval_accuracy"} <= set(outcome.metrics)
    assert all(isinstance(value, float) for value in logged.values())


def test_logged_losses_are_the_steps_own():
    recorder = Recorder()
    fit(*start(), toy_lm.Batches(), steps=3, log_every=1, loggers=[recorder], progress=False)
    step, state = start()
    for (_, metrics), batch in zip(recorder.lines, toy_lm.Batches(), strict=False):
        state, expected = step(state, batch)
        assert metrics["loss"] == float(expected["loss"])


def test_metrics_are_read_one_step_late(monkeypatch):
    """When the metrics of step n are fetched, step n + 1 has been dispatched."""
    events = []
    step, state = start()
    get = jax.device_get

    def spy(x):
        if isinstance(x, dict) and "grad_norm" in x:
            events.append("read")
        return get(x)

    class Batches(toy_lm.Batches):
        def __next__(self):
            events.append("batch")
            return super().__next__()

    monkeypatch.setattr(jax, "device_get", spy)
    fit(step, state, Batches(), steps=4, progress=False)
    assert events == ["batch", "batch", "read", "batch", "read", "batch", "read", "read"]


def test_ends_with_the_data(tmp_path):
    few = itertools.islice(toy_lm.Batches(), 3)
    recorder = Recorder()
    outcome = fit(
        *start(), few, steps=10, out_dir=tmp_path, eval_batches=held_out, loggers=[recorder],
        progress=False,
    )  # fmt: skip
    assert outcome.step == 3 and not outcome.stopped and "eval_loss" in outcome.metrics
    assert [step for step, _ in recorder.lines] == [3, 3]
    assert (tmp_path / "checkpoints" / "3").exists()
    with pytest.raises(DataError, match="no batch"):
        fit(*start(), iter([]), steps=10, progress=False)


@pytest.mark.parametrize("mesh", [None, (2, 2, 2)])
def test_default_outputs_and_resumption_in_one_process(tmp_path, mesh):
    mesh = None if mesh is None else make_mesh(*mesh)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    kwargs = {"log_every": 1, "save_every": 2, "progress": False}
    a = fit(*start(mesh=mesh), toy_lm.Batches(), steps=6, out_dir=whole, **kwargs)
    fit(*start(mesh=mesh), toy_lm.Batches(), steps=3, out_dir=parts, **kwargs)
    b = fit(*start(mesh=mesh), toy_lm.Batches(), steps=6, out_dir=parts, **kwargs)
    jax.tree.map(np.testing.assert_array_equal, a.state.variables, b.state.variables)

    def losses(path):
        lines = (path / "metrics.jsonl").read_text().splitlines()
        return [(line["step"], line["loss"]) for line in map(json.loads, lines)]

    assert losses(whole) == losses(parts)
    assert [step for step, _ in losses(whole)] == [1, 2, 3, 4, 5, 6]
    assert list((whole / "tensorboard").glob("events.out.tfevents.*"))
    # A finished run that is started again does nothing.
    c = fit(*start(mesh=mesh), toy_lm.Batches(), steps=6, out_dir=parts, **kwargs)
    assert c.step == 6 and losses(whole) == losses(parts)


def test_an_adapter_run_resumes_on_the_callers_base(tmp_path):
    def run(steps, seed=0):
        variables = {"params": toy_lm.params(seed), "adapter": toy_lm.adapter()}
        return fit(
            *start(variables), toy_lm.Batches(), steps=steps, out_dir=tmp_path, progress=False
        )

    run(2)
    outcome = run(4)
    jax.tree.map(np.testing.assert_array_equal, outcome.state.variables["params"], toy_lm.params())
    with pytest.raises(CheckpointError, match="other base weights"):
        run(6, seed=1)


def test_data_that_cannot_resume(tmp_path):
    fit(*start(), toy_lm.Batches(), steps=1, out_dir=tmp_path, progress=False)
    with pytest.raises(DataError, match="no set_state"):
        fit(*start(), iter(list(held_out())), steps=2, out_dir=tmp_path, progress=False)
    saver = Checkpointer(tmp_path / "other")
    plain = itertools.islice(toy_lm.Batches(), 5)
    fit(*start(), plain, steps=1, checkpointer=saver, progress=False)
    with pytest.raises(CheckpointError, match="holds no data position"):
        fit(*start(), toy_lm.Batches(), steps=2, checkpointer=saver, progress=False)
    saver.close()


def test_best_checkpoint_by_an_evaluation(tmp_path):
    saver = Checkpointer(tmp_path, keep=1, best=("eval_loss", "min"))
    fit(
        *start(), toy_lm.Batches(), steps=6, checkpointer=saver, save_every=2, eval_every=2,
        eval_batches=held_out, progress=False,
    )  # fmt: skip
    losses = {n: saver.metrics(n)["eval_loss"] for n in saver.steps()}
    assert 6 in losses and min(losses, key=losses.get) == saver.best_step()
    saver.close()


def test_an_evaluation_that_fails_loses_no_training(tmp_path):
    """The state is saved first, and the next run has the evaluation before it."""
    seen = []

    def broken(state):
        raise DataError("no picture can be read")

    def mended(state):
        seen.append(int(state.step))
        return {"loss": 1.0}

    for evaluate in (broken, broken):
        step, state = start()
        with pytest.raises(DataError, match="no picture"):
            fit(step, state, toy_lm.Batches(), steps=6, out_dir=tmp_path, evaluate=evaluate,
                eval_every=4, log_every=1)  # fmt: skip
        assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["4"]
    step, state = start()
    fit(step, state, toy_lm.Batches(), steps=6, out_dir=tmp_path, evaluate=mended, eval_every=4,
        log_every=1)  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert seen == [4, 6] and [x["step"] for x in lines if "loss" in x] == [1, 2, 3, 4, 5, 6]


def test_an_evaluation_without_figures_is_no_line():
    recorder, (step, state) = Recorder(), start()
    fit(step, state, toy_lm.Batches(), steps=2, loggers=[recorder], evaluate=lambda state: {},
        eval_every=1, log_every=1)  # fmt: skip
    assert [number for number, _ in recorder.lines] == [1, 2]


def test_signals_are_handed_back():
    before = signal.getsignal(signal.SIGTERM)

    class Batches(toy_lm.Batches):
        def __next__(self):
            if self.k == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__next__()

    outcome = fit(*start(), Batches(), steps=9, progress=False)
    assert outcome.stopped and outcome.step == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_argument_errors():
    for name in ("save_every", "eval_every", "log_every", "compare_hosts_every", "hang_seconds"):
        with pytest.raises(ConfigError, match=f"{name} is 0"):
            fit(*start(), toy_lm.Batches(), steps=1, progress=False, **{name: 0})


def test_jsonl_drops_a_future_that_did_not_happen(tmp_path):
    path = tmp_path / "log" / "metrics.jsonl"
    logger = JsonlLogger(path)
    logger.resume(0)
    for step in (1, 2, 3):
        logger.write(step, {"loss": 1.5 if step < 3 else float("nan")})
    logger.close()
    assert json.loads(path.read_text().splitlines()[2]) == {"step": 3, "loss": None}
    path.write_text(path.read_text() + '{"step": 2, "lo')
    logger = JsonlLogger(path)
    logger.resume(2)
    logger.write(3, {"loss": 9.0})
    logger.close()
    assert [json.loads(x)["loss"] for x in path.read_text().splitlines()] == [1.5, 1.5, 9.0]


def test_tensorboard_has_the_scalars(tmp_path):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  (the format's other half)

    logger = TensorBoardLogger(tmp_path)
    logger.resume(0)
    logger.write(3, {"loss": 2.5})
    logger.close()
    (file,) = tmp_path.glob("events.*")
    data, events = file.read_bytes(), []
    while data:  # length, its CRC, the record, its CRC
        size = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    values = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert values == [(3, "loss", 2.5)]


def test_plain_lines_where_there_is_no_terminal():
    out = io.StringIO()
    with Display(20, console=Console(file=out)) as display:
        display.step(10, {"loss": 3.25, "tokens_per_second": 12345.0, "seconds_left": 3723.0})
        display.message("step 10: evaluation loss 3.0 [not markup]")
    assert out.getvalue() == (
        "step 10/20 · loss 3.2500 · 12.3k tokens/s · 1:02:03 left\n"
        "step 10: evaluation loss 3.0 [not markup]\n"
    )


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_has_bars_where_they_can_be_drawn(widgets, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: (object() if widgets else None) if name == "ipywidgets" else find(name),
    )
    assert has_bars(Console(force_jupyter=True)) == widgets


def test_live_bar_on_a_terminal():
    out = io.StringIO()
    with Display(20, console=Console(file=out, force_terminal=True, width=120)) as display:
        display.step(20, {"loss": 3.25, "mfu": 0.412, "skipped": 2.0})
    assert "loss 3.2500 · MFU 41.2% · 2 skipped" in out.getvalue()
    silent = io.StringIO()
    with Display(20, enabled=False, console=Console(file=silent)) as display:
        display.step(1, {"loss": 1.0})
        display.message("nothing")
    assert silent.getvalue() == ""


def test_description_shows_what_is_known():
    assert describe(1, 2, {}) == "step 1/2"
    line = describe(1, 2, {"learning_rate": 3e-4, "seconds_left": float("inf")})
    assert line == "step 1/2 · lr 3.00e-04 · ? left"


def test_meter_leaves_out_compilation_and_pauses(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    device = type("Device", (), {"device_kind": "TPU v5 lite"})()
    meter = Meter(10, 197e12, [device, device])
    assert meter.report(0) == {}
    now[0] = 100.0  # The first step compiled for 100 s.
    meter.count(1, 50.0)
    assert meter.report(1) == {}
    for number in (2, 3):
        now[0] += 2.0
        meter.count(number, 50.0)
    with meter.pause():
        now[0] += 1000.0
    rates = meter.report(3)
    assert rates == {"tokens_per_second": 25.0, "seconds_left": 14.0, "mfu": 0.25}
    cpu = type("Device", (), {"device_kind": "cpu"})()
    assert Meter(10, 1.0, [cpu])._peak is None


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("TPU v2", 23),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla T4", 65),
        ("Tesla V100-SXM2-16GB", 125),
        ("cpu", None),
    ],
)
def test_peaks(kind, teraflops):
    expected = None if teraflops is None else teraflops * 1e12
    assert peak_flops(kind) == expected


def test_model_flops():
    tied = {
        "wte": {"embedding": np.zeros((10, 4))},
        "wpe": {"embedding": np.zeros((6, 4))},
        "h": {"attn": {"kernel": np.zeros((4, 4)), "bias": np.zeros(4)}},
    }
    assert matmul_params(tied) == 16 + 4 + 40
    untied = tied | {"lm_head": {"kernel": np.zeros((4, 10))}}
    assert matmul_params(untied) == 16 + 4 + 40
    moe = untied | {"mlp": {"experts": {"up_proj": {"weight": np.zeros((4, 4, 6))}}}}
    assert matmul_params(moe, expert_share=2 / 4) == 16 + 4 + 40 + 2 * 4 * 6
    shape = {"layers": 2, "attention_width": 4, "sequence_length": 8}
    assert train_flops_per_token(100, **shape) == 600 + 6 * 2 * 4 * 8
    assert train_flops_per_token(100, **shape, causal=False) == 600 + 12 * 2 * 4 * 8
    assert train_flops_per_token(1, frozen=100, **shape) == 6 + 400 + 6 * 2 * 4 * 8


def test_sgd_without_learning_rate_has_none_to_report():
    step = make_step(toy_lm.apply, CausalLM(), optax.sgd(0.1))
    state = step.init({"params": toy_lm.params()}, jax.random.key(0))
    outcome = fit(step, state, toy_lm.Batches(), steps=1, progress=False)
    assert "learning_rate" not in outcome.metrics
