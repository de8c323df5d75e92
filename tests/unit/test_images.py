"""Images are one value that fits together, and what is done to them keeps its meaning."""

import numpy as np
import pytest
import torch

from vae_book.images import Images, binarize, quadrants, whole


def numbered(n=6, channels=1, height=4, width=4, **more):
    """Images that are all different, each with its number as label and what is told."""
    images = torch.arange(n * channels * height * width) / (n * channels * height * width)
    told = torch.arange(n)[:, None] * 10
    images = images.reshape(n, channels, height, width)
    return Images(images, torch.arange(n), "numbers", "train", told=told, **more)


# The value ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "places"),
    [
        (slice(1, 4), [1, 2, 3]),
        (slice(None, None, 2), [0, 2, 4]),
        (slice(6, None), []),
        ([4, 0, 0], [4, 0, 0]),
        ([], []),
        (torch.tensor([5, 1]), [5, 1]),
        (torch.tensor([5, 1], dtype=torch.int32), [5, 1]),
        (np.array([2, 3]), [2, 3]),
        (torch.arange(6) % 2 == 1, [1, 3, 5]),
        (np.arange(6) > 3, [4, 5]),
        ([True, False, False, True, False, False], [0, 3]),
        (2, [2]),
        (-1, [5]),
        (np.int64(3), [3]),
        (torch.tensor(3), [3]),
    ],
)
def test_some_of_the_images_keep_their_labels_and_what_is_told(rows, places):
    data = numbered(classes=tuple("abcdef"))
    some = data[rows]
    expected = data.images.numpy()[np.array(places, dtype=int)]
    assert np.array_equal(some.images, expected)
    assert some.labels.tolist() == places
    assert some.told.tolist() == [[10 * place] for place in places]
    assert (some.source, some.split, some.classes) == ("numbers", "train", tuple("abcdef"))
    assert len(some) == len(places)


def test_images_are_gone_through_one_by_one():
    assert [image.labels.item() for image in numbered()] == [0, 1, 2, 3, 4, 5]
    for place in (6, -7):
        with pytest.raises(IndexError):
            numbered()[place]


def test_shape_is_that_of_one_image():
    assert numbered(5, 3, 2, 7).shape == (3, 2, 7)


def test_other_images_keep_everything_else():
    data = numbered(classes=tuple("abcdef"))
    binary = data.with_images(binarize(data.images))
    assert set(binary.images.unique().tolist()) == {0, 1}
    assert (binary.labels, binary.told) == (data.labels, data.told)
    assert (binary.source, binary.split, binary.classes) == (data.source, data.split, data.classes)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_labels_are_kept_as_int64_which_torch_takes_for_places(kind):
    data = Images(torch.zeros(3, 1, 2, 2), torch.tensor([2, 0, 1], dtype=kind), "some", "test")
    assert data.labels.dtype == torch.int64
    assert torch.tensor([5, 6, 7])[data.labels].tolist() == [7, 5, 6]


IMAGES, LABELS = torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 2])


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("images", "labels", "more", "message"),
    [
        (IMAGES[0], LABELS, {}, r"^images: .*\(n, channels, height, width\), got .*\(1, 2, 2\)"),
        (np.zeros((3, 1, 2, 2)), LABELS, {}, "^images: expected a tensor .* got ndarray"),
        (torch.zeros(3, 1, 0, 2), LABELS, {}, "^images: expected a tensor of shape"),
        (
            IMAGES.byte(),
            LABELS,
            {},
            r"^images: .* got torch.uint8; divide .* images.float\(\) / 255",
        ),
        (IMAGES * torch.nan, LABELS, {}, "^images: expected finite numbers, got infinity or NaN"),
        (IMAGES + torch.inf, LABELS, {}, "^images: expected finite numbers"),
        (IMAGES, LABELS[:2], {}, "^labels: .* a row for each of 3 images"),
        (IMAGES, [0, 1, 2], {}, "^labels: expected a tensor .* got list"),
        (IMAGES, LABELS[:, None], {}, r"^labels: expected whole numbers of shape \(n,\)"),
        (IMAGES, LABELS.float(), {}, "^labels: expected whole numbers .* got torch.float32"),
        (IMAGES, LABELS - 1, {}, "^labels: expected values between 0 and inf, got -1"),
        (IMAGES, LABELS, {"classes": ("a", "b")}, "^labels: .* between 0 and 1, got 0 to 2"),
        (IMAGES, LABELS, {"told": torch.zeros(2, 5)}, "^told: .* a row for each of 3 images"),
        (IMAGES, LABELS.to("meta"), {}, "^labels: .* on cpu, got .* on meta"),
    ],
)
def test_what_does_not_fit_together_is_refused(images, labels, more, message):
    with pytest.raises(ValueError, match=message):
        Images(images, labels, "some", "train", **more)


def test_no_images_are_images_too():
    assert len(Images(IMAGES[:0], LABELS[:0], "none", "train")) == 0


# Quarters -----------------------------------------------------------------------------------------


def quarters_of(images):
    """Bottom left, top left, top right, bottom right: clockwise."""
    h, w = images.shape[2] // 2, images.shape[3] // 2
    corners = [np.s_[h:, :w], np.s_[:h, :w], np.s_[:h, w:], np.s_[h:, w:]]
    return [images.numpy()[:, :, *corner] for corner in corners]


@pytest.mark.parametrize("seen", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 4, 6), (3, 6, 2)])
def test_images_are_cut_clockwise_from_the_bottom_left_and_put_together_again(seen, shape):
    data = numbered(5, *shape)
    cut, quarters = quadrants(data, seen), quarters_of(data.images)
    assert np.array_equal(cut.told, np.concatenate(quarters[:seen], axis=1))
    assert np.array_equal(cut.images, np.concatenate(quarters[seen:], axis=1))
    assert torch.equal(whole(cut.told, cut.images), data.images)
    assert torch.equal(whole(cut.told[2], cut.images[2]), data.images[2])
    several = torch.stack([cut.images, cut.images.flip(0)])  # two completions of each
    found = whole(cut.told.expand(2, *cut.told.shape), several)
    assert torch.equal(found[0], data.images)
    assert found.shape == (2, *data.images.shape)
    assert torch.equal(cut.labels, data.labels)
    assert (len(cut), cut.source, cut.split) == (5, "numbers", "train")


def test_one_quarter_is_seen_unless_more_are_asked_for():
    assert torch.equal(quadrants(numbered()).told, quadrants(numbered(), 1).told)


@pytest.mark.usefixtures("shapes_unchecked")
def test_what_cannot_be_cut_into_quarters_is_refused():
    for seen in (0, 4, -1, 1.5):
        with pytest.raises(ValueError, match=f"^seen: expected 1, 2 or 3 quarters, got {seen}$"):
            quadrants(numbered(), seen)
    for height, width in [(3, 4), (4, 3)]:
        with pytest.raises(ValueError, match=r"^data: expected images of even height and width"):
            quadrants(numbered(5, 1, height, width))


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_whole_has_four_quarters():
    for seen, rest in [(1, 2), (2, 3), (0, 0)]:
        parts = torch.zeros(5, seen, 2, 2), torch.zeros(5, rest, 2, 2)
        with pytest.raises(ValueError, match=f"^seen and rest: .* got {seen} and {rest} channels"):
            whole(*parts)


# Binary images ------------------------------------------------------------------------------------


def test_binarize_turns_gray_levels_into_frequencies():
    n = 20_000
    gray = torch.tensor([0.0, 0.05, 0.3, 0.5, 0.9, 1.0])
    draws = binarize(gray.expand(n, 6), torch.Generator().manual_seed(0))
    assert draws.shape == (n, 6)
    assert draws.dtype == gray.dtype
    assert set(draws.unique().tolist()) == {0, 1}
    assert ((draws.mean(0) - gray).abs() <= 4 * (gray * (1 - gray) / n).sqrt()).all()
    # Pixels are drawn one by one: neighbors do not move together.
    correlations = torch.corrcoef(draws[:, 1:5].T) - torch.eye(4)
    assert correlations.abs().max() < 4 / n**0.5


def test_binarize_depends_on_the_generator_alone():
    gray = torch.full((3, 1, 28, 28), 0.5)
    before = torch.get_rng_state()
    first, again, other = (
        binarize(gray, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert torch.equal(binarize(gray), first)


@pytest.mark.parametrize("pixel", [-0.01, 1.01, 255.0, float("nan")])
def test_binarize_refuses_what_is_no_probability(pixel):
    with pytest.raises(ValueError, match="between 0 and 1"):
        binarize(torch.tensor([0.5, pixel]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_binarize_on_the_gpu_gives_the_images_of_the_cpu():
    gray = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    on_gpu, on_cpu = (
        binarize(gray.to(device), torch.Generator().manual_seed(1)) for device in ("cuda", "cpu")
    )
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), on_cpu)
