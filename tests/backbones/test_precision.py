import warnings

import pytest
import torch

from promptprism.backbones import precision
from promptprism.backbones.precision import choose_precision, product_seconds, warn_if_slow
from promptprism.errors import PromptPrismError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def on_a_processor(monkeypatch, float32, bfloat16):
    monkeypatch.setattr(
        precision, "product_seconds", lambda width: {"float32": float32, "bfloat16": bfloat16}
    )


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"), [(3, 1, "bfloat16"), (1.2, 1, "float32"), (1, 135, "float32")]
)
def test_auto_takes_bfloat16_only_where_it_is_clearly_faster(monkeypatch, float32, bfloat16, chosen):
    on_a_processor(monkeypatch, float32, bfloat16)
    assert choose_precision("auto", CPU, 64) == chosen
    assert choose_precision("float32", CPU, 64) == "float32"
    assert choose_precision("bfloat16", CPU, 64) == "bfloat16"


@pytest.mark.parametrize(("able", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_says_what_it_can(monkeypatch, able, chosen):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: able)
    assert choose_precision("auto", CUDA, 64) == chosen
    assert choose_precision("auto", torch.device("mps"), 64) == "float32"


def test_a_slow_choice_is_warned_about(monkeypatch):
    on_a_processor(monkeypatch, 1, 135)
    with pytest.warns(UserWarning, match="products in bfloat16 take 135 times as long as in float32"):
        warn_if_slow("bfloat16", CPU, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_slow("float32", CPU, 64)
        warn_if_slow("auto", CPU, 64)
        warn_if_slow("bfloat16", CUDA, 64)


def test_the_measurement_is_made_once_and_leaves_the_threads(monkeypatch):
    threads = torch.get_num_threads()
    seconds = product_seconds(48)
    assert seconds.keys() == {"float32", "bfloat16"} and min(seconds.values()) > 0
    assert product_seconds(48) is seconds and torch.get_num_threads() == threads


@pytest.mark.slow
def test_auto_is_resolved_in_the_backbone(monkeypatch, tiny_factory):
    on_a_processor(monkeypatch, 2, 1)
    assert tiny_factory("auto").dtype == torch.bfloat16
    with pytest.raises(PromptPrismError, match="Unknown precision 'float16': use 'auto', 'float32'"):
        tiny_factory("float16")
