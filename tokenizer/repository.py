"""Where a ready tokenizer is taken from: a file, a folder, or a repository on the Hugging Face hub."""

from pathlib import Path

from artefacts.errors import RequestError
from tokenizer.base import JSON_NAME
from tokenizer.huggingface import CONFIG_NAME, HuggingFaceTokenizer

#: The older layout, GPT-2's own: a byte-level BPE as its vocabulary and its merges.
_OLDER = ("vocab.json", "merges.txt")
_END_OF_TEXT = "<|endoftext|>"


def is_local(path: str) -> bool:
    """Whether a path names a file or folder here; else it names a repository of the hub."""
    spelled = path.startswith((".", "/", "~")) or path.endswith(".json") or path.count("/") > 1
    return spelled or Path(path).exists()


def files(path: str) -> list[Path]:
    """The files of a tokenizer: ``tokenizer.json`` or vocabulary and merges, and the configuration where there is one.

    Raises:
        RequestError: they are not there, or the hub cannot be reached.
    """
    if not is_local(path):
        return _downloaded(path)
    place = Path(path).expanduser()
    if place.is_file():
        config = place.with_name(CONFIG_NAME)
        return [place, *([config] if config.is_file() else [])]
    found = [place / name for name in (JSON_NAME, *_OLDER, CONFIG_NAME) if (place / name).is_file()]
    names = [file.name for file in found]
    if JSON_NAME in names:
        return [file for file in found if file.name not in _OLDER]
    if all(name in names for name in _OLDER):
        return found
    missing = f"no {JSON_NAME}, nor {' and '.join(_OLDER)}, is there" if place.is_dir() else "no such file or folder"
    raise RequestError(f"tokenizer.path={path}: {missing}")


def read(found: list[Path], path: str) -> tuple[HuggingFaceTokenizer, dict[str, bytes]]:
    """The tokenizer of ``files`` and what its artefact holds: name -> content.

    Raises:
        RequestError: they are damaged.
    """
    older = {file.name: file for file in found if file.name in _OLDER}
    try:
        content = _converted(older) if older else found[0].read_text(encoding="utf-8")
        configs = [file.read_text(encoding="utf-8") for file in found if file.name == CONFIG_NAME]
        tokenizer = HuggingFaceTokenizer(content, *configs)
    except (RequestError, UnicodeDecodeError) as error:
        raise RequestError(f"tokenizer.path={path}: {error}") from None
    return tokenizer, {JSON_NAME: content.encode(), **({CONFIG_NAME: configs[0].encode()} if configs else {})}


def _converted(older: dict[str, Path]) -> str:
    """The older layout as ``tokenizer.json``: GPT-2's splitting, bytes as characters, no added space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary, merges = (str(older[name]) for name in _OLDER)
    try:
        tokenizer = Tokenizer(models.BPE.from_file(vocabulary, merges))
    except Exception as error:  # the library raises no narrower class
        raise RequestError(" ".join(str(error).split())) from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if tokenizer.token_to_id(_END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([_END_OF_TEXT])
    return str(tokenizer.to_str())


def _downloaded(name: str) -> list[Path]:
    """The files of a repository of the hub, from its cache where they are there."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    # Its retries would write a line each; what it finally says is in the one line below.
    huggingface_hub.logging.set_verbosity(huggingface_hub.logging.CRITICAL)

    def get(file: str) -> Path | None:
        try:
            return Path(huggingface_hub.hf_hub_download(name, file))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None

    try:
        first = get(JSON_NAME)
        main = [first] if first else [get(file) for file in _OLDER]
        found = [*main, get(CONFIG_NAME)]
    except Exception as error:  # the hub's, the HTTP client's and the operating system's: all say why in a line
        said = " ".join(str(error).split("\n")[0].split())
        raise RequestError(
            f"tokenizer.path={name}: neither a local path nor a repository that the hub gave ({said}): check the name "
            "and the network, or give a local tokenizer.json"
        ) from None
    if None in main:
        raise RequestError(f"tokenizer.path={name}: the repository has no {JSON_NAME}, nor {' and '.join(_OLDER)}")
    return [file for file in found if file is not None]
