"""Is my VAE right? `diagnose` looks for the mistakes of the clinic in a reader's own code.

Each check goes an independent route: densities are torch's, never the package's own. No weight, no
buffer, no mode and no random state of the reader's is changed.
"""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Distribution,
    Normal,
    kl_divergence,
)

from vae_book import likelihoods
from vae_book.exam import DRAWS, KINDS, KL_DRAWS, UNSEEN, Exam, NotChecked, called
from vae_book.loss_terms import (
    FITS,
    KLTerm,
    Pass,
    gradients,
)
from vae_book.models import mode
from vae_book.patient import (
    DEVIATIONS,
)
from vae_book.prior_density import FITTED, KEPT, agreement, distance
from vae_book.report import Finding, Report

Function = Callable[..., Any]

ACTIVE = 0.01  # the variance of a unit's mean above which it is active; Burda et al. (2016)


def diagnose(
    encode: Function,
    decode: Function,
    images: Tensor,
    *,
    loss: Function | None = None,
    likelihood: str | likelihoods.Likelihood | Function | None = None,
    labels: Tensor | None = None,
    prior: Any = None,
    draw: Function | None = None,
    spread: str | None = None,
    beta: float = 1.0,
    seed: int = 0,
) -> Report:
    """Look for mistakes in a VAE, from outside.

    Args:
        encode: images -> (mu, log_var) or (mu, std), with or without a draw of z, a dictionary or
            an object with such names, a torch Normal, or a `DiagonalGaussian`. A module or a
            method, such as ``model.encode``, is watched inside the loss; what other functions
            give is found again among the numbers of the loss.
        decode: z -> logits, probabilities, means, or a distribution.
        images: some of those that the model was made for, at least two, in the shape that encode
            takes, (n, ...); the first 100 are used.
        loss: what training minimizes, as ``loss(images)``, or as ``loss(images, encoded, decoded)``
            from what encode and decode returned. One number, or one for each image, or a
            dictionary or tuple that holds it as ``loss`` or first.
        likelihood: what decode's tensor stands for: ``bernoulli`` (binary pixels),
            ``cross-entropy`` (gray levels, by name), ``gaussian``, ``laplace``,
            ``continuous-bernoulli``, a `Likelihood`, or a function (images, decoded) -> log p(x|z)
            of each image; None finds out.
        labels: for a conditional model, what ``encode(images, labels)``, ``decode(z, labels)`` and
            ``loss(images, labels)`` are told.
        prior: p(z): a distribution of torch or of the package, any object with ``sample`` and
            ``log_prob``, or a function of the labels that gives one; None is N(0, I).
        draw: the reader's reparameterization, from what encode returned to z; needed only if the
            loss has three arguments.
        spread: what encode's second output is: ``log_var``, ``std``, ``log_std`` or ``var``; None
            finds out.
        beta: the weight of the KL that was chosen.
        seed: of all noise.

    Returns:
        What was checked, what was found, how far off in nats, and what to do.

    Raises:
        ValueError: an argument is none of these; the message names it.
    """
    exam = Exam(encode, decode, images, loss, likelihood, labels, prior, draw, spread, beta, seed)
    gpus = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), _others_seeded(seed), torch.enable_grad():
        torch.manual_seed(seed)
        exam.score(exam.decoded, exam.families[0])  # what is no VAE is refused before the checks
        return Report(tuple(_looked(name, check, exam) for name, check in CHECKS.items()))


@contextmanager
def _others_seeded(seed: int) -> Iterator[None]:
    """NumPy's and Python's own noise, which some models draw from, seeded; then as before."""
    before = np.random.get_state(), random.getstate()  # noqa: NPY002
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before[0])  # noqa: NPY002
        random.setstate(before[1])


def _looked(name: str, check: Callable[["Exam"], Finding], exam: "Exam") -> Finding:
    try:
        if check not in (range_of_data, density) and range_of_data(exam).verdict != "ok":
            # Codes, noise and gradients of such images may be anything.
            raise NotChecked("the range of the data has to be right first")
        found = check(exam)
    except NotChecked as reason:
        return Finding(name, "not checked", str(reason))
    return Finding(name, found.verdict, found.found, found.fault, found.nats, found.advice)


def _ok(found: str, nats: float | None = None, advice: str = "") -> Finding:
    return Finding("", "ok", found, "", nats, advice)


def _fault(fault: str, found: str, advice: str, nats: float | None = None) -> Finding:
    return Finding("", "fault", found, fault, nats, advice)


# The checks ---------------------------------------------------------------------------------------


def range_of_data(exam: Exam) -> Finding:
    """Whether the images have values that the likelihood can score."""
    low, high = exam.images.min().item(), exam.images.max().item()
    span = f"from {low:.4g} to {high:.4g}"
    if not bool(exam.images.isfinite().all()):
        return _fault("range", "some pixels are infinite or NaN", "look at how images are read")
    if low == high:
        return _fault("range", f"all pixels are {low:.4g}", "look at how images are read")
    if exam.bounded and not (low >= 0 and high <= 1):
        return _fault(
            "range",
            f"pixels go {span}, and are scored as if between 0 and 1",
            "divide by 255 what goes from 0 to 255, and leave out a normalization by mean and "
            "deviation; or use a Gaussian likelihood",
        )
    return _ok(f"pixels go {span}")


def heads(exam: Exam) -> Finding:
    """Whether mean and spread are two outputs, and may take values of both signs."""
    mu, spread = exam.encoded.mu, exam.encoded.spread
    if mu.shape == spread.shape and torch.equal(mu, spread):
        return _fault(
            "one-head",
            "the spread is the mean, number by number",
            "give the encoder a layer for each of the two, or twice as many outputs to split",
        )
    if exam.encoded.kind == "scale_tril":
        spread = DEVIATIONS["scale_tril"](spread)  # above the diagonal a factor is 0
    for name, values in {"mean": mu, "spread": spread}.items():
        zeros = (values == 0).float().mean().item()
        # All are 0 if a layer starts with weights of 0.
        if bool((values >= 0).all()) and 0.01 < zeros < 1:
            return _fault(
                "clipped-head",
                f"the {name} is never negative, and exactly 0 in {zeros:.1%} of its numbers",
                "leave out the ReLU behind this layer: means and log-variances may be negative; "
                "softplus or exp makes a deviation positive",
            )
    return _ok("mean and spread are two outputs")


def noise(exam: Exam) -> Finding:
    """Whether z = mu + sigma * eps with eps standard normal, and drawn anew for each number."""
    seen = exam.seen
    if seen.drawn and _constant(seen) and exam.training:
        return _fault(
            "no-noise",
            "z is the mean, also in training mode: an autoencoder that pays for a KL",
            "draw z = mu + std * torch.randn_like(std)",
        )
    kind, _ = _draws(exam)
    eps = _noise_in(seen, kind)
    for axis, name in {0: "draws of an image", 1: "images", 2: "units of z"}.items():
        if eps.shape[axis] > 1 and _alike(eps, eps.narrow(axis, 0, 1).expand_as(eps)):
            return _fault("one-noise", f"all {name} get the same noise",
                          "draw it with torch.randn_like(mu), one number for each")  # fmt: skip
    if _drawn_again(exam, kind, eps):
        return _fault("same-noise", "the loss draws the same noise each time",
                      "draw it in each call, and set no seed in the model")  # fmt: skip
    eps = eps.flatten()
    if _is_far_from_normal(eps):
        words = f"the noise in z has mean {eps.mean():.2f} and deviation {eps.std():.2f}"
        kurtosis = ((eps - eps.mean()) / eps.std()).pow(4).mean()
        if kurtosis > 2.4:  # a normal one has 3, a uniform one 1.8
            return _fault("noise-scale", f"{words}, and should be standard normal",
                          "draw it with torch.randn_like, and multiply it by the deviation "
                          "once")  # fmt: skip
        return _fault(
            "uniform-noise",
            f"{words}, and is not standard normal",
            "draw it with torch.randn_like, not with rand",
        )
    return _ok(f"the noise in {len(eps)} draws cannot be told from standard normal noise")


def _noise_in(seen: Pass, kind: str) -> Tensor:
    """The noise in z, shape (draws, n, units)."""
    q_z = seen.encoded.normal(kind)
    eps = (torch.cat(list(seen.z)) - q_z.mean) / q_z.stddev
    return eps.detach().cpu().double().flatten(2)


def _alike(eps: Tensor, other: Tensor) -> bool:
    """Whether noise is the same, but for the rounding of z."""
    return eps.shape == other.shape and bool((eps - other).abs().max() < 1e-4)


def _drawn_again(exam: Exam, kind: str, eps: Tensor) -> bool:
    """Whether the loss has the same noise in evaluation mode as in training mode."""
    try:
        return _alike(eps, _noise_in(exam.measured, kind))
    except NotChecked:
        return False


def _is_far_from_normal(eps: Tensor) -> bool:
    """By the statistic of Kolmogorov and Smirnov, or by the moments, in standard errors."""
    n = len(eps)
    apart = math.sqrt(n) * distance(torch.special.ndtr(eps.sort().values).numpy())
    if apart > 3:  # by chance once in 30 million
        return True
    if n < 200:  # the errors below are those of many draws
        return False
    kurtosis = ((eps - eps.mean()) / eps.std()).pow(4).mean()
    mean, variance = eps.mean() * math.sqrt(n), (eps.var() - 1) * math.sqrt(n / 2)
    return bool(max(mean.abs(), variance.abs(), (3 - kurtosis) * math.sqrt(n / 24)) > 6)


def deviation(exam: Exam) -> Finding:
    """Whether draws of z, the KL and the declaration read the spread in the same way."""
    readings = {}
    if exam.encoded.kind or exam.spread:
        readings["the declaration"] = str(exam.encoded.kind or exam.spread)
    reasons = []
    for name, reading in {"z": lambda: _draws(exam)[0], "the KL": lambda: _kl(exam).kind}.items():
        try:
            readings[name] = reading()
        except NotChecked as reason:
            reasons.append(str(reason))
    words = ", ".join(f"{kind} by {name}" for name, kind in readings.items())
    if len(set(readings.values())) > 1:
        return _fault(
            "log-var-as-std",
            f"the encoder's second output is read as {words}",
            "a log-variance becomes a deviation by exp(0.5 * log_var), in every place",
            _mixed_up(exam, readings),
        )
    if len(readings) < 2:
        raise NotChecked("; ".join(reasons) or "one reading alone compares with nothing")
    return _ok(f"the encoder's second output is read as {words}")


def reparameterized(exam: Exam) -> Finding:
    """Whether gradients reach the encoder through z, and are those of mu + sigma * eps."""
    seen = exam.seen
    for part in ("decoder", "encoder"):
        if getattr(exam, f"{part}_cut_off"):
            return _fault(
                f"{part}-without-gradients",
                f"the {part} is computed without gradients, and learns nothing",
                "leave out no_grad() and detach() around it",
            )
    if not seen.drawn:
        raise NotChecked("z was not drawn by the reader's code; give draw=")
    inputs = [seen.encoded.mu, seen.encoded.spread]
    if seen.loss.requires_grad and not inputs[0].requires_grad:
        raise NotChecked("the encoder is computed without gradients; its weights are frozen")
    by_mu, by_spread = gradients(_together(torch.cat(list(seen.z))).sum(), inputs)
    cut = [n for n, g in {"mean": by_mu, "spread": by_spread}.items() if not g.any()]
    if cut and _constant(seen):
        raise NotChecked("z is the mean")
    if cut:
        return _fault(
            "no-reparameterization",
            f"no gradient passes from z to the {' and the '.join(cut)}",
            "draw by mu + std * torch.randn_like(std), or rsample() in place of sample(); no "
            "detach() and no no_grad() on the way",
        )
    return _ok("gradients pass through z to mean and spread")


def output(exam: Exam) -> Finding:
    """Whether a sigmoid was applied twice."""
    p_x = None if exam.own_likelihood else exam.p_x(exam.decoded, exam.family)
    if not isinstance(p_x, Bernoulli) or exam.family == "probabilities":
        return _ok("no logits")
    low, high = p_x.logits.min().item(), p_x.logits.max().item()
    far = exam.p_x(exam.far, exam.family).logits  # type: ignore[attr-defined]  # Bernoulli as well
    if low >= 0 and high <= 1 and bool(((far >= 0) & (far <= 1)).all()):
        return _fault(
            "sigmoid-twice",
            f"all logits lie between {low:.2f} and {high:.2f}, as if a sigmoid had made them",
            "leave out the decoder's sigmoid, or score probabilities by binary_cross_entropy "
            "without logits",
            _once(exam, p_x.logits),
        )
    return _ok(f"the logits go from {low:.1f} to {high:.1f}")


def normalized(exam: Exam) -> Finding:
    """Whether the likelihood of a pixel sums, or integrates, to one over the pixel's values."""
    if exam.own_likelihood:
        raise NotChecked("a function gives no distribution of a single pixel")
    p_x = exam.p_x(exam.decoded, exam.family)
    if getattr(p_x.support, "is_discrete", False) and not isinstance(p_x, Bernoulli):
        raise NotChecked(f"{type(p_x).__name__} has other values than gray levels and bits")
    mass = _log_mass(p_x, gray=not exam.binary)
    off = mass.sum().item() / exam.n
    if abs(off) < 0.01:
        return _ok("the probabilities of a pixel's values add up to 1", off)
    if isinstance(p_x, Bernoulli):
        advice = (
            "make the images binary, use a density of gray levels such as ContinuousBernoulli, or "
            "call the loss a cross-entropy (likelihood='cross-entropy')"
        )
        found = "gray levels are scored by cross-entropy, which is no log-likelihood of them"
        return _fault("gray-as-binary", found, advice, off) if exam.strict else _ok(found, off)
    return _fault("not-normalized", "the values of a pixel do not add up to 1",
                  "add the constants that are missing", off)  # fmt: skip


def weights(exam: Exam) -> Finding:
    """Whether several draws of z enter as a mean (ELBO) or by the log of a mean (IWAE)."""
    term = exam.understood
    share = term.weights / term.weights.sum(0)
    if len(share) == 1 and bool(share.isfinite().all()):
        if _spread_out(term.weights[0]):
            return _fault("image-weights", "images enter the loss with unequal weights",
                          "sum or average over images")  # fmt: skip
        return _ok("one draw of z for each image")
    log_w = exam.seen_log_weights
    soft, together = log_w.softmax(0), log_w.flatten().softmax(0).view_as(log_w)
    if torch.allclose(term.weights / term.weights.sum(), together, atol=1e-3):
        return _fault("average-inside-the-logarithm",
                      "one logarithm is taken, of an average over draws and images",
                      "take torch.logsumexp over the draws of each image",
                      (_log_mean(log_w.flatten()) - _log_mean(log_w).mean()).item())  # fmt: skip
    across = log_w.softmax(1) / len(log_w)
    if torch.allclose(term.weights / term.weights.sum(), across, atol=1e-3):
        return _fault("average-inside-the-logarithm",
                      "for each draw the logarithm is taken of an average over images",
                      "take torch.logsumexp over the draws of each image",
                      (_log_mean(log_w.T).mean() - _log_mean(log_w).mean()).item())  # fmt: skip
    if not bool(share.isfinite().all()):
        return _fault("image-weights", "some images enter the loss with no weight at all",
                      "sum or average over images")  # fmt: skip
    if not _spread_out(share):
        return _ok(f"{len(share)} draws of z for each image, averaged")
    if torch.allclose(share, soft, atol=1e-3):
        return _sum_for_average(exam, log_w) or _ok(
            f"{len(share)} draws of z for each image, by the log of their average"
        )
    for many in range(2, len(share)):
        if len(share) % many == 0:
            for axis in (0, 1):  # whether the draws of a group stand apart or together
                groups = log_w.unflatten(0, (many, -1)).movedim(axis, 0)
                grouped = groups.softmax(0).movedim(0, axis).flatten(0, 1)
                if torch.allclose(share, grouped / grouped.sum(0), atol=1e-3):
                    return _sum_for_average(exam, groups) or _ok(
                        f"{len(share)} draws of z for each image in groups, by the average of the "
                        "logs of their averages"
                    )
    for sign, best in ((1, "best"), (-1, "worst")):
        tilted = (sign * log_w).softmax(0)
        mean = (tilted * log_w).sum(0)
        if torch.allclose(share, tilted * (1 + sign * (log_w - mean)), atol=1e-3):
            return _fault(
                "softmax-over-losses",
                f"log weights are averaged by a softmax in which the {best} draw counts most",
                "take torch.logsumexp(log_w, 0) - log(K)",
                (mean - _log_mean(log_w)).mean().item(),
            )
    return _fault("draw-weights", "draws of z enter the loss with weights of no known bound",
                  "average the log-likelihoods, or take logsumexp(log_w, 0) - log(K)")  # fmt: skip


def _sum_for_average(exam: Exam, log_w: Tensor) -> Finding | None:
    """The finding for a loss that is the log of the sum of weights over the first axis."""
    squared = exam.loose
    if not exam.term.exact or squared:  # without its constants
        return None
    claimed = -exam.seen.loss.item() / exam.term.weights.sum().item()
    draws, off = len(log_w), claimed - _log_mean(log_w).mean().item()
    # A softmax of the weights, held fixed, times their logs has the same gradient. It is lower than
    # the sum by the entropy of the softmax.
    entropy = log_w.logsumexp(0).mean() - (log_w.softmax(0) * log_w).sum(0).mean()
    about = 0.01 + 1e-4 * abs(claimed)
    if abs(off - math.log(draws)) > about or min(math.log(draws), entropy.item()) < 2 * about:
        return None
    return _fault("sum-inside-the-logarithm",
                  f"the logarithm is taken of the sum of {draws} weights, not of their average",
                  f"subtract log({draws})", off)  # fmt: skip


def scale(exam: Exam) -> Finding:
    """Whether log-likelihood and KL enter the loss with weights 1 and beta, and the right signs."""
    term, kl = exam.understood, exam.kl
    if _spread_out(term.weights.sum(0)):
        raise NotChecked("images have unequal weights")
    whole = term.weights.sum(0).mean().item()
    if kl is None:
        return _fault("no-kl", "the loss has no KL, or one of next to no weight",
                      "add it, summed over the units of z", _typical_kl(exam))  # fmt: skip
    if not kl.misfit < FITS:
        raise NotChecked("what the loss has beside the log-likelihood is no KL; see KL")
    most = abs(kl.weight / exam.beta) * (1 + kl.error)
    if kl.error > 0.1 and most < 0.5 and not exam.loose:
        return _fault("kl-weight", f"the KL has at most {most:.1g} times its weight: too little to "
                      "see beside the log-likelihood",
                      "if this was chosen, say beta; only 1 gives the ELBO",
                      _typical_kl(exam))  # fmt: skip
    if kl.error > 0.1:
        raise NotChecked(UNSEEN)
    words = (
        f"log-likelihood {_over(exam, whole)}, KL {_over(exam, whole * kl.weight, of_units=True)}"
    )
    off = abs(kl.weight / exam.beta - 1) * _typical_kl(exam)
    if whole < 0 or kl.weight < 0:
        name = "kl-sign" if whole > 0 else "likelihood-sign"
        if whole < 0 < kl.weight:
            name = "both-signs"
        return _fault(name, f"wrong sign: {words}",
                      "minimize KL - log-likelihood, both with the sign that makes them smaller "
                      "when the model is better", off)  # fmt: skip
    return _ratio(exam, kl.weight / exam.beta, 0.01 + kl.error, words, off, whole)


def _ratio(exam: Exam, ratio: float, about: float, words: str, off: float, whole: float) -> Finding:
    """The finding for a KL that weighs this much more than it should."""
    loose = exam.loose
    errors = (1, 2) if exam.family == "gaussian" and loose else (1,)  # half a squared one, or whole

    def plain(weight: float) -> bool:
        n, pixels = exam.n, exam.pixels
        return any(math.isclose(weight * each, 1, rel_tol=about)
                   for each in (1, n, pixels, n * pixels))  # fmt: skip

    def divided(ratio: float, by: float) -> bool:
        return by != 1 and any(math.isclose(ratio * each, by, rel_tol=about) for each in errors)

    for place, (name, likelihood_by, kl_by, advice) in enumerate(_mistakes(exam)):
        # Beside a squared error any weight may be the noise that was chosen, if not the KL's own
        # weight shows that it was divided.
        if not divided(ratio, likelihood_by / kl_by) or (
            loose and not plain(whole * ratio * kl_by)
        ):
            continue
        if _is_chance(exam, place, divided):
            by_kl = whole * ratio * exam.beta
            words = (
                f"log-likelihood times {whole:.3g}, KL times {by_kl:.3g}, for any number of images"
            )
            continue
        return _fault(name, words, advice, off)
    beside = ""
    if loose:
        noise = ratio if exam.family == "laplace" else math.sqrt(ratio)
        error = "half the squared" if exam.family == "gaussian" else "the absolute"
        beside = f" beside {error} error, that of noise of scale {noise:.3g} on each pixel"
        width = max(1.0, (exam.images.max() - exam.images.min()).item())
        on_kl = any(plain(whole / each) for each in errors) and not plain(whole * ratio)
        if noise <= 1.01 * width and not on_kl:
            return _ok(f"{words}: the KL has weight {ratio:.3g}{beside}")
    if math.isclose(ratio, 1, rel_tol=about):
        return _ok(words)
    chosen = "this noise was" if loose else "this was"
    return _fault("kl-weight", f"{words}: the KL has {ratio:.3g} times its weight{beside}",
                  f"if {chosen} chosen, say beta={ratio * exam.beta:.3g}; "
                  + ("else sum the KL with weight 1" if loose else "only 1 gives the ELBO"),
                  off)  # fmt: skip


def _mistakes(exam: Exam) -> Iterator[tuple[str, int, int, str]]:
    """What the two terms may have been divided by, and what to do then."""
    n, pixels, units = exam.n, exam.pixels, exam.encoded.mu[0].numel()
    log_likelihood, kl = "sum the log-likelihood over pixels", "sum the KL over the units of z"
    alike = "average both terms over the images, or neither"
    for name, likelihood_by, kl_by, *advice in [
        ("mean-reduction", pixels, 1, log_likelihood),
        ("kl-over-784", 1, pixels, "sum the KL, and do not divide it by the pixels"),
        ("kl-over-batch", 1, n, alike),
        ("likelihood-over-batch", n, 1, alike),
        ("kl-mean", 1, units, kl),
        ("mean-reduction", pixels, units, log_likelihood, kl),
        ("mean-reduction", n * pixels, 1, log_likelihood, alike),
        ("mean-reduction", n * pixels, units, log_likelihood, kl, alike),
        ("kl-mean", 1, n * units, kl, alike),
        ("kl-over-784", 1, n * pixels, "sum the KL", alike),
    ]:
        yield str(name), int(likelihood_by), int(kl_by), "; ".join(map(str, advice))


def _is_chance(exam: Exam, place: int, divided: Callable[[float, float], bool]) -> bool:
    """Whether a weight looks like one over the number of images, and does not move with it."""
    fewer = exam.fewer
    if fewer is None:
        return False
    (_, *both, _), (_, *by, _) = (list(_mistakes(each))[place] for each in (exam, fewer))
    try:
        if both == by or fewer.kl is None or not fewer.kl.misfit < FITS:
            return False
    except (NotChecked, ValueError):  # such as of a prior for each image
        return False
    return not divided(fewer.kl.weight / exam.beta, by[0] / by[1])


def kl_value(exam: Exam) -> Finding:
    """Whether the KL in the loss is that of draws of z, in form and in value."""
    term, kl = exam.understood, exam.kl
    if kl is None:
        raise NotChecked("the loss has no KL")
    if _spread_out(term.weights):
        raise NotChecked("draws of z do not enter the loss as a mean")
    per_image = exam.n * term.weights.sum(0).mean()
    rest = ((exam.seen.loss + (term.weights * term.log_prob).sum()) / per_image).item()
    kind = exam.possible(kl.kind) if kl.misfit < FITS else exam.encoded.likely
    drawn, error = exam.drawn_kl(kind)
    if not kl.misfit < FITS:
        if not exam.formula:
            raise NotChecked(
                "beside the log-likelihood stands something other than a KL to this prior: free "
                "bits, a loss of its own on the code, another prior? Give prior=, or a loss "
                "without it"
            )
        if abs(rest - drawn) < 5 * error + 1e-3 * abs(rest):
            return _fault("kl-formula",
                          f"what the loss has beside the log-likelihood has the value of the KL, "
                          f"{rest:.2f} nats, and another gradient",
                          "leave out detach() and no_grad() in the KL")  # fmt: skip
        return _fault(
            "kl-formula",
            f"what the loss has beside the log-likelihood is no KL to the prior: {rest:.2f} nats, "
            f"by draws {drawn:.2f} ± {error:.2f}",
            "the KL is 0.5 * (mu**2 + var - 1 - log_var), summed over the units of z; another "
            "prior is given as prior=",
            rest - drawn,
        )
    off = rest - kl.weight * drawn
    words = f"{rest / kl.weight:.2f} nats, by draws {drawn:.2f} ± {error:.2f}"
    if exam.loose:
        return _ok(
            "the KL has the right gradient; a squared or absolute error leaves out constants"
        )
    if not term.exact:
        return _ok(
            "the KL has the right gradient; probabilities near 0 and 1 are kept from there, which "
            "changes the value of the log-likelihood"
        )
    draws = 1 if kl.exact else KL_DRAWS / len(term.weights)  # an estimate by few has more error
    chance = 5 * abs(kl.weight) * error * math.sqrt(draws) + 0.01
    # What is left of a large loss has lost digits.
    rounding = 4 * torch.finfo(exam.seen.loss.dtype).eps * (exam.seen.loss / per_image).abs().item()
    if abs(off) > chance + rounding + (1e-3 + kl.error) * abs(rest):
        return _fault("kl-value", f"the loss is off by a constant: {words}",
                      "look for constants, such as the -1 in the KL or log(2 pi) / 2 for each "
                      "pixel; what does not depend on z, such as a penalty on the weights, is no "
                      "fault: give a loss without it", off)  # fmt: skip
    return _ok(words)


def below(exam: Exam) -> Finding:
    """Whether the bound that the loss claims lies below an importance-weighted one."""
    if exam.loss is None:
        raise NotChecked("no loss was given")
    if scale(exam).verdict != "ok":
        raise NotChecked("the terms of the loss have to be right first")
    if exam.loose:
        raise NotChecked("a squared or absolute error is a log-density but for a constant")
    if not exam.term.exact:
        raise NotChecked("probabilities near 0 and 1 are kept from there: no log-likelihood")
    if exam.beta < 1:
        raise NotChecked("a KL of less than its weight bounds nothing")
    claimed = -exam.seen.loss.item() / exam.term.weights.sum().item()
    tight = _log_mean(exam.log_weights)
    simple = exam.log_weights.mean(0)
    error = 5 * (exam.log_weights.std(0) / math.sqrt(len(exam.seen.z))).mean() / math.sqrt(exam.n)
    off = claimed - tight.mean().item()
    words = f"the loss claims {claimed:.2f} nats, {DRAWS} draws give {tight.mean():.2f}"
    if off > error + 0.5:
        return _fault("above-the-evidence", words, "no bound lies above log p(x): look at the "
                      "other findings", off)  # fmt: skip
    return _ok(f"{words}; the gap is at least {(tight - simple).mean():.2f}")


def collapse(exam: Exam) -> Finding:
    """Whether z says something of x."""
    active = exam.encoded.mu.reshape(exam.n, -1).var(0) > ACTIVE
    words = f"{int(active.sum())} of {len(active)} units are active, KL {exam.average_kl:.2f}"
    if bool(active.any()):
        return _ok(f"{words} nats an image")
    if exam.own_likelihood:
        raise NotChecked(f"{words}: collapsed, or not trained yet")
    # An untrained decoder draws about one gray everywhere. So what is drawn has to be nearer to the
    # images than the best gray is, by half of what their average is nearer. The average of few
    # images is nearer by chance as well.
    x, error = _drawn(exam)
    by_gray, by_average = (x - x.mean()).square().mean(), x.var(0).mean()
    if by_gray - by_average < 2 * by_average / exam.n:
        raise NotChecked(f"{words}: collapsed or not trained yet, which these images cannot tell")
    if error > (by_gray + by_average) / 2:
        raise NotChecked(f"{words}: the model seems not to be trained yet")
    return _fault(
        "collapse",
        f"{words}: the decoder ignores z and draws one average image",
        "check the weights of the two terms first; then raise the KL's weight from 0 slowly, or "
        "train with a smaller variance of the pixels",
    )


def modes(exam: Exam) -> Finding:
    """Whether evaluation mode is quiet, and how far training mode is from it."""
    x, told = exam.images, exam.told
    with exam.evaluating():
        again = exam.encoding(x, *told).mu
        half = exam.encoding(x[: exam.n // 2], *(each[: exam.n // 2] for each in told)).mu
    size = exam.encoded.mu.abs().max().clamp(min=1e-6)
    if (again - exam.encoded.mu).abs().max() > 1e-3 * size:
        return _fault("noise-in-evaluation", "two encodings of an image differ in evaluation mode",
                      "give F.dropout training=self.training, or use nn.Dropout; call model.eval() "
                      "before measuring")  # fmt: skip
    if (half - exam.encoded.mu[: exam.n // 2]).abs().max() > 1e-2 * size:
        return _fault("batch-in-evaluation", "an image's encoding depends on the others beside it",
                      "measure in evaluation mode; look for an average over the batch")  # fmt: skip
    if found := _decoded_apart(exam):
        return found
    with mode(exam.modules, training=True), torch.no_grad():
        apart = exam.encoding(x, *told).normal(exam.kind)
    off = kl_divergence(apart, exam.q_z).reshape(exam.n, -1).sum(1).mean().item()
    if off > 0.01:
        return _ok("training mode gives another q(z | x)", off, "measure in evaluation mode only")
    return _ok("an image is encoded alike in both modes, alone or beside others")


def _decoded_apart(exam: Exam) -> Finding | None:
    """The finding for a decoder that decodes a code in two ways in evaluation mode."""
    half = exam.n // 2
    beside = torch.arange(exam.n, device=exam.images.device) % half  # the first half, twice

    def score(decoded: Any) -> Tensor:
        return exam.score(decoded, exam.family)[:, :half]

    with exam.evaluating():
        first = score(exam.decoded)
        again, others = (
            score(exam.meant(called("decode", exam.decode, z, *told)))
            for z, *told in [(exam.q_z.mean, *exam.told),
                             (each[beside] for each in (exam.q_z.mean, *exam.told))]
        )  # fmt: skip
    size = first.abs().max().clamp(min=1e-6)
    if (again - first).abs().max() > 1e-4 * size:
        return _fault("noise-in-evaluation", "two decodings of a code differ in evaluation mode",
                      "give F.dropout training=self.training, or use nn.Dropout; let decode return "
                      "what p(x | z) is, and no draw of it")  # fmt: skip
    if (others - first).abs().max() > 1e-4 * size:
        return _fault("batch-in-evaluation", "what a code decodes to depends on those beside it",
                      "look for an average over the batch in the decoder")  # fmt: skip
    return None


def measuring(exam: Exam) -> Finding:
    """Whether z is drawn where held-out images are measured, too."""
    if not exam.seen.drawn or _constant(exam.seen):
        raise NotChecked("z was not drawn by the reader's code in training mode")
    if not _constant(exam.measured):
        return _ok("z is drawn in evaluation mode and without gradients, too")
    return _fault(
        "mean-at-test",
        "z is the mean in evaluation mode or without gradients, where the loss is then no bound",
        "draw z wherever the loss is measured; to look at a reconstruction, decode the mean apart",
    )


def samples(exam: Exam) -> Finding:
    """Whether what is encoded lies where the prior draws from."""
    apart = exam.p_z.batch_shape + exam.p_z.event_shape == exam.encoded.mu.shape  # one for each
    with exam.evaluating():
        z = exam.p_z.sample(() if apart else (exam.n,))
        made = exam.meant(called("decode", exam.decode, z, *exam.told))
        score = exam.score(made, exam.family)
    if bool(score.isnan().any()):
        return _fault("samples", "decoded draws of the prior are NaN", "look at the decoder")
    if not isinstance(exam.p_z, Normal) or exam.p_z.batch_shape != z.shape[1:] or exam.told:
        return _ok("draws of the prior can be decoded")
    mu, var = (each.reshape(exam.n, -1) for each in (exam.q_z.mean, exam.q_z.variance))
    together = Normal(mu.mean(0), (var.mean(0) + mu.var(0, correction=0)).sqrt())
    prior = Normal(exam.p_z.mean.flatten(), exam.p_z.stddev.flatten())
    off = kl_divergence(together, prior).sum().item()
    if off > 1 + mu.shape[1] and exam.loss is not None and scale(exam).verdict == "ok":
        return _ok("the codes of the images lie elsewhere than draws of the prior", off,
                   "both terms have their weights: train longer")  # fmt: skip
    if off > 1 + mu.shape[1] and exam.loss is None and _barely_trained(exam):
        raise NotChecked("what is decoded is no nearer to the images than their average: the model "
                         "seems not to be trained yet")  # fmt: skip
    if off > 1 + mu.shape[1]:
        return _fault("prior-missed", "the codes of the images lie elsewhere than draws of the "
                      "prior, which decode to nothing that was trained",
                      "give the KL its full weight, or train longer", off)  # fmt: skip
    return _ok("the codes of the images lie where the prior draws from", off)


def _barely_trained(exam: Exam) -> bool:
    """Whether the decoder has learned no more than one average image; codes are anywhere then."""
    if exam.own_likelihood:
        return False
    x, error = _drawn(exam)
    return bool(error > x.var(0).mean())


def _drawn(exam: Exam) -> tuple[Tensor, Tensor]:
    """The images, a row each, and the squared error of a pixel in what is decoded for them."""
    x = exam.images.reshape(exam.n, -1)
    mean = exam.p_x(exam.decoded, exam.family).mean.reshape(exam.n, -1)
    return x, (x - mean).square().mean()


def density(exam: Exam) -> Finding:
    """Whether draws of the prior and its log-density are of one distribution."""
    z, log_p = exam.drawn_from(FITTED + KEPT)
    with exam.evaluating():
        found = agreement(z, log_p)
    words = f"the average of h(z) / p(z) over draws of p is {found.ratio:.3g} ± {found.error:.2g}"
    if not found.fault:
        return _ok(words)
    return _fault(found.fault, f"{words}, and should be 1", PRIOR_ADVICE[found.fault],
                  -math.log(found.ratio) if found.ratio > 0 else None)  # fmt: skip


PRIOR_ADVICE = {
    "mixture-by-unit": "sum the log-density of each component over the units of z first, and take "
    "the log-sum-exp over components then",
    "variance-in-sample": "a log-variance becomes a deviation by exp(0.5 * log_var), in sample as "
    "in log_prob",
    "prior-density": "compare sample and log_prob: exp(0.5 * log_var) in both, the sum over units "
    "before the log-sum-exp over components, and no constant left out",
}


def labels_used(exam: Exam) -> Finding:
    """Whether encoder and decoder listen to the labels."""
    if not exam.told:
        raise NotChecked("no labels were given")
    (y,) = exam.told
    other = y.roll(1, 0)
    with exam.evaluating():
        encoded = exam.encoding(exam.images, other)
        mean = exam.q_z.mean
        pair = [exam.score(exam.meant(called("decode", exam.decode, mean, each)), exam.family)
                for each in (y, other)]  # fmt: skip
    if torch.equal(y, other):
        raise NotChecked("all labels are alike; give images of several classes")
    deaf = []
    if torch.equal(encoded.mu, exam.encoded.mu) and torch.equal(
        encoded.spread, exam.encoded.spread
    ):
        deaf.append("encoder")
    if torch.equal(*pair):
        deaf.append("decoder")
    if deaf:
        return _fault(f"deaf-{deaf[-1]}", f"other labels change nothing in the {deaf[-1]}",
                      "give the labels to encoder and decoder")  # fmt: skip
    return _ok("encoder and decoder hear the labels",
               (pair[0] - pair[1]).mean().item())  # fmt: skip


CHECKS: dict[str, Callable[[Exam], Finding]] = {
    "range of the data": range_of_data,
    "two outputs of the encoder": heads,
    "noise": noise,
    "log-variance or deviation": deviation,
    "reparameterized gradient": reparameterized,
    "decoder's output": output,
    "likelihood sums to one": normalized,
    "draws of z in the loss": weights,
    "scale and sign of both terms": scale,
    "KL against draws": kl_value,
    "bound below the evidence": below,
    "collapse": collapse,
    "training and evaluation mode": modes,
    "draws in evaluation mode": measuring,
    "samples of the prior": samples,
    "density of the prior": density,
    "labels": labels_used,
}


# What the checks share ----------------------------------------------------------------------------


def _draws(exam: Exam) -> tuple[str, float]:
    """How z reads the spread: by the slope of z, which is that of one reading only."""
    seen = exam.seen
    if not seen.drawn:
        raise NotChecked("z was not drawn by the reader's code; give draw=")
    if seen.encoded.mu is seen.encoded.spread:
        raise NotChecked("mean and spread are one tensor")
    if _constant(seen):
        raise NotChecked("z is the mean, without noise; is a flag of the model in evaluation mode?")
    z, mu = torch.cat(list(seen.z)), seen.encoded.mu
    shift = _together(z - mu).detach()
    _, slope = gradients(_together(z).sum(), [mu, seen.encoded.spread])
    kinds = [seen.encoded.kind] if seen.encoded.kind == "scale_tril" else KINDS
    misfits = {}
    for kind in kinds:
        spread = seen.encoded.spread.detach().requires_grad_()
        log_deviation = DEVIATIONS[str(kind)](spread).log()
        (unit,) = torch.autograd.grad(log_deviation.sum(), spread)
        if kind == "scale_tril":
            unit, slope = unit.diagonal(dim1=-2, dim2=-1), slope.diagonal(dim1=-2, dim2=-1)
        misfits[str(kind)] = ((slope - shift * unit).norm() / slope.norm()).item()
    best = min(misfits, key=lambda each: misfits[each] if misfits[each] >= 0 else math.inf)
    if not slope.any() or not misfits[best] < FITS:
        raise NotChecked("z is no mean plus deviation times noise, by any reading of the spread")
    return best, misfits[best]


def _together(draws: Tensor) -> Tensor:
    """A sum over draws, with weights, or pairs of opposite noise would cancel."""
    return torch.einsum("k...,k->...", draws, torch.linspace(1, 2, len(draws)).to(draws))


def _constant(seen: Pass) -> bool:
    return all(bool((z == seen.encoded.mu).all()) for z in seen.z)


def _kl(exam: Exam) -> KLTerm:
    if exam.kl is None or not exam.kl.misfit < FITS:
        raise NotChecked("the loss has no KL to read it from")
    return exam.kl


def _mixed_up(exam: Exam, readings: dict[str, str]) -> float | None:
    """The KL between the two readings of q(z | x)."""
    first, *_, last = readings.values()
    apart = kl_divergence(exam.encoded.normal(first), exam.encoded.normal(last))
    off = apart.reshape(exam.n, -1).sum(1).mean().item()
    return off if math.isfinite(off) else None


def _once(exam: Exam, logits: Tensor) -> float | None:
    """What the second sigmoid costs: the cross-entropy with it less that without."""
    if not bool(((logits > 0) & (logits < 1)).all()):
        return None
    flat = exam.images.reshape(logits.shape)
    once = Bernoulli(probs=logits, validate_args=False).log_prob(flat)
    twice = Bernoulli(logits=logits, validate_args=False).log_prob(flat)
    return ((once - twice).sum() / exam.n).item()


def _log_mass(p_x: Distribution, gray: bool) -> Tensor:
    """The log of the sum, or integral, of each pixel's likelihood over the pixel's values."""
    if isinstance(p_x, Bernoulli) and not gray:
        values = torch.tensor([0.0, 1.0]).to(p_x.mean)
        log_prob = torch.stack([p_x.log_prob(v.expand(p_x.batch_shape)) for v in values])
        return log_prob.logsumexp(0)
    unit = isinstance(p_x, Bernoulli) or getattr(p_x.support, "upper_bound", 0) == 1
    # Densities may have a cusp at their mean, so the integral has two halves.
    nodes, node_weights = np.polynomial.legendre.leggauss(8 if unit else 32)
    middle = torch.full_like(p_x.mean, 0.5) if unit else p_x.mean
    half = torch.full_like(p_x.mean, 0.5) if unit else 20 * p_x.stddev
    logs = [
        p_x.log_prob(middle + side * half * (1 + node) / 2) + (half * weight / 2).log()
        for side in (-1, 1)
        for node, weight in zip(nodes.tolist(), node_weights.tolist(), strict=True)
    ]
    return torch.stack(logs).logsumexp(0)


def _log_mean(log_weights: Tensor) -> Tensor:
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def _spread_out(values: Tensor) -> bool:
    mean = values.mean()
    return bool((values - mean).abs().max() > 0.01 * mean.abs())


def _typical_kl(exam: Exam) -> float:
    return exam.drawn_kl(exam.kind)[0]


def _over(exam: Exam, weight: float, of_units: bool = False) -> str:
    """The weight of a term for one image, as what it was divided by."""
    divisors = {"images": exam.n, "pixels": exam.pixels}
    if of_units:
        divisors["units"] = exam.encoded.mu[0].numel()
    single = {f"averaged over {name}": number for name, number in divisors.items()}
    pairs = {
        f"averaged over images and {name}": exam.n * number
        for name, number in divisors.items()
        if name != "images"
    }
    for words, number in {"summed": 1, **single, **pairs}.items():
        if math.isclose(abs(weight) * number, 1, rel_tol=0.005):
            return words if weight > 0 else f"{words} with a minus"
    return f"times {weight:.3g}"
