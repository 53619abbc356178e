"""The data type of matrix products in mixed precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def set_autocast(device_type: str, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return a context in which matrix products have a data type; None: that of their operands.

    Where this changes nothing, the context does nothing: torch.compile does not cache a graph with torch.autocast.
    """
    if dtype is None and not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, dtype, enabled=dtype is not None)
