"""Keys and values that step-by-step decoding keeps.

B batch, b inputs of a part, H heads, S encoder length, R decoder rows, T decoded length, K head width
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

KeysValues = tuple[Tensor, Tensor]


@dataclass
class Encoded:
    """Keys and values [b, H, S, K] of the encoder's output for b inputs of similar length.

    Attributes:
        bias: 0 or MASKED, [b, 1, 1, S]; None if nothing is padded.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None


@dataclass
class LayerCache:
    """Cached keys and values of one decoder layer, each [B, H, length, K].

    Attributes:
        encoded: of the encoder's output; or parts, for consecutive rows, that are padded to different lengths.
    """

    own: KeysValues | None = None
    encoded: KeysValues | list[Encoded] | None = None


@dataclass
class DecoderCache:
    """State of step-by-step decoding: pass the same, initially empty cache to each call of `T5.decode`.

    Attributes:
        ids: the decoder's inputs so far, for a model that reads all of them again.
        real_RT: True at cached positions that belong to their row, bool [R, T]; None if all do.
    """

    layers: dict[int, LayerCache] = field(default_factory=dict)
    ids: Tensor | None = None
    real_RT: Tensor | None = None

    def layer(self, index: int) -> LayerCache:
        return self.layers.setdefault(index, LayerCache())

    def select(self, rows_R: Tensor) -> None:
        """Continue from these decoder rows, each of which belongs to the same input as the row that it replaces."""
        for layer in self.layers.values():
            if layer.own is not None:
                keys, values = layer.own
                layer.own = keys[rows_R], values[rows_R]
        if self.ids is not None:
            self.ids = self.ids[rows_R]
