"""What scikit-learn asks of a classifier, without importing it: parameters by name, and tags."""

import inspect
from numbers import Integral
from typing import Any, Self

from promptprism.errors import PromptPrismError, needs
from promptprism.methods import MethodSettings, make_settings


class Conventions:
    """Parameters are those of ``__init__``, and beside them the method's own, which are in ``settings``."""

    method: str
    settings: dict[str, Any]

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002 - scikit-learn's signature
        """All parameters and settings by name."""
        return {name: getattr(self, name) for name in self._parameters()} | self.settings

    def set_params(self, **params: Any) -> Self:
        """Change parameters or settings; takes effect at the next `fit`.

        Raises:
            PromptPrismError: what comes out has no such setting, or a value that it cannot have; nothing is
                changed then.
        """
        own = {name: params.pop(name) for name in self._parameters() if name in params}
        settings = self.settings | params
        self._check_settings(own.get("method", self.method), settings)
        for name, value in own.items():
            setattr(self, name, value)
        self.settings = settings
        return self

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({given})"

    def __sklearn_tags__(self) -> Any:
        """That this is a classifier, and of what; scikit-learn is there, for nobody else asks."""
        with needs("a tag of scikit-learn 1.6 or newer", "sklearn"):
            from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags
        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            # Images are no rows of numbers: paths, PIL images, or arrays [H, W, 3] that may differ in size.
            input_tags=InputTags(one_d_array=True, two_d_array=False, string=True),
            no_validation=True,
        )

    @classmethod
    def _parameters(cls) -> tuple[str, ...]:
        known = inspect.signature(cls).parameters.values()
        return tuple(one.name for one in known if one.kind is not one.VAR_KEYWORD)

    @classmethod
    def _check_settings(cls, method: str, given: dict[str, Any]) -> MethodSettings:
        return make_settings(method, cls._parameters(), **given)


def whole(name: str, value: Any) -> int:
    """A parameter that is a whole number.

    Raises:
        PromptPrismError: it is none.
    """
    if not isinstance(value, Integral):
        raise PromptPrismError(f"{name} is {value!r}: give a whole number")
    return int(value)
