"""The settings of runs, as frozen dataclasses that the command line shows and experiments compose.

The text below each field is the field's `--help`. Importing this module imports no JAX.
"""

import dataclasses
from typing import Literal, get_args

Schedule = Literal["auto", "cosine", "wsd", "linear", "constant"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Remat = Literal["none", "full", "dots", "minimal", "attention", "qkv", "offload"]
Attention = Literal["auto", "xla", "blockwise", "splash", "cudnn"]
Offload = Literal["none", "optimizer"]
Method = Literal["full", "lora", "rslora", "dora", "qlora", "prefix", "prompt", "ptuning", "ia3"]


@dataclasses.dataclass(frozen=True)
class Data:
    """The text, and how it becomes batches.

    Attributes:
      data: Text to train on, one or several of: a corpus that ships with fmjax (kjv,
        movie_reviews); a .txt or .jsonl file, .gz or not, or a quoted glob of them; tfds:NAME;
        the directory of a prepared TFDS data set.
      weights: Share of rows from each of --data, in order; any scale. Without it all documents
        count alike.
      eval_data: Held-out text, named like --data. Without it: the validation split of corpora and
        TFDS data sets, and --eval-fraction of the documents of files.
      eval_fraction: Share of documents held out from files, 0 to 1; always the same documents.
      text_field: Field of JSON lines and TFDS examples that holds the text.
      split_by: What is one document in a .txt file: text between blank lines, a line, or the
        file.
      batch_size: Rows in a batch, over all devices and accumulated parts together.
      sequence_length: Tokens in a row; documents are packed into rows and do not see each other.
      streaming: Tokenise training text as it is read, where it is too much for the memory.
    """

    data: tuple[str, ...]
    weights: tuple[float, ...] = ()
    eval_data: tuple[str, ...] = ()
    eval_fraction: float = 0.05
    text_field: str = "text"
    split_by: Literal["document", "line", "file"] = "document"
    batch_size: int = 16
    sequence_length: int = 512
    streaming: bool = False


@dataclasses.dataclass(frozen=True)
class Masking:
    """The gaps that an encoder learns to fill. Of those tokens 80 % are masked, 10 % random.

    Attributes:
      mask_probability: Share of the tokens that are hidden and predicted; encoders only.
      whole_words: Hide whole words: all tokens of a word or none; encoders only.
    """

    mask_probability: float = 0.15
    whole_words: bool = False


@dataclasses.dataclass(frozen=True)
class Optimization:
    """AdamW and its schedule. What is not given is as GPT's and LLaMA's, or as BERT's for encoders.

    Attributes:
      steps: Updates in all.
      learning_rate: Peak learning rate.
      schedule: After the warm-up: cosine to a tenth of the peak, wsd (stable, then linear to 0
        over the last tenth), linear to 0, or constant. auto: cosine; linear for encoders.
      warmup: Updates of linear warm-up; 0 unless given, a hundredth of all for encoders.
      weight_decay: Decoupled decay of matrices and embeddings; biases and norms have none. 0.1
        unless given, 0.01 for encoders.
      beta2: Decay of AdamW's second moment; 0.95 unless given, 0.999 for encoders.
      epsilon: Floor of AdamW's denominator; 1e-8 unless given, 1e-6 for encoders.
      clip_norm: Bound on the global norm of the gradient; 0 for none.
      accumulate: Parts that a batch is cut into to save memory; the update stays the same.
      z_loss: Weight of the squared log-partition, which keeps logits small; 1e-4 for long bf16
        runs.
      seed: Of initialisation, data order and dropout.
    """

    steps: int = 1000
    learning_rate: float = 3e-4
    schedule: Schedule = "auto"
    warmup: int | None = None
    weight_decay: float | None = None
    beta2: float | None = None
    epsilon: float | None = None
    clip_norm: float = 1.0
    accumulate: int = 1
    z_loss: float = 0.0
    seed: int = 0

    def completed(self, masked: bool) -> "Optimization":
        """The same with every figure that was not given.

        Args:
          masked: BERT's figures (arXiv:1810.04805, appendix A.2) rather than LLaMA's.
        """
        figures = {
            "schedule": "linear" if masked else "cosine",
            "warmup": self.steps // 100 if masked else 0,
            "weight_decay": 0.01 if masked else 0.1,
            "beta2": 0.999 if masked else 0.95,
            "epsilon": 1e-6 if masked else 1e-8,
        }
        missing = {name for name in figures if getattr(self, name) in (None, "auto")}
        return dataclasses.replace(self, **{name: figures[name] for name in missing})


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """What is trained of a model, or beside it.

    Attributes:
      method: full trains all weights. The others train little, beside frozen weights: lora, small
        low-rank matrices; rslora, the same with a scale that suits high ranks; dora, with the
        length of each output's weights apart; qlora, lora on weights of 4 bits; prefix, keys and
        values before the text in every layer; prompt, vectors before the text; ptuning, the same
        made by a small network; ia3, factors of keys, values and feed-forward layers.
      rank: Rank of the low-rank matrices.
      alpha: Their scale is alpha / rank (rslora: alpha / √rank).
      targets: Layers that get them, or ia3's factors: names such as q_proj v_proj, or all-linear.
        Without it, all linear layers of a language model, and the query and value projections for
        a task; for ia3 the layers that PEFT takes.
      lora_dropout: Dropout on the input of the low-rank matrices, 0 to 1.
      bias: Biases that are trained beside the low-rank matrices.
      lora_plus: Learning rate of the second low-rank matrix, B, over that of the first; 16 is the
        usual start of LoRA+.
      virtual_tokens: Positions that prefix, prompt and ptuning put before the text.
      projection: Train the prefix through a small network, which is steadier.
      prompt_text: Text whose vectors a prompt starts from; without it, random ones.
      quantize: Frozen weights in 4 bits (nf4) or 8 (int8), with any method but full. qlora takes
        nf4 unless told otherwise.
      adapter_dtype: Of what is trained beside frozen weights. auto is float32, and for qlora the
        precision of the computation, as its authors have it.
      moments: Of AdamW: float32, or bfloat16 or int8 to save memory.
      ema: Decay of an average of the trained weights, which a task is measured with and which is
        what is saved; 0 for none, 0.999 is usual.
      freeze: Regular expressions of parameter paths that method full leaves as they are, such as
        embed.
      freeze_layers: Number of layers from the bottom that method full leaves as they are.
    """

    method: Method = "full"
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    lora_dropout: float = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    lora_plus: float = 1.0
    virtual_tokens: int = 20
    projection: bool = False
    prompt_text: str = ""
    quantize: Literal["none", "nf4", "int8"] = "none"
    adapter_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    moments: Literal["float32", "bfloat16", "int8"] = "float32"
    ema: float = 0.0
    freeze: tuple[str, ...] = ()
    freeze_layers: int = 0

    @property
    def precision(self) -> str:
        """Of the frozen weights: "none" (as the computation), "nf4" or "int8"."""
        return "nf4" if self.method == "qlora" and self.quantize == "none" else self.quantize

    def trained_dtype(self, computation: str) -> str:
        """Of the adapter, for a computation in this dtype."""
        if self.adapter_dtype != "auto":
            return self.adapter_dtype
        return computation if self.method == "qlora" else "float32"

    @property
    def positions(self) -> int:
        """That the method takes away from the text."""
        return self.virtual_tokens if self.method in ("prefix", "prompt", "ptuning") else 0

    def check(self) -> None:
        """Refuses settings of one method with another.

        Raises:
          ConfigError: names the flag and the methods that it belongs to.
        """
        from fmjax.core.errors import ConfigError

        low_rank = ("lora", "rslora", "dora", "qlora")
        fitting = {
            "bias": low_rank,
            "lora_plus": low_rank,
            "lora_dropout": low_rank,
            "targets": (*low_rank, "ia3"),
            "projection": ("prefix",),
            "prompt_text": ("prompt",),
            "adapter_dtype": tuple(m for m in get_args(Method) if m != "full"),
            "freeze": ("full",),
            "freeze_layers": ("full",),
        }
        for field in dataclasses.fields(self):
            methods = fitting.get(field.name, (self.method,))
            if getattr(self, field.name) != field.default and self.method not in methods:
                raise ConfigError(
                    f"--{field.name.replace('_', '-')} does not go with --method {self.method}; "
                    f"it belongs to {', '.join(methods)}"
                )
        if self.method == "full" and self.quantize != "none":
            raise ConfigError(
                f"--quantize {self.quantize}: weights of few bits cannot be trained; choose a "
                "method that leaves them frozen, such as --method qlora"
            )
        if not 0 <= self.ema < 1:
            raise ConfigError(f"--ema {self.ema} must lie in 0 to 1, as 0.999")


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Where and how the maths runs.

    Attributes:
      mesh: Devices by axis, such as data=2,fsdp=4,tensor=2; one may be -1 (what is left). Axes are
        stage, data, fsdp, tensor, context and expert. Without it the mesh and its rules are chosen
        from the sizes of the model and of the devices.
      rules: What lies where on --mesh: a ready list (ddp, zero1, fsdp, tensor, fsdp_tensor,
        sequence, expert) and pairs in front of it, such as fsdp,mlp=tensor,embed=none. Without it
        fsdp_tensor, which serves every mesh.
      dtype: Of the computation: auto is float32 on CPUs and bfloat16 on accelerators. Trained
        weights and optimizer state are float32, but for what --adapter-dtype and --moments say.
      remat: What the backward pass recomputes to save memory: nothing, whole layers (with
        offload their inputs wait in the host's memory), all but matmuls (dots), little (minimal),
        the MLP (attention), or all but queries, keys and values (qkv).
      offload: optimizer keeps the optimizer's state in the host's memory between updates, where the
        devices have pinned host memory (TPUs, GPUs); that takes the time of the copies.
      attention: How attention is computed: xla holds all scores, blockwise a block of them,
        splash is a kernel for TPUs and cudnn one for NVIDIA GPUs. auto takes what fits.
      matmul: int8 multiplies in 8-bit integers where layers are dense, which accelerators do up to
        twice as fast; an approximation. Needs qwix: pip install 'fmjax[int8]'.
      microbatches: Parts of a batch that pass through the stages of a --mesh with a stage axis, one
        after the other: a multiple of its size, which is the default. More make a shorter bubble.
      coordinator: HOST:PORT of process 0, where a run has several processes, of which each is
        started with the same command and its own --process. TPU pods, SLURM and the usual
        launchers need none of the three, see docs/launch.md.
      processes: How many processes make up the run; 1 ignores what the environment says.
      process: Which of them this is, from 0.
      profile: Steps to trace, such as 10:15, into OUT/profile, for TensorBoard's profile plugin or
        Perfetto; with the memory of the devices after them.
    """

    mesh: str = ""
    rules: str = ""
    dtype: DType = "auto"
    remat: Remat = "none"
    offload: Offload = "none"
    attention: Attention = "auto"
    matmul: Literal["default", "int8"] = "default"
    microbatches: int | None = None
    coordinator: str = ""
    processes: int | None = None
    process: int | None = None
    profile: str = ""

    @property
    def offloaded(self) -> str | None:
        """For `fmjax.train.make_step`."""
        return None if self.offload == "none" else self.offload


@dataclasses.dataclass(frozen=True)
class Cadence:
    """How often a run evaluates and saves, in steps.

    Attributes:
      eval_every: Steps between evaluations on the held-out text; 0 for none.
      eval_batches: Batches of an evaluation at most.
      checkpoint_every: Steps between checkpoints. One is always written at the end and on
        SIGTERM.
      keep: Newest checkpoints that are kept.
      log_every: Steps between lines of the log.
      tensorboard: Also write TensorBoard event files.
    """

    eval_every: int = 100
    eval_batches: int = 20
    checkpoint_every: int = 200
    keep: int = 2
    log_every: int = 10
    tensorboard: bool = False
