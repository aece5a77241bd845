"""The model section, a class a family; the keys of DeepSeek and GPT-2 carry the names of transformers."""

from typing import Annotated, Any, Union

from pydantic import Discriminator, Tag

from configs.schema.models.base import UNKNOWN_FAMILY, ModelSection
from configs.schema.models.bigram import BigramSection
from configs.schema.models.classifier import ClassifierSection
from configs.schema.models.deepseek import DeepseekSection
from configs.schema.models.encoder import EncoderSection
from configs.schema.models.encoder_decoder import EncoderDecoderSection
from configs.schema.models.gpt import GptSection

#: Families by the name that ``model.family`` has for them.
FAMILIES: dict[str, type[ModelSection]] = {
    "deepseek": DeepseekSection,
    "gpt": GptSection,
    "bigram": BigramSection,
    "encoder": EncoderSection,
    "encoder_decoder": EncoderDecoderSection,
    "classifier": ClassifierSection,
}


def _family(given: Any) -> Any:
    """The family of a section as it was written, or of one that was read; DeepSeek's where none is named.

    What is no section goes to DeepSeek's too, which says so.
    """
    return given.get("family", "deepseek") if isinstance(given, dict) else getattr(given, "family", "deepseek")


#: The model section of any family.
AnyModelSection = Annotated[
    Union[  # noqa: UP007 - a tag for each
        Annotated[DeepseekSection, Tag("deepseek")],
        Annotated[GptSection, Tag("gpt")],
        Annotated[BigramSection, Tag("bigram")],
        Annotated[EncoderSection, Tag("encoder")],
        Annotated[EncoderDecoderSection, Tag("encoder_decoder")],
        Annotated[ClassifierSection, Tag("classifier")],
    ],
    Discriminator(_family, UNKNOWN_FAMILY, f"none of {', '.join(FAMILIES)}"),
]

__all__ = ["FAMILIES", "UNKNOWN_FAMILY", "AnyModelSection", "ModelSection"]
