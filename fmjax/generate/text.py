"""Tokens to text while they arrive: no broken characters, and exact cuts at stop strings."""

from collections.abc import Iterable, Sequence
from typing import Protocol

_BROKEN = "\ufffd"  # what decoders write for bytes that are not (yet) a character


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`."""


class TextStream:
    """The text that follows a prompt, piece by piece.

    A token's text depends on the tokens before it (spaces, characters of several bytes), so each
    token is decoded together with what came before it, the prompt at first. What may still change
    is held back: an unfinished character, and the beginning of a stop string.

    Args:
      tokenizer: decodes ids, special tokens left out.
      prompt: the ids before the text.
      stop: strings that end the text; they are not part of it.

    Attributes:
      text: given out so far.
      stopped: a stop string was met; later tokens are ignored.
    """

    def __init__(self, tokenizer: Decoder, prompt: Sequence[int] = (), stop: Iterable[str] = ()):
        self.text, self.stopped = "", False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._held = ""  # decoded, but may be the beginning of a stop string
        # A window over the ids, and how much of the window's text is already known. It begins
        # where the text was whole, so that it never cuts a character.
        self._ids = [int(i) for i in prompt]
        whole = self._decode()
        self._known = len(whole.rstrip(_BROKEN))
        self._boundary = len(self._ids) if self._known == len(whole) else 0

    def push(self, ids: Sequence[int]) -> str:
        """The text that these next tokens settle."""
        return self._advance(ids, last=False)

    def flush(self) -> str:
        """The text that was held back, once no token follows."""
        return self._advance((), last=True)

    def _advance(self, ids: Sequence[int], last: bool) -> str:
        if self.stopped:
            return ""
        self._ids += [int(i) for i in ids]
        self._held += self._new_text(last)
        end = min((i for s in self._stop if (i := self._held.find(s)) >= 0), default=-1)
        self.stopped = end >= 0
        if end < 0:
            end = len(self._held) - (0 if last else self._possible_stop())
        piece, self._held = self._held[:end], self._held[end:]
        self.text += piece
        return piece

    def _new_text(self, last: bool) -> str:
        text = self._decode()
        settled = text if last else text.rstrip(_BROKEN)
        new = settled[self._known :]
        if new and settled == text:
            self._ids = self._ids[self._boundary :]
            self._boundary = len(self._ids)
            self._known = len(self._decode())
        else:
            self._known = max(self._known, len(settled))
        return new

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        for n in range(min(longest, len(self._held)), 0, -1):
            if any(s.startswith(self._held[-n:]) for s in self._stop):
                return n
        return 0

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=True)
