"""Adapters on the Hugging Face hub: two files are fetched, a card and tensors, and nothing else is."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCardData
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from promptprism.adapter import CARD, TENSORS, Card, read_card
from promptprism.backbones.loading import HUB, LOCAL, quick_to_fail
from promptprism.errors import PromptPrismError
from promptprism.files import remove, sha256_of

#: What the name of an adapter on the hub begins with.
PREFIX = "hf:"
# Names that a model card lists; the JSON card has all.
_LISTED = 100
_TOKEN = "log in by `hf auth login`, or set HF_TOKEN"


def located(place: str | Path) -> Path:
    """The folder of an adapter; one that is called ``hf:owner/name[@revision]`` is fetched.

    Raises:
        PromptPrismError: see `fetch`.
    """
    name = Path(place).as_posix()
    return fetch(name) if name.startswith(PREFIX) else Path(place)


def fetch(name: str) -> Path:
    """Fetch an adapter, ``hf:owner/name`` or ``hf:owner/name@revision``, into the hub's cache.

    What the cache has is not fetched again; without a network it is taken as it is. Card and tensors are of
    one commit, and compared with their SHA-256.

    Returns:
        the folder of that commit.

    Raises:
        PromptPrismError: no such repository, revision or adapter; no network, or no right to read it; or
            files that are not whole, which do not stay in the cache.
    """
    repo_id, _, revision = name.removeprefix(PREFIX).partition("@")
    with _explained(repo_id, f"cannot fetch '{name}'"):
        card = Path(huggingface_hub.hf_hub_download(repo_id, CARD, revision=revision or None))
        huggingface_hub.hf_hub_download(repo_id, TENSORS, revision=card.parent.name)
    try:
        _check(card.parent)
    except PromptPrismError as error:
        for file in (card, card.with_name(TENSORS)):
            remove(file.resolve())
            remove(file)
        raise PromptPrismError(
            f"'{name}' came in a state that cannot be used, and was not kept: fetch it again, then ask its "
            f"owner. {error}"
        ) from error
    return card.parent


def push(
    folder: Path, repo_id: str, *, private: bool = False, license: str | None = None, token: str | None = None
) -> str:
    """Put an adapter folder into a repository of the hub, which is made if there is none.

    Card, tensors and a model card for people, ``README.md``, are one commit. What was there before stays in
    the repository's history.

    Args:
        folder: that `PromptPrism.save` wrote.
        repo_id: ``owner/name``.
        private: nobody else may see it.
        license: of what was learned, by its identifier, such as ``apache-2.0``.
        token: None takes that of `hf auth login` or HF_TOKEN.

    Returns:
        the address of the repository.

    Raises:
        PromptPrismError: no adapter, no token, no right to write there, or a hub that does not answer.
    """
    card = _check(folder)
    if (token or huggingface_hub.get_token()) is None:
        raise PromptPrismError(f"cannot push to '{repo_id}': the hub asks who you are; {_TOKEN}")
    text = model_card(card, repo_id, license)
    with _explained(repo_id, f"cannot push to '{repo_id}'"):
        api = HfApi(endpoint=huggingface_hub.constants.ENDPOINT, token=token)
        place = api.create_repo(repo_id, exist_ok=True, private=private or None)
        if private and not api.model_info(repo_id).private:
            raise PromptPrismError(
                f"'{repo_id}' is there and everybody can see it: make it private on its page, choose another "
                "name, or leave out private (--private)"
            )
        api.create_commit(
            repo_id,
            [
                CommitOperationAdd("README.md", text.encode()),
                *(CommitOperationAdd(name, str(folder / name)) for name in (CARD, TENSORS)),
            ],
            commit_message=f"Adapter of PromptPrism {card.promptprism}",
        )
    return str(place)


def model_card(card: Card, repo_id: str, license: str | None = None) -> str:
    """A model card, Markdown with the hub's metadata, of an adapter's card."""
    backbone, names = card.backbone, card.class_names
    base = backbone.name.removeprefix(HUB) if backbone.name.startswith(HUB) else None
    scores: list[tuple[str, str | None, int | None, float, float]]
    scores = [(one.data, one.split, one.images, one.accuracy, one.ece) for one in card.evaluations]
    scores += [
        (name, None, None, found["cls/accuracy"], found["cal/ece"])
        for name, found in card.scores.items()
        if name not in {one.data for one in card.evaluations} and {"cls/accuracy", "cal/ece"} <= found.keys()
    ]
    metadata = ModelCardData(
        model_name=repo_id.rpartition("/")[2],
        library_name="promptprism",
        pipeline_tag="image-classification",
        license=license,
        base_model=base,
        tags=["promptprism", "few-shot", "image-classification", card.method],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=re.sub(r"\W+", "-", data).strip("-") or "data",
                dataset_name=data,
                dataset_split=split,
                metric_type=kind,
                metric_value=round(value, 4),
            )
            for data, split, _, *values in scores
            for kind, value in zip(("accuracy", "ece"), values, strict=True)
        ]
        or None,
    )
    trust = backbone.name.startswith((LOCAL, HUB))  # what `check_trusted` asks for
    listed = ", ".join(map(_plain, names[:_LISTED]))
    more = f" and {len(names) - _LISTED:,} more, in `{CARD}`" if len(names) > _LISTED else ""
    learned = "Nothing was learned: the backbone alone answers."
    if card.data:
        learned = f"{sum(card.data.images.values()):,} images of {_plain(card.data.name)}"
        learned += f", {card.data.shots} drawn per class" if card.data.shots else ""
        learned += f", seed {card.data.seed}; {card.training.trainable:,} trainable parameters."
    table = "Nothing was measured yet.\n"
    if scores:
        table = (
            "| data | split | images | accuracy | calibration error |\n| --- | --- | ---: | ---: | ---: |\n"
        )
        for data, split, images, accuracy, ece in scores:
            shown = _plain(data), split or "–", images or "–", f"{accuracy:.1%}", f"{ece:.1%}"
            table += f"| {' | '.join(map(str, shown))} |\n"
    weights = f" ({_plain(backbone.pretrained)})" if backbone.pretrained else ""
    return f"""---
{metadata.to_yaml()}
---

# {_plain(repo_id.rpartition("/")[2])}

Tells {len(names):,} classes of images apart: method {_plain(card.method)} on the frozen backbone
{_plain(backbone.name)}{weights}, by PromptPrism {_plain(card.promptprism)}.

## Use

```python
from promptprism import PromptPrism

model = PromptPrism.from_pretrained("{PREFIX}{repo_id}"{", trust_backbone=True" if trust else ""})
print(model.predict(["photo.jpg"]))
```

    promptprism predict {PREFIX}{repo_id} photo.jpg{" --trust-backbone" if trust else ""}

## Classes

{listed}{more}

## Learned from

{learned}

## Scores

{table}"""


def _plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _check(folder: Path) -> Card:
    """The card of an adapter folder whose tensors are those that it tells of."""
    card = read_card(folder)
    if not (folder / TENSORS).is_file():
        raise PromptPrismError(f"adapter '{folder}' has no {TENSORS}: copy or make the adapter again")
    if card.tensors is not None and sha256_of(folder / TENSORS) != card.tensors:
        raise PromptPrismError(
            f"'{folder / TENSORS}' is not what its card tells of, its SHA-256 is another: copy or make the "
            "adapter again"
        )
    return card


@contextmanager
def _explained(repo_id: str, what: str) -> Iterator[None]:
    """Say what went wrong with the hub as a user reads it.

    Raises:
        PromptPrismError: anything did.
    """
    endpoint = huggingface_hub.constants.ENDPOINT
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise PromptPrismError(f"{what}: write owner/name, as in the address of its page")
    try:
        with quick_to_fail(True):
            yield
    except PromptPrismError:
        raise
    except Exception as error:  # the hub's many kinds, and those of two HTTP libraries
        raise PromptPrismError(f"{what}: {_why(error, endpoint)}") from error


def _why(error: Exception, endpoint: str) -> str:
    cause = " ".join(str(error).split())[:300] or type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"{endpoint} does not answer, and there is no copy in the cache: check the network, or copy the "
            "adapter's folder here from another machine and give that"
        )
    if isinstance(error, GatedRepoError):
        return f"its owner lets in who asks: ask for access on its page, then {_TOKEN}"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision: give a branch, a tag or a commit that its page lists"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no such repository, or it is private: check the name; for a private one {_TOKEN}"
    if isinstance(error, EntryNotFoundError):
        return f"it is no adapter, for it lacks {CARD} or {TENSORS}: give a repository that promptprism made"
    if isinstance(error, HfHubHTTPError) and status in (401, 403):
        return f"the hub does not let you ({status}): {_TOKEN}, with a token that may do this"
    return f"{endpoint} did not answer as a hub does, nothing of it was kept: try again later ({cause})"
