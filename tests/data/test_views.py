from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from promptprism.data import views
from promptprism.data.views import VIEW_SETS, make_view, make_views, view_generator, view_names
from promptprism.errors import PromptPrismError

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
ALL = sorted(views._VIEWS)


def photo(width=60, height=40):
    array = np.random.default_rng(0).integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC)


def pixels(view):
    """Undo the normalisation: [3, H, W] in 0..255."""
    return view * torch.tensor(STD).view(3, 1, 1) * 255 + torch.tensor(MEAN).view(3, 1, 1) * 255


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (32, 32), (33, 200), (1, 1)])
def test_plain_view_is_resize_and_centre_crop(size):
    peer = v2.Compose(
        [
            v2.Resize(32, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(32),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    image = photo().resize(size)
    view = make_view("test", 32, MEAN, STD)(image, view_generator(0))
    torch.testing.assert_close(view, peer(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [(60, 40), (1, 1), (4000, 2)])
def test_every_view_of_every_shape_is_finite_and_in_range(name, size):
    view = make_view(name, 16, MEAN, STD)
    for seed in range(5):
        out = view(Image.new("RGB", size, "teal"), view_generator(seed))
        assert out.shape == (3, 16, 16) and out.dtype == torch.float32
        assert pixels(out).min() > -0.01 and pixels(out).max() < 255.01


def test_views_depend_on_seed_epoch_index_and_template_only():
    make = make_views(view_names("set2", 4), 32, MEAN, STD)
    first = make(photo(), 1, 2, 3)
    assert first.shape == (4, 3, 32, 32)
    torch.rand(7)
    np.random.rand(7)
    before = torch.get_rng_state()
    assert torch.equal(make(photo(), 1, 2, 3), first)
    assert torch.equal(torch.get_rng_state(), before), "the global generator must stay untouched"
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not torch.equal(make(photo(), *other), first)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(out, first) for out in pool.map(lambda _: make(photo(), 1, 2, 3), range(16)))


def test_templates_with_the_same_view_draw_their_own_numbers():
    both = make_views(view_names("maple", 2), 32, MEAN, STD)(photo(), 1, 0, 0)
    assert not torch.equal(both[0], both[1])


@pytest.mark.slow
def test_random_crop_has_the_distribution_of_torchvision():
    ramp = np.zeros((100, 150, 3), np.uint8)
    ramp[:, :, 0] = np.arange(150)
    ramp[:, :, 1] = np.arange(100)[:, None]
    image = Image.fromarray(ramp)
    view = make_view("maple", 8, (0, 0, 0), (1, 1, 1))
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(8, (0.08, 1), interpolation=v2.InterpolationMode.BICUBIC)
    peer = v2.Compose([crop, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def extent(x):  # width and height of the crop, in pixels of the picture
        return torch.stack([(x[0, 0, -1] - x[0, 0, 0]).abs(), x[1, -1, 0] - x[1, 0, 0]]) * 255

    ours = torch.stack([extent(view(image, view_generator(0, 0, i))) for i in range(1500)])
    theirs = torch.stack([extent(peer(image)) for _ in range(1500)])
    # Means near 70, standard error of each about 0.6.
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=3.0, rtol=0)
    torch.testing.assert_close(ours.std(0), theirs.std(0), atol=2.5, rtol=0)


def test_set_one_keeps_the_frame_and_flips_half_of_the_time():
    view, plain = (
        make_view("set1:0", 32, MEAN, STD),
        make_view("test", 32, MEAN, STD)(photo(), view_generator(0)),
    )
    outs = [view(photo(), view_generator(0, 0, i)) for i in range(200)]
    straight = sum(torch.equal(out, plain) for out in outs)
    assert straight + sum(torch.equal(out, plain.flip(2)) for out in outs) == 200
    assert 70 < straight < 130


def test_grey_view_loses_colour_half_of_the_time():
    outs = [pixels(make_view("set1:2", 32, MEAN, STD)(photo(), view_generator(0, 0, i))) for i in range(200)]
    assert 70 < sum(bool((out[0] - out[2]).abs().max() < 0.01) for out in outs) < 130


def test_rand_augment_operations_are_torchvisions():
    peer, image = v2.RandAugment(), photo(32, 32)
    space = peer._AUGMENTATION_SPACE
    assert len(space) == len(views._OPERATIONS)
    for (name, (magnitudes, signed)), ours in zip(space.items(), views._OPERATIONS, strict=True):
        for sign in (1, -1):
            magnitude = 0.0 if (all_ := magnitudes(31, 32, 32)) is None else float(all_[9])
            theirs = peer._apply_image_or_video_transform(
                image, name, magnitude * (sign if signed else 1), v2.InterpolationMode.NEAREST, {}
            )
            np.testing.assert_array_equal(np.asarray(ours(image, sign * 9 / 30)), np.asarray(theirs), name)


def test_sets_cycle_and_unknown_names_are_told():
    assert view_names("set1", 6) == ("set1:0", "set1:1", "set1:2", "set1:3", "set1:0", "set1:1")
    assert view_names("maple", 2) == ("maple", "maple")
    assert {name for names in VIEW_SETS.values() for name in names} == set(ALL)
    with pytest.raises(PromptPrismError, match="'set3': choose one of set1, set2, maple, half, flip, test"):
        view_names("set3", 4)
    with pytest.raises(PromptPrismError, match="unknown view 'set1:9': choose one of test, maple"):
        make_view("set1:9", 32, MEAN, STD)
