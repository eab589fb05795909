from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptprism.data.records import Dataset, Record
from promptprism.data.splits import base_new, few_shot
from promptprism.errors import PromptPrismError


def pool(*counts):
    return tuple(Record(f"{label}/{i}", label) for label, count in enumerate(counts) for i in range(count))


def names(records):
    return [record.source for record in records]


@pytest.mark.slow
@given(st.lists(st.integers(4, 9), min_size=1, max_size=5), st.integers(1, 4), st.integers(-3, 2**70))
def test_every_class_gives_shots_different_images(counts, shots, seed):
    drawn = few_shot(pool(*counts), shots, seed)
    assert Counter(r.label for r in drawn) == dict.fromkeys(range(len(counts)), shots)
    assert len(set(names(drawn))) == len(drawn) and set(names(drawn)) <= set(names(pool(*counts)))
    assert names(drawn) == names(few_shot(pool(*counts), shots, seed))


def test_the_draw_is_the_same_on_every_machine():
    assert names(few_shot(pool(10, 10), 3, 1)) == ["0/0", "0/2", "0/5", "1/8", "1/4", "1/3"]


def test_smaller_draws_begin_larger_ones_and_seeds_differ():
    one, four = (few_shot(pool(20), shots, 0) for shots in (1, 4))
    assert names(four)[:1] == names(one)
    assert len({tuple(names(few_shot(pool(50), 8, seed))) for seed in range(20)}) == 20


def test_every_image_is_drawn_equally_often():
    seen = Counter(name for seed in range(2000) for name in names(few_shot(pool(8), 2, seed)))
    # 500 expected of each, standard deviation 19.
    assert len(seen) == 8 and all(abs(count - 500) < 90 for count in seen.values())


def test_too_few_images_are_named_and_counted():
    with pytest.raises(PromptPrismError, match=r"for 4 shots: 'b' has 2, 'c' has 3\. .*--allow-fewer"):
        few_shot(pool(5, 2, 3), 4, 1, class_names=("a", "b", "c"))
    drawn = few_shot(pool(5, 2, 3), 4, 1, allow_fewer=True, class_names=("a", "b", "c"))
    assert Counter(r.label for r in drawn) == {0: 4, 1: 2, 2: 3}


def test_a_class_without_images_is_never_allowed():
    with pytest.raises(PromptPrismError, match=r"'b' has 0\. .*cannot be learned: add images"):
        few_shot(pool(5), 4, 1, allow_fewer=True, class_names=("a", "b"))


def test_shots_below_one():
    with pytest.raises(PromptPrismError, match="shots is 0: at least 1"):
        few_shot(pool(5), 0, 1)


def test_base_and_new_halves():
    data = Dataset("d", ("a", "b", "c", "d", "e"), train=pool(2, 1, 1, 1, 2), test=pool(1, 1, 1, 1, 1))
    base, new = base_new(data)
    assert base.class_names == ("a", "b", "c") and new.class_names == ("d", "e")
    assert [(r.source, r.label) for r in new.train] == [("3/0", 0), ("4/0", 1), ("4/1", 1)]
    assert [(r.source, r.label) for r in base.test] == [("0/0", 0), ("1/0", 1), ("2/0", 2)]
    assert (base.name, new.name) == ("d:base", "d:new")


def test_of_three_classes_one_would_be_new_and_always_right():
    with pytest.raises(PromptPrismError, match="'d' has 3 classes: base and new need at least 4"):
        base_new(Dataset("d", ("a", "b", "c")))
