import pytest

from promptprism.data.records import Dataset, Record
from promptprism.errors import PromptPrismError


def test_label_without_a_name():
    with pytest.raises(PromptPrismError, match=r"label 2 of x\.png in .* 'd' has no class name: .* 0\.\.1"):
        Dataset("d", ("a", "b"), train=(Record("x.png", 2),))
