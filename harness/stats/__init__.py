"""Statistics of raw samples as pure functions: intervals, two-sample comparisons and change points."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
