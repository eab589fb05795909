import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import BaseModel

from promptprism.causality.measurements import measure
from promptprism.errors import PromptPrismError
from promptprism.evaluation.store import Store


class Made(BaseModel):
    number: int


def test_what_exists_is_not_made_again_and_what_fails_is_told(tmp_path):
    calls = []

    def work(number):
        def make():
            calls.append(number)
            if number == 2:
                raise PromptPrismError("no luck")
            return Made(number=number)

        return make

    works = {str(number): work(number) for number in range(3)}
    files, failed = measure(Store(tmp_path), "made", works)
    assert failed == {"2": "no luck"} and files.keys() == {"0", "1"}
    assert json.loads((tmp_path / "made" / "1.json").read_text()) == {"number": 1}
    measure(Store(tmp_path), "made", works)
    assert calls == [0, 1, 2, 2]


@pytest.mark.slow
def test_what_another_holds_is_waited_for(tmp_path):
    store, told = Store(tmp_path), []
    works = {key: lambda: Made(number=1) for key in "ab"}
    with ThreadPoolExecutor() as pool, store.claim("made-a") as mine:
        assert mine
        other = pool.submit(measure, Store(tmp_path), "made", works, told.append)
        while "made: waiting for 1 that run elsewhere" not in told:
            time.sleep(0.05)
        assert sorted(file.name for file in (tmp_path / "made").iterdir()) == ["b.json"]
        # The holder finishes; what it made is not made again.
        (tmp_path / "made" / "a.json").write_text('{"number": 2}')
    files, failed = other.result()
    assert not failed and json.loads(files["a"].read_text()) == {"number": 2}
