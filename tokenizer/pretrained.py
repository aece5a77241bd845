"""Publish a pretrained tokenizer as this run's tokenizer. It is in Hugging Face's format or from another run."""

from pathlib import Path

from artefacts import atomic, fingerprint, manifest, repair_hints
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.stage import open_stage
from configs.checks.data_guard import guard
from configs.identities import tokenizer_identity
from configs.run_layout import RunLayout
from configs.schema import Recipe
from tokenizer.base import JSON_NAME, Tokenizer
from tokenizer.huggingface import CONFIG_NAME, HuggingFaceTokenizer
from tokenizer.registry import load_tokenizer
from tokenizer.training_sample import MEASURED_BYTES, measured, sample


def check(recipe: Recipe) -> None:
    """Run the same checks as ``copy``, but before the documents are built. Does nothing if the tokenizer is published.

    Raises:
        RequestError: there is no such tokenizer, or it has more ids than the model's vocabulary.
    """
    path = str(recipe.tokenizer.path)
    published = manifest.read(RunLayout.of(recipe).tokenizer)
    if published is None or not _inputs(recipe, path).items() <= published.inputs.items():
        _read(recipe, path)


def copy(recipe: Recipe) -> Manifest | None:
    """Copy the tokenizer at ``tokenizer.path`` and publish it. Returns None if it is already up to date.

    A local tokenizer is identified by its content, and a tokenizer on the Hub by its name. So checking a finished
    artefact does not need the network.

    Raises:
        RequestError: there are no cleaned documents, there is no such tokenizer, or it has more ids than the model's
            vocabulary.
    """
    layout = RunLayout.of(recipe)
    path = str(recipe.tokenizer.path)
    documents = manifest.require(layout.documents, "data")
    inputs = {"documents": documents.fingerprint}
    with open_stage(
        "tokenizer",
        layout.tokenizer,
        tokenizer_identity(recipe),
        inputs | _inputs(recipe, path),
        check_replacing=guard(recipe, "tokenizer"),
    ) as stage:
        if stage.finished:
            return None
        repair_hints.check_sizes("documents", layout.documents)
        tokenizer, contents = _read(recipe, path)
        for name, content in contents.items():
            atomic.write_bytes(stage.work / name, content)
        budget = min(recipe.tokenizer.sample_bytes, MEASURED_BYTES)
        reserved = [tokenizer.piece(token) for token in range(tokenizer.vocab_size) if tokenizer.is_reserved(token)]
        return stage.publish(
            counts=measured(tokenizer, sample(layout.documents, budget, recipe.run.seed)),
            versions=manifest.versions("tokenizers"),
            details={"vocab_size": tokenizer.vocab_size, "reserved": reserved},
        )


def _inputs(recipe: Recipe, path: str) -> dict[str, str]:
    """Return the artefact's inputs, except for the documents."""
    if recipe.tokenizer.kind == "run":
        return {"tokenizer of a run": manifest.require(_of_run(path), "tokenizer").fingerprint}
    if is_local(path):
        return {f"tokenizer {file.name}": fingerprint.of_file(file) for file in files(path)}
    return {"tokenizer": f"hub:{path}"}


def _of_run(path: str) -> Path:
    """Return the ``tokenizer`` folder in a run's folder or a data folder, or the folder itself if it has none."""
    folder = Path(path).expanduser()
    return folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder


def _read(recipe: Recipe, path: str) -> tuple[Tokenizer, dict[str, bytes]]:
    """Return the tokenizer, and a map from file name to content."""
    tokenizer: Tokenizer
    if recipe.tokenizer.kind == "run":
        folder = _of_run(path)
        published = manifest.require_sound(folder, "tokenizer")
        tokenizer, contents = load_tokenizer(folder), {name: (folder / name).read_bytes() for name in published.files}
    else:
        tokenizer, contents = read(files(path), path)

    if recipe.has_model and tokenizer.vocab_size > recipe.vocab_size:
        raise RequestError(
            f"tokenizer.path={path} has {tokenizer.vocab_size} ids, but the model's vocabulary only "
            f"{recipe.vocab_size}: set model.vocab_size={tokenizer.vocab_size} or more"
        )
    return tokenizer, contents


#: GPT-2's files: the vocabulary and the merges of a byte-level BPE.
_GPT2_NAMES = ("vocab.json", "merges.txt")
_END_OF_TEXT = "<|endoftext|>"


def is_local(path: str) -> bool:
    """Return whether a path refers to a local file or folder rather than to a repository on the Hub."""
    looks_local = path.startswith((".", "/", "~")) or path.endswith(".json") or path.count("/") > 1
    return looks_local or Path(path).exists()


def files(path: str) -> list[Path]:
    """List a tokenizer's files: ``tokenizer.json``, or the vocabulary and merges, plus the configuration if it exists.

    Raises:
        RequestError: the files do not exist, or the hub cannot be reached.
    """
    if not is_local(path):
        return _downloaded(path)
    local = Path(path).expanduser()
    if local.is_file():
        config = local.with_name(CONFIG_NAME)
        return [local, *([config] if config.is_file() else [])]
    paths = [local / name for name in (JSON_NAME, *_GPT2_NAMES, CONFIG_NAME) if (local / name).is_file()]
    names = [file.name for file in paths]
    if JSON_NAME in names:
        return [file for file in paths if file.name not in _GPT2_NAMES]
    if all(name in names for name in _GPT2_NAMES):
        return paths
    missing = (
        f"it has neither {JSON_NAME} nor {' and '.join(_GPT2_NAMES)}" if local.is_dir() else "no such file or folder"
    )
    raise RequestError(f"tokenizer.path={path}: {missing}")


def read(paths: list[Path], path: str) -> tuple[HuggingFaceTokenizer, dict[str, bytes]]:
    """Load the tokenizer from these files. Also returns a map from name to content, for the artefact's files.

    Raises:
        RequestError: a file is damaged.
    """
    gpt2 = {file.name: file for file in paths if file.name in _GPT2_NAMES}
    try:
        content = _converted(gpt2) if gpt2 else paths[0].read_text(encoding="utf-8")
        configs = [file.read_text(encoding="utf-8") for file in paths if file.name == CONFIG_NAME]
        tokenizer = HuggingFaceTokenizer(content, *configs)
    except (RequestError, UnicodeDecodeError) as error:
        raise RequestError(f"tokenizer.path={path}: {error}") from None
    return tokenizer, {JSON_NAME: content.encode(), **({CONFIG_NAME: configs[0].encode()} if configs else {})}


def _converted(gpt2: dict[str, Path]) -> str:
    """Convert GPT-2's files to ``tokenizer.json``, with GPT-2's byte-level pre-tokenizer and no prefix space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary, merges = (str(gpt2[name]) for name in _GPT2_NAMES)
    try:
        tokenizer = Tokenizer(models.BPE.from_file(vocabulary, merges))
    except Exception as error:  # the library raises nothing more specific
        raise RequestError(" ".join(str(error).split())) from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if tokenizer.token_to_id(_END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([_END_OF_TEXT])
    return str(tokenizer.to_str())


def _downloaded(name: str) -> list[Path]:
    """Download the files from a hub repository, or take them from the cache."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    # Otherwise each retry would print a line. The final error is reported below.
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
        main = [first] if first else [get(file) for file in _GPT2_NAMES]
        downloaded = [*main, get(CONFIG_NAME)]
    except Exception as error:  # from the hub, the HTTP client or the operating system; its first line says why
        message = " ".join(str(error).split("\n")[0].split())
        raise RequestError(
            f"tokenizer.path={name} is neither a local path nor a repository on the hub ({message}): check the name "
            "and the network, or use a local tokenizer.json"
        ) from None
    if None in main:
        raise RequestError(
            f"tokenizer.path={name}: the repository has neither {JSON_NAME} nor {' and '.join(_GPT2_NAMES)}"
        )
    return [file for file in downloaded if file is not None]
