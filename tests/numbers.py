"""What several tests need: numbers in double precision, noise, refusals, repeatable examples."""

import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from vae_book.device import seeded

repeatable = settings(
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def double(values):
    """Numbers, or fractions, as a tensor."""
    return torch.from_numpy(np.array(values, dtype=np.float64))


def normals(*shape, seed=0):
    """Draws from N(0, 1) in double precision."""
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def refused(message):
    """What raises a ValueError that starts with this."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}")
