"""`fmjax embed`."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Embed:
    """Turn texts into vectors, one a text, for search and clustering.

    Attributes:
      model: Model directory: an encoder, or a decoder.
      adapter: Directory of an adapter that belongs to the model, for the methods that put virtual
        tokens before the text; others are folded into it already.
      input: .jsonl, .tsv, .csv or .txt (a text a line), .gz or not; or - for standard input.
      output: File to write: .npy holds float32 [texts, width]; .parquet the fields of the input
        and a column "embedding".
      text_column: Field that holds the text.
      pooling: Mean of the tokens' vectors, or that of the first (cls) or last token. Without it,
        what the model's own 1_Pooling says, else mean for encoders and last for decoders.
      keep_length: Leave the vectors as long as they are; otherwise their length is 1, and a dot
        product is the cosine. A sentence-transformers directory without Normalize leaves them too.
      batch_size: Texts in a batch, over all devices.
      max_length: Tokens of a text at most; longer ones are cut and counted. Without it, what a
        sentence-transformers directory says, else 256.
      mesh: Devices by axis, such as data=4. Without it all devices split the batch.
      dtype: Of the computation: auto is float32 on CPUs and bfloat16 on accelerators.
    """

    model: Path
    input: str
    output: Path
    adapter: Path | None = None
    text_column: str = "text"
    pooling: Literal["", "mean", "cls", "last"] = ""
    keep_length: bool = False
    batch_size: int = 32
    max_length: int | None = None
    mesh: str = ""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def run(self) -> None:
        from fmjax.recipes.tasks.vectors import write_vectors

        write_vectors(self)
