"""Under test the package checks the types and shapes of its calls."""

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from jaxtyping import Float
from torch import Tensor

from tests.typed import checked
from vae_book.divergences import gaussian_kl


@checked
def repeated(x: Float[Tensor, "n d"], times: int) -> Float[Tensor, "n d"]:
    return x.repeat(1, times)


def test_shapes_that_do_not_fit_each_other_are_refused_in_the_package():
    with pytest.raises(BeartypeCallHintParamViolation):
        gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize("given", [(torch.zeros(2, 3), 2.5), (torch.zeros(3), 2), ("x", 2)])
def test_an_argument_of_another_type_or_shape_is_refused(given):
    with pytest.raises(BeartypeCallHintParamViolation):
        repeated(*given)


def test_a_result_of_another_shape_is_refused():
    with pytest.raises(BeartypeCallHintReturnViolation):
        repeated(torch.zeros(2, 3), 2)


def test_a_letter_is_one_number_within_one_call_alone():
    for d in (3, 4):
        assert repeated(torch.zeros(2, d), 1).shape == (2, d)


@pytest.mark.usefixtures("shapes_unchecked")
def test_users_meet_the_messages_of_the_package():
    assert repeated(torch.zeros(2, 3), 2).shape == (2, 6)
    with pytest.raises(ValueError, match="log_var"):
        gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 4))
