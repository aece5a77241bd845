"""The model section: one class per family. Where transformers has the family, keys have its names."""

from typing import Annotated, Any, Union

from pydantic import Discriminator, Tag

from configs.schema.models.base import UNKNOWN_FAMILY, ModelSection
from configs.schema.models.bigram import BigramSection
from configs.schema.models.classifier import ClassifierSection
from configs.schema.models.deepseek import DeepseekSection
from configs.schema.models.encoder import EncoderSection
from configs.schema.models.encoder_decoder import EncoderDecoderSection
from configs.schema.models.gpt import GptSection

#: Value of ``model.family`` -> section class.
FAMILIES: dict[str, type[ModelSection]] = {
    "deepseek": DeepseekSection,
    "gpt": GptSection,
    "bigram": BigramSection,
    "encoder": EncoderSection,
    "encoder_decoder": EncoderDecoderSection,
    "classifier": ClassifierSection,
}


#: The default family.
DEFAULT_FAMILY = "deepseek"


def _family(section: Any) -> Any:
    """Return the family of a raw or parsed section.

    Values that are not sections get the default family, whose validation rejects them.
    """
    return (
        section.get("family", DEFAULT_FAMILY)
        if isinstance(section, dict)
        else getattr(section, "family", DEFAULT_FAMILY)
    )


#: A model section of any family.
AnyModelSection = Annotated[
    Union[  # noqa: UP007 - one tag per family
        Annotated[DeepseekSection, Tag("deepseek")],
        Annotated[GptSection, Tag("gpt")],
        Annotated[BigramSection, Tag("bigram")],
        Annotated[EncoderSection, Tag("encoder")],
        Annotated[EncoderDecoderSection, Tag("encoder_decoder")],
        Annotated[ClassifierSection, Tag("classifier")],
    ],
    Discriminator(_family, UNKNOWN_FAMILY, f"none of {', '.join(FAMILIES)}"),
]

__all__ = ["DEFAULT_FAMILY", "FAMILIES", "UNKNOWN_FAMILY", "AnyModelSection", "ModelSection"]
