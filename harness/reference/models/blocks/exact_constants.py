"""Constants of a model that no change of its type can round."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Table(nn.Module):
    """Constants in double precision, whatever types the module has been through.

    A floating-point buffer that was single once stays rounded in double; the bits of doubles, held as integers, do not.
    """

    bits: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("bits", values.double().contiguous().view(torch.int64), persistent=False)

    def forward(self, dtype: torch.dtype) -> Tensor:
        """The constants in this type, in their own shape."""
        return self.bits.view(torch.float64).to(dtype)
