"""Each fault of the clinic is caught by the test named here, and leaves the package whole."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vae_book import bounds, distributions
from vae_book.bounds import importance_weighted_bound
from vae_book.clinic import FAULTS, Fault, fault

ROOT = Path(__file__).parents[2]

# The test that notices each fault; with it switched on, that test has to fail.
UNIT = "tests/unit/test_"
KL_BY_DRAWS = "divergences.py::test_the_divergence_from_the_standard_prior_is_an_average_over_draws"
DRAWS = "reparameterization.py::test_draws_have_the_mean_and_the_standard_deviation_asked_for"
LAYERS = "models.py::test_encoder_and_decoder_compute_two_layers_with_relu"
LOG_OF_AN_AVERAGE = "bounds.py::test_the_weighted_bound_is_the_log_of_an_average"
CAUGHT_BY = {
    "mean-reduction": "likelihoods.py::test_log_prob_is_the_sum_over_pixels_of_torchs_own",
    "kl-mean": KL_BY_DRAWS,
    "kl-sign": "bounds.py::"
    "test_the_bound_and_the_divergence_from_the_posterior_add_up_to_the_evidence",
    "half-missing": KL_BY_DRAWS,
    "kl-weight": "objectives.py::test_beta_weighs_the_divergence",
    "constant-of-the-kl": KL_BY_DRAWS,
    "log-var-as-std": DRAWS,
    "variance-in-sample": "distributions.py::"
    "test_draws_repeat_with_their_seed_and_have_the_moments",
    "mixture-by-unit": "distributions.py::test_the_density_of_a_mixture_is_that_of_torch",
    "uniform-noise": "training.py::test_noise_is_standard_normal_and_never_used_twice",
    "no-noise": DRAWS,
    "mean-at-test": "evaluation.py::test_is_the_mean_over_images_with_a_short_chunk_at_the_end",
    "no-reparameterization": "reparameterization.py::"
    "test_gradients_are_one_and_half_the_deviation_times_the_noise",
    "one-head": LAYERS,
    "sigmoid-twice": LAYERS,
    "left-in-training-mode": LAYERS,
    "gray-as-binary": "likelihoods.py::test_pixels_outside_the_support_are_refused_with_advice",
    "softmax-over-losses": LOG_OF_AN_AVERAGE,
    "average-inside-the-logarithm": "evaluation.py::"
    "test_it_is_the_mean_over_images_of_the_log_of_their_average_weight",
    "step-of-the-levels": "likelihoods.py::"
    "test_bits_are_those_of_the_gray_level_in_which_a_pixel_falls",
    "last-batch": "evaluation.py::test_is_the_mean_over_images_with_a_short_chunk_at_the_end",
    "train-on-test": "data.py::test_bundled_splits_share_no_image_and_make_up_the_package",
    "deaf-encoder": "models.py::test_an_image_is_encoded_by_its_own_label_alone",
}


# Each run is a fork of a process that has imported what takes long, and computed nothing. Objects
# that are frozen no fork looks through for garbage, which takes half a second each time.
RUNS = """
import gc, os, sys
import conftest, hypothesis, mlxtend.data, pdb, pytest, scipy.stats
import vae_book.clinic, vae_book.data, vae_book.training

gc.freeze()
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
options = "-o addopts= -p no:cacheprovider -q -rA --tb=no".split()
for line in sys.stdin:
    name, *tests = line.split()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        fault = ["--fault", name] if name != "none" else []
        status = pytest.main([*options, *fault, *tests])
        sys.stdout.flush()
        os._exit(status)
    print(f"{name}: exit status {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")
"""


@pytest.fixture(scope="module")
def outcomes():
    """What pytest says of each fault's test, and of all of them while nothing is broken."""
    tests = {name: UNIT + test for name, test in CAUGHT_BY.items()}
    tests |= {"none": " ".join(sorted(set(tests.values()))), "kl-sing": tests["kl-sign"]}
    done = subprocess.run(
        [sys.executable, "-c", RUNS],
        input="".join(f"{name} {test}\n" for name, test in tests.items()),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    ends = re.split(r"^([a-z0-9-]+): exit status (\d)\n", done.stdout, flags=re.MULTILINE)
    return {
        name: (int(status), said)
        for said, name, status in zip(ends[::3], ends[1::3], ends[2::3], strict=False)
    }


def package():
    """Every function that the package's modules and the owners of the faults hold."""
    modules = {name: each for name, each in sys.modules.items() if name.startswith("vae_book.")}
    owners = {str(each.owner): each.owner for each in FAULTS.values()}
    return {
        (name, attribute): value
        for name, holder in (modules | owners).items()
        for attribute, value in vars(holder).items()
        if callable(value)
    }


# The tests that catch them ------------------------------------------------------------------------


def test_each_fault_has_a_test_that_catches_it():
    assert CAUGHT_BY.keys() == FAULTS.keys()


def test_the_tests_that_catch_faults_pass_while_nothing_is_broken(outcomes):
    status, said = outcomes["none"]
    assert status == pytest.ExitCode.OK, said
    for test in CAUGHT_BY.values():  # a test with parameters is followed by them
        assert f"PASSED {UNIT}{test}" in said


@pytest.mark.parametrize("name", FAULTS)
def test_the_test_that_catches_a_fault_fails_with_it(outcomes, name):
    status, said = outcomes[name]
    assert status == pytest.ExitCode.TESTS_FAILED, said
    assert f"FAILED {UNIT}{CAUGHT_BY[name]}" in said


def test_a_fault_that_there_is_not_is_an_error_of_use(outcomes):
    status, said = outcomes["kl-sing"]
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "--fault: name: expected one of mean-reduction, kl-mean" in said


# The switch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAULTS)
def test_the_package_is_broken_in_one_place_and_whole_again_afterwards(name):
    before, chosen = package(), FAULTS[name]
    intact = getattr(chosen.owner, chosen.attribute)
    with fault(name) as switched:
        assert switched is chosen
        broken = getattr(chosen.owner, chosen.attribute)
        changed = {place: value for place, value in package().items() if value is not before[place]}
        assert broken is not intact
        assert all(value is broken for value in changed.values())
        # Nobody in the package holds the intact function any more.
        assert changed.keys() == {place for place, value in before.items() if value is intact}
    assert package() == before


def test_the_package_is_whole_again_after_an_error():
    before = package()
    with pytest.raises(ZeroDivisionError), fault("kl-sign"):
        raise ZeroDivisionError
    assert package() == before


def test_faults_add_up():
    before, zero = package(), torch.zeros(4)
    with fault("kl-sign"), fault("kl-mean"):
        kl = distributions.gaussian_unit_kl(zero + 2, zero)
        assert kl.tolist() == pytest.approx([-0.5] * 4)
    assert package() == before


def test_what_was_imported_by_name_outside_stays_as_it_is():
    log_weights = torch.tensor([[0.0], [3.0]])
    with fault("softmax-over-losses"):
        assert importance_weighted_bound is not bounds.importance_weighted_bound
        broken, intact = (
            bound(log_weights).item()
            for bound in (bounds.importance_weighted_bound, importance_weighted_bound)
        )
    assert broken < intact - 0.1


def test_an_unknown_fault_is_refused_with_those_that_there_are():
    with (
        pytest.raises(ValueError, match=r"^name: expected one of .*kl-sign, .*, got 'kl-sing'$"),
        fault("kl-sing"),
    ):
        pass


# What is told of them -----------------------------------------------------------------------------


@pytest.mark.parametrize("each", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_says_what_is_wrong_and_where_it_was_met(each: Fault):
    assert each.wrong.endswith(".")
    assert "\n" not in each.wrong
    for text in (each.met, each.symptom):
        assert text.strip(" .") == text
        assert text


def test_there_are_as_many_faults_as_the_chapter_says():
    assert len(FAULTS) == 23


@pytest.mark.parametrize("each", FAULTS.values(), ids=FAULTS)
def test_code_that_had_the_mistake_is_a_link(each):
    links = re.findall(r"\[([^\]]+)\]\(https://github\.com/([^)]+)/tree/([0-9a-f]+)\)", each.links)
    assert len(links) == each.met.count(" at ") > 0
    assert all(text == repository for text, repository, _ in links)
    assert re.sub(r"\[([^\]]+)\]\([^)]+\)|`", r"\1", each.links) == each.met
