import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import listed, put

from promptprism.data.reading import Reading
from promptprism.data.tables import read_csv
from promptprism.errors import DataWarning, PromptPrismError


def write_csv(folder, text, encoding="utf-8"):
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv(tmp_path, separator):
    put(tmp_path, "x/1.png", "x/2.png", "3.png")
    text = "Path,Label,split\r\nx/1.png,dog,train\r\nx/2.png,cat,TEST\r\n3.png,cat,\r\n".replace(
        ",", separator
    )
    data = read_csv(write_csv(tmp_path, text.replace(",", separator), "utf-8-sig"))
    assert data.class_names == ("cat", "dog")
    assert listed(tmp_path, data.train) == [("x/1.png", 1), ("3.png", 0)]
    assert listed(tmp_path, data.test) == [("x/2.png", 0)]


def test_csv_with_commas_in_quotes_and_an_absolute_path(tmp_path):
    put(tmp_path, "a, b.png")
    data = read_csv(write_csv(tmp_path, f'label,path\n"cat, black","{tmp_path / "a, b.png"}"\n'))
    assert data.class_names == ("cat, black",) and data.train[0].source == tmp_path / "a, b.png"


@pytest.mark.parametrize(
    "text, says",
    [
        ("file,label\n1.png,a\n", r"has no column 'path' \(it has: file, label\): its first line must"),
        ("path,class\n1.png,a\n", r"has no column 'label' \(it has: path, class\)"),
        ("", r"has no column 'path' \(it has: nothing\)"),
        ("path,label\n", "lists no images"),
        ("path,label\n1.png,fox, red\n", r"line 2 of CSV '.*' has more fields .*comma into quotes"),
        ("\n\npath;label\n1.png;a\n1.png\n", r"line 5 of CSV '.*' has no label: fill it in"),
        ("path,label\n1.png,a\n1.png\n", r"line 3 of CSV '.*' has no label: fill it in"),
        ("path,label\n1.png,  \n", r"line 2 of CSV '.*' has no label"),
        ("path,label\n,a\n", r"line 2 of CSV '.*' has no path"),
        ("path,label,split\n1.png,a,holdout\n", "line 2 of CSV '.*' has split 'holdout': use train, val"),
        ('path,label,split\n1.png,a,"0\n0"\n', r"line 2 of CSV '.*' has split '0\\n0': use train, val"),
        ("path,label\n1.png,a\nno.png,a\n", r"1 of 2 images of CSV '.*' do not exist, first: '.*no\.png'\."),
    ],
)
def test_csv_errors(tmp_path, text, says):
    put(tmp_path, "1.png")
    with pytest.raises(PromptPrismError, match=says):
        read_csv(write_csv(tmp_path, text))


def test_csv_that_is_no_text(tmp_path):
    with pytest.raises(PromptPrismError, match="save it as UTF-8"):
        read_csv(write_csv(tmp_path, "path,label\nä,b", "latin-1"))


def test_columns_and_splits_may_be_named(tmp_path):
    put(tmp_path, "1.png", "2.png", "3.png")
    text = "file,what,fold\n1.png,a,0\n2.png,b,0\n3.png,a,9\n1.png,a,7\n"
    reading = Reading(
        {"train": "0", "test": "9"}, path_column="File", label_column="what", split_column="fold"
    )
    data = read_csv(write_csv(tmp_path, text), reading=reading)
    assert listed(tmp_path, data.train) == [("1.png", 0), ("2.png", 1)]
    assert listed(tmp_path, data.test) == [("3.png", 0)] and not data.val


def test_utf_16_and_windows_paths_are_read(tmp_path):
    put(tmp_path, "x/1.png", "x/2.png")
    data = read_csv(write_csv(tmp_path, "path\tlabel\nx\\1.png\tä\n.\\x\\2.png\tb\n", "utf-16"))
    assert data.class_names == ("b", "ä")
    assert listed(tmp_path, data.train) == [("x/1.png", 1), ("x/2.png", 0)]


@pytest.mark.parametrize(("on_disk", "in_list"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_decomposed_letters_are_the_same(tmp_path, on_disk, in_list):
    put(tmp_path, unicodedata.normalize(on_disk, "café/1.png"))
    data = read_csv(write_csv(tmp_path, unicodedata.normalize(in_list, "path,label\ncafé/1.png,café\n")))
    assert data.class_names == (unicodedata.normalize("NFC", "café"),)
    assert data.train[0].source.is_file()


@pytest.mark.parametrize(
    "text, says",
    [
        ('path,label\n1.png,"a\n2.png,b\n', "line 2 of CSV '.*' has a quote that is not closed"),
        ('path,label\n1.png,"a\n2.png,b"\n', "line 2 of CSV '.*' has a quote that is not closed in it"),
        ('path,label\n1.png,a\n2.png,"b"c\n', "line 3 of CSV '.*' has ',' expected after"),
        ("path,label,Label\n1.png,a,b\n", "has 2 columns 'label': labels are one per image"),
        (
            "path,label\n1.png,a\n2.png,b\n./1.png,b\n",
            "lines 2 and 4 of CSV '.*' give '.*' two labels, 'a' and",
        ),
        ("path,label\n1.png,a|b\n2.png,b|c\n3.png,c|a\n", r"line 2 of .* several labels in one cell, 'a\|b'"),
        (
            "path,label\n1.png,a;b\n2.png,b\n3.png,a\n",
            "several labels in one cell, 'a;b': labels are one per",
        ),
        ("path,label\n1.png,NaN\n", "line 2 of CSV '.*' has label 'NaN', which programs write for a missing"),
        (
            "path,label\nhttps://x.org/1.png,a\n",
            "line 2 of .* has the address 'https://x.org/1.png': download",
        ),
        ("path,label\n1,a\n", r"do not exist.*\. '1\.png' is there: add the endings"),
        ("path,label\n9,a\n", r"do not exist.*They have no ending such as \.jpg"),
        (f"path,label\n{'x' * 5000}.png,a\n", "1 of 1 images of CSV '.*' do not exist"),
        ("path,label\n1.png,a\0\n", "bytes of zero: it is UTF-16 without its mark"),
    ],
)
def test_csv_that_says_something_else_than_it_seems(tmp_path, text, says):
    put(tmp_path, "1.png", "2.png", "3.png")
    with pytest.raises(PromptPrismError, match=says):
        read_csv(write_csv(tmp_path, text))


def test_another_encoding_is_named_with_its_line(tmp_path):
    with pytest.raises(
        PromptPrismError, match=r"line 2 of CSV '.*' is no UTF-8; .*'1\.png,café': save it as"
    ):
        read_csv(write_csv(tmp_path, "path,label\n1.png,café\n", "cp1252"))


def test_names_with_commas_and_quotes_are_names(tmp_path):
    put(tmp_path, "1.png", "2.png", "3.png")
    text = 'path,label\n1.png,"Crane, bird"\n2.png,"Crane, mechanical"\n3.png,"6"" pipe"\n'
    assert read_csv(write_csv(tmp_path, text)).class_names == ('6" pipe', "Crane, bird", "Crane, mechanical")


def test_what_may_be_tags_and_what_is_listed_twice_is_warned_of(tmp_path):
    put(tmp_path, "1.png", "2.png", "3.png")
    text = "path,label\n1.png,clear primary\n2.png,clear primary water\n3.png,clear primary road\n"
    with pytest.warns(
        DataWarning, match="line 2 of .* label 'clear primary', whose words several other labels"
    ):
        read_csv(write_csv(tmp_path, text))
    text = "path,label,split\n1.png,a,train\n./1.png,a,train\n1.png,a,test\n2.png,b,train\n"
    with pytest.warns(DataWarning) as caught:
        read_csv(write_csv(tmp_path, text))
    said = [str(warning.message) for warning in caught]
    assert ["list an image several times in a split" in said[0], "in several splits" in said[1]] == [True] * 2
    assert all("1 rows" in text for text in said) and "in line 3" in said[0] and "in line 4" in said[1]


@pytest.mark.slow
@given(st.one_of(st.binary(max_size=200), st.text(',;\t"\n\rab0|\\ü', max_size=60).map(str.encode)))
def test_hostile_csvs(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("csv") / "list.csv"
    path.write_bytes(b"path,label\n" + content)
    with pytest.raises(PromptPrismError):  # no image is there
        read_csv(path)
