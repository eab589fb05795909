import pytest

from promptprism.data.records import Dataset, Record
from promptprism.errors import PromptPrismError


def test_label_without_a_name():
    with pytest.raises(PromptPrismError, match=r"label 2 of x\.png in .* 'd' has no class name: .* 0\.\.1"):
        Dataset("d", ("a", "b"), train=(Record("x.png", 2),))


@pytest.mark.parametrize("record", [Record("a", "red"), ("a", 0)])
def test_what_is_no_record_is_shown(record):
    with pytest.raises(PromptPrismError, match=r"data set 'd' holds .*'a'.* must be a Record whose label"):
        Dataset("d", ("x", "y"), train=(record,))


def test_splits_may_come_from_a_generator():
    data = Dataset("d", ("x", "y"), train=(Record(str(label), label) for label in (0, 1)))
    assert [record.label for record in data.train] == [0, 1]
