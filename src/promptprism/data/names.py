"""Label spaces: class names and the phrase around them, and how they become texts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from promptprism.errors import PromptPrismError

#: The hand-made text around a class name, for data that brings none of its own.
DEFAULT_PHRASE = "a photo of a {}."
#: Tells apart two classes that a data set gives the same name, as ImageNet does; not said in prompts.
_WORDNET_ID = re.compile(r" \[n\d{8}\]$")


def spoken(class_name: str) -> str:
    """A class name as prompts say it: underscores are spaces, no space is doubled, no WordNet id.

    Letters are composed (NFC): macOS writes those of file names in parts.
    """
    plain = _WORDNET_ID.sub("", unicodedata.normalize("NFC", class_name))
    return " ".join(plain.replace("_", " ").split())


def name_key(class_name: str) -> str:
    """What is equal for two class names that are taken for the same class."""
    wordnet_id = _WORDNET_ID.search(class_name)
    return spoken(class_name).casefold() + (wordnet_id[0] if wordnet_id else "")


def check_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Check the names of a label space and return them unchanged.

    Any script will do. Whether a name is too long is up to the backbone: `Backbone.tokenize` says so.

    Raises:
        PromptPrismError: there is no name, they have no order of their own or are no list, one is no text or
            empty, or two differ only in case, underscores, spaces or how letters are composed, so that
            prompts could not tell them apart.
    """
    # Labels are places in the list: a set has none, and a mapping may mean its keys or its values.
    ordered = isinstance(class_names, Sequence) or hasattr(class_names, "__array__")
    if isinstance(class_names, str | bytes) or not ordered or not len(class_names):
        raise PromptPrismError(f"Class names must be a list of at least one name, got {class_names!r}.")
    seen: dict[str, str] = {}
    for position, name in enumerate(class_names):
        if not isinstance(name, str):
            raise PromptPrismError(f"Class {position} is {name!r}: class names must be text.")
        key = name_key(name)
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise PromptPrismError(f"Class {position} is {name!r}, which is no UTF-8: rename it.")
        if not spoken(name):
            raise PromptPrismError(f"Class {position} has the empty name {name!r}: give it a name.")
        if key in seen:
            raise PromptPrismError(
                f"Classes {seen[key]!r} and {name!r} read the same in a prompt: rename or merge them."
            )
        seen[key] = name
    return tuple(class_names)


def check_tokens(class_names: Sequence[str], tokens: Sequence[Sequence[int]]) -> None:
    """Refuse classes that a tokenizer makes the same: no prompt can tell them apart.

    Args:
        class_names: the label space.
        tokens: of each name, as prompts say it.

    Raises:
        PromptPrismError: which two are the same, and what can be done.
    """
    seen: dict[tuple[int, ...], str] = {}
    for name, own in zip(class_names, tokens, strict=True):
        # Two that the data set tells apart by their WordNet ids are spoken the same on purpose.
        other = name if _WORDNET_ID.search(name) else seen.setdefault(tuple(own), name)
        if other is not name:
            raise PromptPrismError(
                f"Classes {other!r} and {name!r} are the same to the backbone's tokenizer: give one of them "
                "another name."
            )


def check_phrase(phrase: str) -> str:
    """Return the phrase if it has exactly one {} for the class name.

    Raises:
        PromptPrismError: it has not.
    """
    if phrase.count("{}") != 1:
        raise PromptPrismError(f"Phrase {phrase!r} must hold {{}} once, where the class name goes.")
    return phrase


@dataclass(frozen=True)
class LabelSpace:
    """The classes that are told apart, and how they become texts.

    Attributes:
        names: K class names, as the user wrote them; the label of a class is its place here.
        phrase: the data's own hand-made text with one {} for the class name.

    Raises:
        PromptPrismError: see `check_class_names` and `check_phrase`.
    """

    names: tuple[str, ...]
    phrase: str = DEFAULT_PHRASE

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", check_class_names(self.names))
        check_phrase(self.phrase)

    def __len__(self) -> int:
        return len(self.names)

    def texts(self, phrase: str | None = None) -> list[str]:
        """Say each class name in a phrase; None is the space's own."""
        phrase = self.phrase if phrase is None else phrase
        return [phrase.replace("{}", spoken(name)) for name in self.names]

    def joined(self, other: LabelSpace) -> LabelSpace:
        """The classes of both, each once, with this one's phrase."""
        names = dict(zip((*self.keys, *other.keys), (*self.names, *other.names), strict=True))
        return LabelSpace(tuple(names.values()), self.phrase)

    def places(self, other: LabelSpace) -> list[int]:
        """The place here of each class of another space; -1 of those that are not here."""
        here = {key: place for place, key in enumerate(self.keys)}
        return [here.get(key, -1) for key in other.keys]

    @property
    def keys(self) -> tuple[str, ...]:
        """What each class is known by in every label space, see `name_key`."""
        return tuple(map(name_key, self.names))
