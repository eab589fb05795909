import pytest

from promptprism.data.names import check_class_names, check_phrase, fill
from promptprism.errors import PromptPrismError


def test_any_script_and_underscores():
    names = ["Siamese_cat", "日本語", "🦊", "C++", "naïve  café", "{braces}"]
    assert check_class_names(names) == tuple(names)
    assert fill("a {} b", names[:1]) == ["a Siamese cat b"]
    assert fill("a {} b", names[4:]) == ["a naïve café b", "a {braces} b"]


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
    with pytest.raises(PromptPrismError, match=words):
        check_class_names(names)


@pytest.mark.parametrize("phrase", ["a photo", "{} and {}", ""])
def test_phrase_needs_one_place(phrase):
    with pytest.raises(PromptPrismError, match=r"must hold \{\} once"):
        check_phrase(phrase)
