import re
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as F
from toys import Cell

from promptprism.data import pixels
from promptprism.data.images import check_images, fitted, load_image, unreadable
from promptprism.data.names import LabelSpace
from promptprism.data.records import Record
from promptprism.errors import DataWarning, PromptPrismError
from promptprism.methods import CoOp, CoOpSettings
from promptprism.training.loop import learn

RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(image, path, **options):
    image.save(path, **options)
    return load_image(path)


def pixel(image, at=(0, 0)):
    assert image.mode == "RGB"
    return image.getpixel(at)


def test_path_string_pil_and_array_give_the_same_picture(tmp_path):
    array = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    for source in (
        path,
        str(path),
        Image.fromarray(array),
        array,
        array / 255.0,
        (array / 255).astype(np.float32),
    ):
        np.testing.assert_array_equal(np.asarray(load_image(source)), array)


def test_drawable_is_drawn():
    class Scene:
        def image(self):
            return Image.new("L", (2, 2), 7)

    assert pixel(load_image(Scene())) == (7, 7, 7)


def test_alpha_is_composited_on_white(tmp_path):
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    loaded = saved(image, tmp_path / "alpha.png")
    assert pixel(loaded) == RED and pixel(loaded, (1, 0)) == WHITE
    half = load_image(np.array([[[0, 0, 0, 51]]], dtype=np.uint8))
    assert pixel(half) == (204, 204, 204)
    assert load_image(Image.new("LA", (1, 1), (0, 255)).convert("La")).getpixel((0, 0)) == (0, 0, 0)
    grey = saved(Image.new("LA", (1, 1), (0, 0)), tmp_path / "la.png")
    assert pixel(grey) == WHITE


def test_palette_with_and_without_transparent_entry(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    loaded = saved(image, tmp_path / "p.png")
    assert pixel(loaded) == RED and pixel(loaded, (1, 0)) == (0, 0, 255)
    loaded = saved(image, tmp_path / "pt.png", transparency=1)
    assert pixel(loaded) == RED and pixel(loaded, (1, 0)) == WHITE


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    array = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    loaded = saved(Image.fromarray(array), tmp_path / "16.png")
    np.testing.assert_array_equal(np.asarray(loaded)[0, :, 0], [0, 100, 255])
    np.testing.assert_array_equal(np.asarray(load_image(array))[0, :, 0], [0, 100, 255])
    loaded = saved(Image.fromarray(array.astype(np.int32)), tmp_path / "32.tif")
    np.testing.assert_array_equal(np.asarray(loaded)[0, :, 0], [0, 100, 255])
    loaded = saved(Image.fromarray(np.array([[0, 0.4, 1]], dtype=np.float32)), tmp_path / "f.tif")
    np.testing.assert_array_equal(np.asarray(loaded)[0, :, 0], [0, 102, 255])


def test_bilevel_and_cmyk(tmp_path):
    assert pixel(saved(Image.new("1", (1, 1), 1), tmp_path / "1.png")) == WHITE
    red = pixel(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "c.jpg", quality=100))
    assert np.abs(np.subtract(red, RED)).max() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path, orientation):
    stored = Image.new("RGB", (16, 8), "white")
    stored.paste(RED, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = saved(stored, tmp_path / "e.png", exif=exif)
    assert loaded.size == ((16, 8) if orientation < 5 else (8, 16))
    # Where the stored picture's left half is to be seen, by the EXIF standard.
    corner = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}[
        orientation
    ]
    at = {"left": (1, 4), "right": (14, 4), "top": (4, 1), "bottom": (4, 14)}[corner]
    assert pixel(loaded, at) == RED


def test_first_frame_of_an_animated_gif_named_jpg(tmp_path):
    path = tmp_path / "animation.jpg"
    Image.new("RGB", (4, 4), RED).save(
        path, format="GIF", save_all=True, append_images=[Image.new("RGB", (4, 4), (0, 0, 255))]
    )
    assert pixel(load_image(path)) == RED


def test_one_pixel(tmp_path):
    assert load_image(np.zeros((1, 1), np.uint8)).size == (1, 1)
    assert saved(Image.new("RGB", (1, 1), RED), tmp_path / "1.png").size == (1, 1)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_large_pictures_are_shrunk_but_never_below_what_is_asked(tmp_path, name):
    ramp = np.linspace(0, 255, 900, dtype=np.uint8)[None, :, None].repeat(600, 0).repeat(3, 2)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ramp).save(tmp_path / name, exif=exif)
    whole = load_image(tmp_path / name)
    assert whole.size == (600, 900) == load_image(tmp_path / name, 301).size
    for least in (300, 100, 70):
        image = load_image(tmp_path / name, least)
        assert least <= min(image.size) < 2 * least
        peer = whole.resize(image.size, Image.Resampling.BOX)
        assert np.abs(np.asarray(image, int) - np.asarray(peer, int)).max() <= 3


def jpeg_bytes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    return (tmp_path / "whole.jpg").read_bytes()


def png_claiming(side):
    """A PNG header that promises a picture of side x side."""
    body = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 9) + b"IDAT"


@pytest.mark.parametrize(
    "content, says",
    [
        (lambda t: jpeg_bytes(t)[:-2000], "is truncated or damaged .*: replace or remove the file"),
        (lambda t: b"", "is empty: replace or remove it"),
        (lambda t: b"hello, world", "is not an image that can be read: replace or remove it, or convert"),
        (lambda t: png_claiming(14_200), r"is too large \(14200 x 14200 pixels, 200 million .*: shrink it"),
        (lambda t: png_claiming(60_000), "is too large .*: shrink it"),
    ],
)
def test_unreadable_files_are_named_with_the_remedy(tmp_path, content, says):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content(tmp_path))
    with pytest.raises(PromptPrismError, match=rf"image '{re.escape(str(path))}' {says}"):
        load_image(path)


@pytest.mark.slow
def test_photos_of_large_cameras_are_read_without_a_warning(tmp_path, recwarn):
    Image.new("1", (12_000, 9_000), 1).save(tmp_path / "large.png")
    limit = Image.MAX_IMAGE_PIXELS
    assert pixel(load_image(tmp_path / "large.png", 64)) == WHITE
    assert not recwarn.list and limit == Image.MAX_IMAGE_PIXELS < 12_000 * 9_000


def test_other_threads_may_crop_while_a_file_is_opened(tmp_path, monkeypatch):
    limits = []
    opened = Image.open
    monkeypatch.setattr(
        Image, "open", lambda *a, **k: (limits.append(Image.MAX_IMAGE_PIXELS), opened(*a, **k))[1]
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    load_image(tmp_path / "small.png")
    assert limits and all(2 * limit > 10**12 for limit in limits)  # as Pillow reckons in every crop


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(PromptPrismError, match=r"no such image: '.*nowhere\.jpg'"):
        load_image(tmp_path / "nowhere.jpg")
    with pytest.raises(PromptPrismError, match="An address is no file: download it"):
        load_image("https://example.org/a.jpg")
    with pytest.raises(PromptPrismError, match="is a folder, not an image"):
        load_image(tmp_path)


@pytest.mark.parametrize(
    "array, says",
    [
        (np.zeros((3, 8, 8), np.uint8), r"array of shape \(3, 8, 8\) and type uint8 is not an image"),
        (np.zeros((0, 8), np.uint8), "is not an image"),
        (np.full((2, 2), 255.0), r"values from 255 to 255: floats must lie in 0\.\.1"),
        (np.full((2, 2), np.nan), r"floats must lie in 0\.\.1"),
        (np.zeros((2, 2), np.int64), "type int64 is not an image: give uint8"),
    ],
)
def test_arrays_that_are_no_image(array, says):
    with pytest.raises(PromptPrismError, match=says):
        load_image(array)


def test_other_things_are_refused():
    with pytest.raises(PromptPrismError, match="cannot take an image from int"):
        load_image(3)


def test_stored_images_are_read_and_named(tmp_path):
    whole = jpeg_bytes(tmp_path)
    np.testing.assert_array_equal(
        np.asarray(load_image(Cell(whole))), np.asarray(load_image(tmp_path / "whole.jpg"))
    )
    for content, says in ((whole[:-2000], "is truncated or damaged"), (b"", "is empty"), (b"x", "is not an")):
        with pytest.raises(PromptPrismError, match=f"image 'cell 7' {says}"):
            load_image(Cell(content))


def test_a_pil_image_of_a_truncated_file(tmp_path):
    (tmp_path / "half.jpg").write_bytes(jpeg_bytes(tmp_path)[:-2000])
    with (
        Image.open(tmp_path / "half.jpg") as image,
        pytest.raises(PromptPrismError, match=r"half\.jpg' is tr"),
    ):
        load_image(image)


def test_unreadable_images_are_found_and_drawings_not_drawn(tmp_path):
    class Scene:
        def image(self):
            raise AssertionError("drawn")

    large = np.random.default_rng(0).integers(0, 255, (600, 600, 3), dtype=np.uint8)
    Image.fromarray(large).save(tmp_path / "large.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "large.jpg").read_bytes()[:-20_000])
    sources = [tmp_path / "large.jpg", tmp_path / "cut.jpg", Scene(), Cell(b""), large]
    steps = []
    found = unreadable(sources, lambda done, total: steps.append((done, total)))
    assert [re.search(r"cut\.jpg|cell 7", what)[0] for what in found] == ["cut.jpg", "cell 7"]
    assert steps == [(i, 5) for i in range(1, 6)]
    check_images(sources[:1])
    with pytest.raises(
        PromptPrismError, match=r"^2 of 5 training images cannot be read: image '.*cut\.jpg' is"
    ):
        check_images(sources)


def test_a_damaged_training_image_is_found_before_training(tmp_path, tiny, monkeypatch):
    records = []
    for label, colour in enumerate(("red", "blue")):
        for i in range(2):
            Image.new("RGB", (16, 16), colour).save(tmp_path / f"{colour}{i}.png")
            records.append(Record(tmp_path / f"{colour}{i}.png", label))
    (tmp_path / "blue1.png").write_bytes((tmp_path / "blue1.png").read_bytes()[:40])
    monkeypatch.setattr(CoOp, "forward", lambda *_: pytest.fail("training has started"))
    with pytest.raises(
        PromptPrismError, match=r"1 of 4 training images cannot be read: image '.*blue1\.png'"
    ):
        learn(CoOpSettings(epochs=1), tiny, LabelSpace(("red", "blue")), records)


@pytest.fixture
def nothing_said(monkeypatch):
    monkeypatch.setattr(pixels, "_SAID", set())


RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)


@pytest.mark.usefixtures("nothing_said")
@pytest.mark.parametrize("bits", [8, 10, 11, 12, 14, 16])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_grey_of_any_depth_is_scaled_by_its_bits(tmp_path, bits, name):
    array = np.rint(RAMP * (2**bits - 1)).astype(np.uint16)
    array[5, 7] = 65535  # a hot pixel
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = saved(Image.fromarray(array), tmp_path / name)
    found = np.asarray(loaded, int)[:, :, 0]
    found[5, 7] = np.rint(RAMP[5, 7] * 255)
    assert np.abs(found - np.rint(RAMP * 255)).max() <= 1
    said = [str(warning.message) for warning in caught if warning.category is DataWarning]
    assert len(said) == (bits < 16) and all(name in text and f"for {bits} bits" in text for text in said)
    np.testing.assert_array_equal(np.asarray(load_image(array)), np.asarray(loaded))


@pytest.mark.usefixtures("nothing_said")
@pytest.mark.parametrize(
    "low, high, black, white, says",
    [
        (0, 1, 0, 1, None),
        (0.2, 0.9, 0, 1, None),
        (0.5, 0.52, 0, 1, "hardly use the range of 0 to 1"),
        (0, 255, 0, 255, "taken for a range of 0 to 255"),
        (3, 9, 3, 9, "are stretched"),
        (-25, -3, -25, -3, "are stretched"),
        (0, 4000, 0, 4000, "are stretched"),
    ],
)
def test_floats_are_scaled_over_their_finite_values(tmp_path, low, high, black, white, says):
    array = (low + RAMP * (high - low)).astype(np.float32)
    wanted = np.rint((array - black) / (white - black) * 255)
    array[3, 3], array[4, 4], array[5, 5], array[6, 6] = np.nan, np.inf, -np.inf, 1e30
    wanted[3, 3], wanted[4, 4], wanted[5, 5], wanted[6, 6] = 0, 255, 0, 255
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = np.asarray(saved(Image.fromarray(array), tmp_path / "f.tif"), int)[:, :, 0]
    # The outermost thousandth, 5 pixels at each end, is set aside.
    assert np.abs(found - wanted).max() <= 1
    said = [str(warning.message) for warning in caught]
    assert len(said) == (says is not None) and all(says in text and "f.tif" in text for text in said)


@pytest.mark.usefixtures("nothing_said")
def test_a_range_is_said_once_for_its_kind(tmp_path):
    array = np.rint(RAMP * 2047).astype(np.uint16)
    with pytest.warns(DataWarning, match=r"image '.*0\.png': values from .* are taken for 11 bits") as caught:
        for place in range(3):
            saved(Image.fromarray(array), tmp_path / f"{place}.png")
    assert len(caught) == 1


def test_an_image_without_a_finite_value_is_named(tmp_path):
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(PromptPrismError, match=r"image '.*nan\.tif' has no finite value: replace"):
        load_image(tmp_path / "nan.tif")


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("least", [None, 10])
def test_strips_give_what_the_whole_gives(mode, least, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (83, 47, 4), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(noise[:, :, 0].astype(np.float32) / 255)
    else:
        image = Image.fromarray(noise).convert("RGB" if mode == "P" else mode)
        image = image.quantize(16) if mode == "P" else image
    whole = load_image(image, least)
    monkeypatch.setattr(pixels, "STRIP", 400)
    np.testing.assert_array_equal(np.asarray(load_image(image, least)), np.asarray(whole))


@pytest.mark.parametrize(
    "size",
    [
        (32, 32),
        (33, 32),
        (32, 35),
        (31, 90),
        (90, 31),
        (100, 67),
        (640, 481),
        (7, 5),
        (1, 1),
        (200, 4),
        (3, 99),
    ],
)
@pytest.mark.parametrize("side", [32, 47])
def test_a_picture_is_fitted_as_torchvision_does_it(size, side):
    noise = np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = theirs = Image.fromarray(noise)
    width, height = size
    if max(size) > 8 * min(size):
        theirs = F.center_crop(theirs, [min(height, 8 * width), min(width, 8 * height)])
    theirs = F.center_crop(F.resize(theirs, [side], F.InterpolationMode.BICUBIC), [side, side])
    assert np.array_equal(np.asarray(fitted(image, side)), np.asarray(theirs))
