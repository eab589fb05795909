"""What installed packages add to ours by entry points: methods, backbones, data sets, rules of fusion."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from promptprism.errors import warn

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """What there is of a kind, by name: ours, then what entry points of other packages add.

    Other packages are looked for when a name is asked for that is not ours, or all names are. One that fails
    to load, takes a name that is taken or adds something else costs a warning, and nothing besides.

    Args:
        group: of the entry points, such as `promptprism.methods`.
        own: ours; a plugin takes none of these names.
        is_one: given a name and what was loaded, whether it is what it must be.
        wanted: what it must be, in words.

    Warns:
        PromptPrismWarning: a plugin that cannot be used, with the package that it comes from and why.
    """

    def __init__(
        self, group: str, own: Mapping[str, T], is_one: Callable[[str, object], bool], wanted: str
    ) -> None:
        self.group, self.own, self.is_one, self.wanted = group, own, is_one, wanted

    def __getitem__(self, name: str) -> T:
        return self.own[name] if name in self.own else self.added[name]

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self.added

    def __iter__(self) -> Iterator[str]:
        return iter((*self.own, *self.added))

    def __len__(self) -> int:
        return len(self.own) + len(self.added)

    @cached_property
    def added(self) -> dict[str, T]:
        """What other packages add, by name."""
        found: dict[str, T] = {}
        for point in sorted(entry_points(group=self.group), key=lambda point: (point.name, point.value)):
            if point.name in self.own or point.name in found:
                self._warn(point, "its name is taken: its author must choose another")
                continue
            try:
                loaded = point.load()
                fits = self.is_one(point.name, loaded)
            except Exception as error:  # another's code may fail in any way
                self._warn(point, f"it cannot be imported ({type(error).__name__}: {error})")
                continue
            if fits:
                found[point.name] = loaded
            else:
                self._warn(point, f"{point.value} is not {self.wanted}")
        return found

    def _warn(self, point: EntryPoint, why: str) -> None:
        package = point.dist.name if point.dist else "an unknown package"
        warn(f"'{point.name}' of package '{package}' ({self.group}) is left out: {why}")
