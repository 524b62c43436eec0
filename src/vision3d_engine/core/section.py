"""What all groups of settings share: how they are read, and the types of their values."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

AtLeastOne = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen group of settings whose field docstrings are its help texts."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    @classmethod
    def takes_further(cls, values: Mapping[str, Any]) -> bool:  # noqa: ARG003  a section may look at them
        """Tell whether keys that are not listed here have a meaning beside these values."""
        return cls.model_config.get("extra") == "allow"


def checked(parse: Callable[[str], object]) -> AfterValidator:
    """Return what keeps a text as it was written, if it can be parsed."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)
