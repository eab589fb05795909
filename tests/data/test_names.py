import pytest

from promptprism.data.names import LabelSpace, check_class_names, check_phrase
from promptprism.errors import PromptPrismError


def test_any_script_and_underscores():
    names = ["Siamese_cat", "日本語", "🦊", "C++", "naïve  café", "{braces}"]
    assert check_class_names(names) == LabelSpace(names).names == tuple(names)
    assert LabelSpace(names[:1], "a {} b").texts() == ["a Siamese cat b"]
    assert LabelSpace(names[4:]).texts("a {} b") == ["a naïve café b", "a {braces} b"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "at least one name"),
        ("cat", "must be a list"),
        (["cat", ""], "Class 1 has the empty name ''"),
        (["cat", " _ "], "Class 1 has the empty name ' _ '"),
        (["red_fox", "lemon", "Red fox"], "'red_fox' and 'Red fox' read the same"),
        (["cat", 7], "Class 1 is 7: class names must be text"),
    ],
)
def test_refused(names, words):
    for refuse in (check_class_names, LabelSpace):
        with pytest.raises(PromptPrismError, match=words):
            refuse(names)


@pytest.mark.parametrize("phrase", ["a photo", "{} and {}", ""])
def test_phrase_needs_one_place(phrase):
    for refuse in (check_phrase, lambda given: LabelSpace(("cat",), given)):
        with pytest.raises(PromptPrismError, match=r"must hold \{\} once"):
            refuse(phrase)


def test_joined_spaces_have_each_class_once():
    one, two = LabelSpace(("red_fox", "lemon"), "a {}."), LabelSpace(("Lemon", "owl"), "the {}.")
    assert one.joined(two) == LabelSpace(("red_fox", "Lemon", "owl"), "a {}.")
    assert one.keys == ("red fox", "lemon") and len(one) == 2
