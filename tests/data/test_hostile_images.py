import base64
import os
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from toys import Cell

from promptprism.data import images
from promptprism.data.images import check_images, load_image, looks_like_image
from promptprism.errors import PromptPrismError


def test_hostile_postscript_starts_no_program(tmp_path, monkeypatch):
    (tmp_path / "cat.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    started = []
    sys.addaudithook(lambda event, _: started.append(event) if event == "subprocess.Popen" else None)
    with pytest.raises(PromptPrismError, match=r"cat\.png' is not an image that can be read"):
        load_image(tmp_path / "cat.png")
    assert not started
    for name, save in (("a.tga", "TGA"), ("a.ico", "ICO"), ("a.pcx", "PCX"), ("a.jp2", "JPEG2000")):
        Image.new("RGB", (16, 16)).save(tmp_path / name, save)
        with pytest.raises(PromptPrismError, match="is not an image that can be read"):
            load_image(tmp_path / name)


def test_hostile_header_that_claims_millions_of_pixels(tmp_path):
    gif = b"GIF89a" + struct.pack("<HHBBB", 14_000, 14_000, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    gif += b"," + struct.pack("<HHHHB", 0, 0, 14_000, 14_000, 0) + b"\2\2\x4c\1\0;"
    (tmp_path / "bomb.gif").write_bytes(gif)
    assert len(gif) < 45
    with pytest.raises(PromptPrismError, match=rf"claims 14000 x 14000 pixels in {len(gif)} bytes"):
        load_image(tmp_path / "bomb.gif")
    with pytest.raises(PromptPrismError, match="image 'cell 7' claims 14000 x 14000 pixels"):
        load_image(Cell(gif))


def test_hostile_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path, what in ((tmp_path / "pipe.png", "a named pipe"), ("/dev/zero", "a device")):
        with pytest.raises(PromptPrismError, match=f"'{path}' is {what}, not a file"):
            load_image(path)
    with pytest.raises(PromptPrismError, match="a named pipe"):
        check_images([tmp_path / "pipe.png"])


HEIC = (
    "c-muNV30{GsVvAy%}izhg51nBLl8SRGck>Ufw3kxwIq=N0u(b+a*CjAhJwuG5(YG&l$nzcHpIn&fe{FSfN=qY1_EOsR?f`KO"
    "9S&jqM|@fDif5KQI>27V)7MamgK^f{K+gRDge@VG7FOPfpjTQnKL6ZNN56Bk=zG{KYxGxU|`^9P5|nVaA4$N{Qn=MfElEM8H"
    "D6^F*zgxB{iKG8PQ}GC^WK8d$n%Xvj>U`4m2<@@HBvgTatjP*<2V879Z>c+98~rpHq~VoKpc5<z-+4Dq#@GEG|feddvZeHIj"
    "1@K@Jmux*bga|Ns92kY<9>An}6CicFA3W)2PxASIDmkP8cAV6d?^GBLBZ0NK{LDT$yk*4JQMFRYl7?C?Y2d;0&UXT<-`TJry"
    "3-SOqtin0eTDKyM>@R%GMz%3@w&|bDQ?9LAWH$`PH"
)


def test_heic(tmp_path, monkeypatch):
    content = zlib.decompress(base64.b85decode(HEIC))
    (tmp_path / "red.jpg").write_bytes(content)
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(PromptPrismError, match=r"red\.jpg' is a HEIC: pip install 'promptprism\[heif\]'"):
        load_image(tmp_path / "red.jpg")
    monkeypatch.undo()
    pytest.importorskip("pi_heif")
    assert np.abs(np.subtract(load_image(tmp_path / "red.jpg").getpixel((0, 0)), (220, 30, 30))).max() < 6
    assert np.abs(np.subtract(load_image(Cell(content)).getpixel((0, 0)), (220, 30, 30))).max() < 6


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "PPM"])
def test_contents_are_known_without_their_names(tmp_path, kind):
    Image.new("RGB", (32, 32), (255, 0, 0)).save(tmp_path / "x", kind)
    assert looks_like_image((tmp_path / "x").read_bytes()[:32])
    for text in (b"", b"BMW and others, not pictures", b"P5 is a class", b"RIFF\0\0\0\0WAVE", b"II, a text"):
        assert not looks_like_image(text)


def encodings():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 16, 3), dtype=np.uint8))
    return [(kind, noise) for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")]


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.sampled_from(encodings()), st.data())
def test_fuzz_damaged_images_are_errors_or_pictures(tmp_path, encoding, data):
    kind, picture = encoding
    picture.save(tmp_path / "x", kind)
    content = bytearray((tmp_path / "x").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = load_image(Cell(bytes(content[:cut])), least=data.draw(st.sampled_from([None, 4])))
        except PromptPrismError as error:
            assert "cell 7" in str(error)
        else:
            assert image.mode == "RGB" and image.width * image.height <= images.MOST_PIXELS
