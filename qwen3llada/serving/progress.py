"""What of an answer is settled while it is denoised: a run of decided tokens from its start, and the text of them.

A settled token never changes, so text that follows no mask can be sent at once, in order. Where a committed token may
still be revised, it counts as a mask until its block is finished.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

UNFINISHED = "\ufffd"  # what a tokenizer makes of the first bytes of a character

Finish = Literal["stop", "length"]


@dataclass
class Progress:
    """One answer as its canvas fills. `update` after each step; `text` grows and is never taken back."""

    tokenizer: Any
    mask_token_id: int
    ends: frozenset[int]
    stops: tuple[str, ...] = ()
    strips: bool = True  # white space around the text, as in a chat; else the text is as it is
    tokens: list[int] = field(default_factory=list)  # settled, up to and including an EOS
    log_probs: list[float] = field(default_factory=list)
    text: str = ""  # settled, and not the beginning of a stop string
    finish: Finish | None = None

    def update(self, canvas: Sequence[int], log_probs: Sequence[float]) -> str:
        """The text that is new, from the answer's tokens and the log probability that each had when committed."""
        if self.finish:
            return ""
        settled = len(self.tokens)
        while settled < len(canvas) and canvas[settled] != self.mask_token_id:
            settled += 1
            if canvas[settled - 1] in self.ends:
                self.finish = "stop"
                break
        if settled == len(canvas) and self.finish is None:
            self.finish = "length"
        if settled == len(self.tokens):
            return ""
        self.tokens, self.log_probs = list(canvas[:settled]), list(log_probs[:settled])
        text = self._settled_text()
        new = text[len(self.text) :]
        self.text += new
        return new

    def _settled_text(self) -> str:
        """The text of the settled tokens up to a stop string, without an end that later tokens may change."""
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        text = text.lstrip() if self.strips else text
        if self.finish is None:
            text = text.rstrip(UNFINISHED)  # the next token may complete a character
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.finish = "stop"
            return text[: min(found)]
        whole = text.rstrip() if self.strips else text
        if self.finish:
            return whole
        begun = max(
            (n for stop in self.stops for n in range(1, min(len(stop), len(text)) + 1) if text.endswith(stop[:n])),
            default=0,
        )
        return text[: min(len(whole), len(text) - begun)]
