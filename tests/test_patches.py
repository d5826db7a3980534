"""Whitening has the filter that it says; patches are where they were, of mean 0 and variance 1."""

import math

import numpy as np
import pytest
import torch
from real import real

from ppvae.data import load, patches, photographs, whiten, whitening_gain


def delta(height, width):
    """An image of one bright pixel, of all frequencies alike."""
    image = torch.zeros(1, height, width, dtype=torch.float64)
    image[0, 5, 7] = 1
    return image


@pytest.mark.parametrize("shape", [(64, 64), (33, 48), (40, 21)])
@pytest.mark.parametrize("cutoff", [0.1, 0.4])
def test_the_response_to_a_delta_is_the_filter(shape, cutoff):
    """f exp(-(f / f0)^4), written out for each pair of frequencies, whatever the image's sides."""
    height, width = shape
    spectrum = torch.fft.fft2(whiten(delta(*shape), cutoff)[0]).abs()
    for i in range(height):
        for j in range(width):
            f = math.hypot(min(i, height - i) / height, min(j, width - j) / width)
            assert float(spectrum[i, j]) == pytest.approx(
                f * math.exp(-((f / cutoff) ** 4)), abs=1e-12
            )


def test_the_gain_at_a_twentieth_of_a_cycle_per_pixel():
    """0.047 for the filter; half of it for one that is centered, on a spectrum that is not."""
    shape, cutoff = (64, 64), 0.5
    response = torch.fft.fft2(whiten(delta(*shape), cutoff)[0]).abs()
    assert float(response[0, 3]) == pytest.approx(0.047, abs=5e-4)  # 3 / 64 = 0.0469
    mistaken = torch.fft.fftshift(whitening_gain(shape, cutoff))
    assert float(mistaken[0, 3]) == pytest.approx(0.0245, abs=1e-4)


def test_the_spectrum_of_natural_images_becomes_flat():
    """Amplitudes 1/f come out as exp(-(f / f0)^4), phases as they were."""
    f = torch.hypot(*torch.meshgrid(*(torch.fft.fftfreq(48),) * 2, indexing="ij")).double()
    phases = torch.fft.fft2(torch.randn(1, 48, 48, dtype=torch.float64))
    natural = torch.fft.ifft2(phases / f.clamp(min=1e-3)).real
    flat = torch.fft.fft2(whiten(natural, 0.4))
    expected = phases * (-((f / 0.4) ** 4)).exp()
    expected[0, 0, 0] = 0
    assert torch.allclose(flat, expected, atol=1e-9)


def test_patches_are_those_of_the_images():
    """In order: image by image, row by row, each scaled by its own mean and deviation."""
    images = torch.randn(2, 21, 19, dtype=torch.float64)
    found = patches(images, 6)
    assert found.shape == (2 * 3 * 3, 1, 6, 6)
    for n, x in enumerate(found.squeeze(1)):
        image, row, column = n // 9, n // 3 % 3, n % 3
        p = images[image, 6 * row : 6 * row + 6, 6 * column : 6 * column + 6].numpy()
        expected = (p - p.mean()) / p.std(ddof=1)
        assert np.allclose(x.numpy(), expected, atol=1e-12)


def test_photographs_are_whitened_and_parted():
    train, test = photographs()
    assert train.shape == (2 * 26 * 32, 1, 16, 16) and test.shape == (2 * 26 * 8, 1, 16, 16)
    for part in (train, test):
        assert part.dtype == torch.float32
        assert torch.allclose(part.mean((1, 2, 3)), torch.zeros(len(part)), atol=1e-5)
        assert torch.allclose(part.square().sum((1, 2, 3)), torch.tensor(255.0), rtol=1e-4)
    power = torch.fft.fft2(train.double()).abs().square().mean((0, 1))
    assert float(power[0, 1:4].max() / power[0, 1:4].min()) < 2.5  # 1.7; not whitened: 6.7
    assert float(power[0, 8] / power[0, 3]) < 0.15  # 0.08: beyond the cutoff it falls
    split = load("photographs", flat=False)
    assert torch.equal(split.train, train) and torch.equal(split.test, test)
    assert split.image == (1, 16, 16)


def test_real_whitened_images():
    split = load("olshausen_whitened", root=real("olshausen_whitened").parent)
    assert split.train.shape == (8192, 256) and split.test.shape == (2048, 256)
    assert split.image == (1, 16, 16)
    assert float(split.test.square().sum(1).mean()) == pytest.approx(255.0, rel=1e-5)


def write(root, images):
    (root / "olshausen_whitened").mkdir()
    np.savez(root / "olshausen_whitened" / "olshausen_images.npz", images=images)


def test_the_last_two_images_are_held_out(tmp_path):
    images = np.random.default_rng(0).normal(size=(10, 32, 48)).astype("f4")
    write(tmp_path, images)
    split = load("olshausen_whitened", root=tmp_path, flat=False, validation_share=0.25)
    assert len(split.validation) == 12 and len(split.train) == 36
    assert torch.equal(split.test, patches(torch.from_numpy(images[8:])))


@pytest.mark.parametrize("broken", ["absent", "wrong name", "three axes too few", "too few"])
def test_missing_whitened_images_name_their_layout(tmp_path, broken):
    if broken == "wrong name":
        (tmp_path / "olshausen_whitened").mkdir()
        np.savez(tmp_path / "olshausen_whitened" / "olshausen_images.npz", scenes=np.zeros(3))
    elif broken == "three axes too few":
        write(tmp_path, np.zeros(3))
    elif broken == "too few":
        write(tmp_path, np.random.default_rng(0).normal(size=(8, 32, 32)))
    with pytest.raises(FileNotFoundError, match=r"np.savez\(path, images=images\)"):
        load("olshausen_whitened", root=tmp_path)


@pytest.mark.parametrize("binarize", ["threshold", "fixed", "dynamic"])
@pytest.mark.parametrize("name", ["olshausen_whitened", "photographs"])
def test_whitened_data_are_never_binarized(name, binarize):
    with pytest.raises(ValueError, match="real numbers of mean 0"):
        load(name, binarize=binarize)


@pytest.mark.parametrize("function", [whiten, patches])
@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.rand(20, 20), r"shape \(N, H, W\).*\(20, 20\)"),
        (torch.rand(2, 3, 20, 20), "average color channels"),
        (torch.zeros(2, 20, 20, dtype=torch.uint8), "divide bytes by 255"),
        (torch.rand(0, 20, 20), "floats of shape"),
        (torch.rand(2, 20, 20).index_fill(0, torch.tensor(1), math.nan), "1 of 2 .* hold NaN"),
        (torch.rand(2, 20, 20) / 0, "2 of 2 images hold NaN or infinity"),
        (torch.ones(2, 20, 20), "2 of 2 .* are constant"),
        (torch.rand(2, 3, 20), r"images of \(3, 20\) pixels"),
    ],
)
def test_what_is_no_gray_image_is_refused(function, images, words):
    with pytest.raises(ValueError, match=words):
        function(images)


def test_a_constant_patch_is_refused():
    images = torch.rand(1, 32, 32)
    images[0, :16, :16] = 0.5
    with pytest.raises(ValueError, match="1 of 4 patches are constant"):
        patches(images)


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="hold no patch of size 1"):
        patches(torch.rand(1, 32, 32), 1)
    for cutoff in (0.0, math.nan):
        with pytest.raises(ValueError, match="cutoff must be positive"):
            whiten(torch.rand(1, 32, 32), cutoff)
