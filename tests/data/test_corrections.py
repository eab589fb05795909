import warnings
from pathlib import Path

import pytest

from promptprism.data.corrections import Correction, append, read_corrections
from promptprism.errors import DataWarning, PromptPrismError


@pytest.fixture
def photos(tmp_path):
    for name in ("a.jpg", "b.jpg", "deep/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_what_is_appended_is_read_and_the_last_line_of_a_photo_counts(photos):
    file = photos / "review.csv"
    append(file, [Correction(photos / "a.jpg", "rose", "tulip", 0.25, "2026-01-01T00:00:00+00:00")])
    assert file.read_text() == (
        "path,label,predicted,probability,at\na.jpg,rose,tulip,0.25,2026-01-01T00:00:00+00:00\n"
    )
    append(
        file, [Correction(photos / "deep/c.jpg", 'a "quoted", name'), Correction(photos / "a.jpg", "iris")]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # who changes a label later contradicts nobody
        assert read_corrections(file) == {photos / "a.jpg": "iris", photos / "deep/c.jpg": 'a "quoted", name'}
        append(file, [Correction(photos / "a.jpg", "")])
        assert read_corrections(file) == {photos / "deep/c.jpg": 'a "quoted", name'}


def test_photos_elsewhere_keep_their_whole_path(photos, tmp_path_factory):
    file = tmp_path_factory.mktemp("other") / "new" / "review.csv"
    append(file, [Correction(photos / "a.jpg", "rose")])
    assert read_corrections(file) == {photos / "a.jpg": "rose"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_edited_by_hand_are_read(photos, encoding):
    file = photos / "review.csv"
    file.write_text("label;path\nRose;a.jpg\nStiefmütterchen;deep\\c.jpg", encoding=encoding)
    names = ["rose", "Stiefmütterchen"]
    assert read_corrections(file, names) == {
        photos / "a.jpg": "rose",
        photos / "deep/c.jpg": "Stiefmütterchen",
    }
    if encoding == "utf-16":
        with pytest.raises(PromptPrismError, match="save it as UTF-8"):
            append(file, [Correction(photos / "b.jpg", "rose")])
    else:
        append(file, [Correction(photos / "b.jpg", "rose")])
        assert file.read_text(encoding).splitlines()[-2:] == ["Stiefmütterchen;deep\\c.jpg", "rose;b.jpg"]
        assert read_corrections(file, names)[photos / "b.jpg"] == "rose"


def test_contradictions_and_missing_photos_are_said(photos):
    file = photos / "review.csv"
    file.write_text("path,label\na.jpg,rose\nb.jpg,rose\nb.jpg,rose\na.jpg,iris\ngone.jpg,iris\n")
    with pytest.warns(DataWarning) as said:
        assert read_corrections(file) == {
            photos / "a.jpg": "iris",
            photos / "b.jpg": "rose",
            photos / "gone.jpg": "iris",
        }
    contradiction, missing = (str(one.message) for one in said)
    assert "1 photos several labels" in contradiction and "lines 2 and 5: a.jpg" in contradiction
    assert "1 of 3 photos" in missing and "gone.jpg" in missing


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"path,label\na.jpg,daisy\n", "line 2 .* label 'daisy', which is none of the 1 classes: .* 'rose'"),
        (b"path,label\n,rose\n", "line 2 .* no path"),
        (b"photo,label\na.jpg,rose\n", "no column 'path'"),
        (b"path,label\na.jpg,\xfcber\n", "line 2 .* cp1252.*save it as UTF-8"),
        (b'path,label\na.jpg,"rose\n', "quote that is not closed"),
    ],
)
def test_what_is_no_correction_is_refused(photos, content, words):
    file = photos / "review.csv"
    file.write_bytes(content)
    with pytest.raises(PromptPrismError, match=words):
        read_corrections(file, ["rose"])


def test_nothing_is_added_to_another_file(photos):
    file = photos / "review.csv"
    file.write_text("name,score\nx,1\n")
    with pytest.raises(PromptPrismError, match="no column 'path'"):
        append(file, [Correction(photos / "a.jpg", "rose")])
    assert file.read_text() == "name,score\nx,1\n"
    with pytest.raises(PromptPrismError, match="no such file of corrections"):
        read_corrections(Path("nowhere.csv"))


def test_spaces_around_a_name_are_kept_where_a_photo_has_them(photos):
    (photos / " x.png").touch()
    file = photos / "review.csv"
    append(file, [Correction(photos / " x.png", "rose")])
    file.write_text(file.read_text() + " a.jpg , iris \n")
    assert read_corrections(file) == {photos / " x.png": "rose", photos / "a.jpg": "iris"}
