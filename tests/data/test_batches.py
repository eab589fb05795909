import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from toys import colours

from promptprism.data.batches import plain_batches, shuffled_batches, view_batches
from promptprism.data.images import load_image, reading_threads, unreadable
from promptprism.data.views import make_views
from promptprism.errors import PromptPrismError

MAKE = make_views(("set2:1", "set1:3"), 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def test_an_epoch_visits_whole_batches_of_a_permutation():
    batches = shuffled_batches(10, 4, seed=1, epoch=2)
    seen = [i for batch in batches for i in batch]
    assert [len(batch) for batch in batches] == [4, 4]
    assert len(set(seen)) == 8 and set(seen) <= set(range(10))
    assert sorted(i for batch in shuffled_batches(12, 4, 1, 2) for i in batch) == list(range(12))


def test_a_single_incomplete_batch_is_kept():
    assert sorted(shuffled_batches(3, 4, 1, 0)[0]) == [0, 1, 2]


def test_the_order_is_a_function_of_seed_and_epoch():
    torch.manual_seed(5)
    first = shuffled_batches(20, 4, 1, 0)
    np.random.seed(6)
    assert first == shuffled_batches(20, 4, 1, 0)
    assert first != shuffled_batches(20, 4, 1, 1)
    assert first != shuffled_batches(20, 4, 0, 0)


def test_plain_batches_keep_all_in_order():
    assert plain_batches(5, 2) == [[0, 1], [2, 3], [4]]


def test_threads_give_what_one_would_in_the_same_order():
    sources = [record.source for record in colours().train]
    batches = shuffled_batches(len(sources), 4, 3, 1)
    for (batch, views), expected in zip(view_batches(sources, batches, MAKE, 3, 1), batches, strict=True):
        assert batch == expected
        assert views.shape == (2, 4, 3, 32, 32)
        for place, i in enumerate(batch):
            assert torch.equal(views[:, place], MAKE(load_image(sources[i]), 3, 1, i))


def test_an_unreadable_image_is_named_and_no_work_stays(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    asked = []

    class Slow:
        def image(self):
            asked.append(time.sleep(0.01))
            return Image.new("RGB", (32, 32))

    sources = [broken, *[Slow()] * 400]
    with pytest.raises(PromptPrismError, match=r"broken\.png"):
        list(view_batches(sources, [list(range(200)), list(range(200, 400))], MAKE))
    assert reading_threads().submit(int).result(timeout=5) == 0 and len(asked) < 100


def readers():
    return {thread.ident for thread in threading.enumerate() if thread.name.startswith("promptprism-reading")}


def test_readings_share_threads_that_are_never_collected():
    sources = [record.source for record in colours().train]
    batches = plain_batches(len(sources), 4)
    assert unreadable(sources) == []
    for _ in range(8):  # as many as there may be are started
        list(view_batches(sources, batches, MAKE))
    before = readers()
    assert 1 < len(before) <= 4
    list(view_batches(sources, batches, MAKE))
    next(view_batches(sources, batches, MAKE))
    assert readers() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_reads_with_threads_of_its_own():
    list(view_batches([record.source for record in colours().train], [[0, 1]], MAKE))
    if not (child := os.fork()):
        signal.alarm(20)  # else it would wait for threads that are not there
        os._exit(reading_threads().submit(int).result())
    assert os.waitpid(child, 0)[1] == 0


class Broken:
    def image(self):
        raise RuntimeError("no ink")

    def __str__(self):
        return "a broken scene"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (Broken(), r"image 2 \(a broken scene\) cannot be used: no ink"),
        (b"\xff" * 9999, r"^image 2 \(b'.{190,210}\) cannot be used: cannot take an image from bytes"),
        (np.zeros((2, 2, 7)), r"image 2 \(an array\) cannot be used: array of shape \(2, 2, 7\)"),
    ],
)
def test_an_image_without_a_file_is_named_by_its_place(source, says):
    sources = [*(record.source for record in colours().train[:2]), source]
    with pytest.raises(PromptPrismError, match=says):
        list(view_batches(sources, plain_batches(3, 2), MAKE))


def test_the_next_batches_are_made_while_the_consumer_is_busy():
    made = [threading.Event() for _ in range(12)]

    def make(source, seed, epoch, index):
        made[index].set()
        return torch.zeros(1, 3, 2, 2)

    batches = view_batches([None] * 12, plain_batches(12, 2), make)
    next(batches)
    # Nobody asks for the next batch, and yet its images and some more come, but not all: memory is finite.
    assert all(event.wait(timeout=30) for event in made[:8])
    assert not any(event.is_set() for event in made[8:])
    batches.close()


def test_one_batch_is_shared_by_the_threads():
    together = threading.Barrier(2, timeout=30)

    def make(source, seed, epoch, index):
        together.wait()  # passes only if two images are made at the same time
        return torch.full((1, 3, 2, 2), float(index))

    ((_, views),) = view_batches([None] * 4, [[2, 0, 3, 1]], make)
    assert views[0, :, 0, 0, 0].tolist() == [2, 0, 3, 1]
