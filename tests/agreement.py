"""How a test compares an equation's code with an independent route.

A test that checks an equation of the book says so, with its route and its tolerance:

    @pytest.mark.equation("eq-kl", route="scipy.integrate.quad", rel=1e-9)
    def test_the_divergence_is_the_integral(agree):
        agree(ours, by_quadrature)

The index of equations prints what the mark says, and `agree` applies it: what is printed is what
was tested.
"""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from vae_book.monte_carlo import Estimate


@dataclass
class Agreement:
    """Asserts that numbers agree within one of three tolerances.

    Attributes:
        route: the independent route, in a few words.
        rel: relative tolerance, of the larger of the two numbers.
        abs: absolute tolerance, added to the relative one. Both zero means exactly.
        standard_errors: how many standard errors an `Estimate` may be off.
    """

    route: str
    rel: float = 0.0
    abs: float = 0.0
    standard_errors: float = 0.0
    compared: int = 0

    def __call__(self, *values: object) -> None:
        """Assert that each value agrees with the next."""
        assert len(values) > 1
        for one, other in pairwise(values):
            self._compare(one, other)

    def _compare(self, one: object, other: object) -> None:
        self.compared += 1
        slack = 0.0
        if isinstance(one, Estimate):
            assert self.standard_errors, "an Estimate needs the tolerance standard_errors"
            error = _numbers(one.standard_error)
            assert error.isfinite().all(), f"expected finite standard errors, got {error}"
            slack = self.standard_errors * error
            one = one.value
        one, other = _numbers(one), _numbers(other)
        assert one.numel() > 0, f"expected numbers to compare, got none: shape {tuple(one.shape)}"
        assert one.shape == other.shape
        assert one.isfinite().all()
        assert other.isfinite().all()
        slack = slack + self.abs + self.rel * torch.maximum(one.abs(), other.abs())
        off = (one - other).abs()
        assert (off <= slack).all(), f"off by {off.max().item():.3g}: {one} against {other}"


def _numbers(value: object) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().double()
    return torch.as_tensor(value, dtype=torch.float64)  # plain numbers would become float32


@pytest.fixture
def agree(request):
    """Compare two numbers within the tolerance that the test's ``equation`` mark states."""
    agreement = Agreement(**request.node.get_closest_marker("equation").kwargs)
    yield agreement
    assert agreement.compared, "a test of an equation has to call agree"
