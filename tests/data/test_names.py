import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import picture

from promptprism.data.names import LabelSpace, check_class_names, check_phrase, check_tokens
from promptprism.errors import PromptPrismError
from promptprism.estimator import PromptPrism


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
        ({"cat", "dog"}, "must be a list of at least one name, got {"),
        ({"cat": 1, "dog": 0}, "must be a list"),
        ({"cat": 1}.keys(), "must be a list"),
        ((name for name in "ab"), "must be a list"),
        (7, "must be a list"),
        (["caf\u00e9", "cafe\u0301"], "read the same in a prompt"),
        (["cat", "caf\udce9"], "is 'caf.udce9', which is no UTF-8"),
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


def test_arrays_of_names_are_lists():
    assert check_class_names(np.array(["cat", "dog"])) == ("cat", "dog")


def test_prompts_say_composed_letters():
    assert LabelSpace(["cafe\u0301"]).texts("a {}.") == ["a caf\u00e9."]


def test_classes_with_the_same_tokens_are_refused():
    check_tokens(["cat", "tabby_cat", "?"], [[1], [2, 1], [0]])
    check_tokens(["crane [n01234567]", "crane [n76543210]", "cat"], [[3], [3], [1]])
    with pytest.raises(PromptPrismError, match=r"Classes '\?' and '!' are the same to the backbone's tok"):
        check_tokens(["cat", "?", "!"], [[1], [0], [0]])


@pytest.mark.slow
@given(st.lists(st.text(st.characters(), max_size=6), max_size=4))
def test_hostile_class_names(names):
    try:
        checked = check_class_names(names)
    except PromptPrismError:
        return
    said = LabelSpace(checked).texts("{}")
    assert len(set(said)) == len(names) and all(text.strip() and text.encode() for text in said)


def test_fit_and_other_classes_are_told_apart_by_the_tokenizer(tiny):
    model = PromptPrism("zero-shot", tiny).fit([picture("red", 0), picture("blue", 0)], ["red", "blue"])
    # The tokenizer folds full-width letters into plain ones.
    for refuse in (
        lambda names: model.with_classes(names),
        lambda names: PromptPrism("zero-shot", tiny).fit([picture("red", 0)] * 2, names),
    ):
        with pytest.raises(
            PromptPrismError, match="'cat' and '\uff43\uff41\uff54' are the same to the backbone's"
        ):
            refuse(["cat", "\uff43\uff41\uff54"])
