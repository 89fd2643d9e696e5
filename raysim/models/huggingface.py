"""Models of the library `transformers`: from a configuration, or from a folder on this machine."""

from pathlib import Path
from typing import Any

from torch import nn

from raysim.core.errors import SettingError, nearest_first, reason_of, shortened

PREFIX = "huggingface:"
"""Begins the name of a model: `huggingface:gpt2`, or `huggingface:FOLDER`."""
CLASSES = {
    "next-token": "AutoModelForCausalLM",
    "token-classification": "AutoModelForTokenClassification",
    "classification": "AutoModelForSequenceClassification",
    "multilabel": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
}
"""The kind of model for each task."""
NO_PADDING = -1
"""A token that no text has: rows are read whole."""


def check_name(name: str) -> None:
    """Raise SettingError if the library is missing, or knows no such configuration."""
    kind, known = name.removeprefix(PREFIX), _library(name).CONFIG_MAPPING
    if kind not in known and not Path(kind).is_dir():
        near = ", ".join(nearest_first(kind, list(known))[:5])
        raise SettingError(
            f"model.name={name!r} is unknown; allowed: {PREFIX} and a folder with config.json, or a configuration of "
            f"transformers: {near}"
        )


def build(name: str, options: dict[str, Any], num_classes: int, vocabulary: int | None, task: str) -> nn.Module:
    """Build a model; its weights are those in the folder, or drawn from PyTorch's generator.

    Args:
        name: `huggingface:` and the name of a configuration, or a folder.
        options: Values of the configuration, as `{n_layer: 2, n_embd: 64, n_head: 4}`.
        num_classes: Number of outputs of a row or position.
        vocabulary: Number of token ids of the data; None: its inputs are no token ids.
        task: Name of the task.

    Raises:
        SettingError: If the task has no kind of model, or the configuration does not allow an option.
    """
    check_name(name)
    library, kind = _library(name), name.removeprefix(PREFIX)
    if task not in CLASSES:
        raise SettingError(
            f"model.name={name!r} is not allowed with task.name={task!r}; allowed: {', '.join(CLASSES)}"
        )
    given = {} if vocabulary is None else {"vocab_size": max(vocabulary, num_classes if task == "next-token" else 0)}
    if task != "next-token":
        given["num_labels"] = num_classes
    given |= {"use_cache": False, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None} | options
    builder, is_folder = getattr(library, CLASSES[task]), Path(kind).is_dir()
    try:
        if is_folder:
            kept = {option: value for option, value in given.items() if option != "vocab_size"}
            model = builder.from_pretrained(kind, local_files_only=True, **kept)
        else:
            model = builder.from_config(_configuration(library, name, kind, given))
    except SettingError:
        raise
    except Exception as error:  # whatever a configuration raises
        raise SettingError(
            f"model.options={shortened(options)} is not allowed for {name!r}: {reason_of(error)}"
        ) from None
    _check_vocabulary(name, model, vocabulary)
    if task != "next-token" and model.config.pad_token_id is None:
        model.config.pad_token_id = NO_PADDING  # not while it is built: that would freeze the last token's embedding
    single: nn.Module = model.float()
    return single


def _configuration(library: Any, name: str, kind: str, given: dict[str, Any]) -> Any:
    default = library.AutoConfig.for_model(kind)
    known = [option for option in default.to_dict() if not option.startswith("_")]
    if "is_decoder" in known and "num_labels" not in given:
        given = {"is_decoder": True, **given}  # an encoder would read the tokens that it predicts
    for option in given:
        if option not in known and not hasattr(default, option):
            allowed = ", ".join(nearest_first(option, known)[:5])
            raise SettingError(
                f"model.options.{option}={shortened(given[option])} is unknown; model.name={name!r} takes: {allowed}"
            )
    return library.AutoConfig.for_model(kind, **given)


def _check_vocabulary(name: str, model: Any, vocabulary: int | None) -> None:
    size = getattr(model.config, "vocab_size", None)
    if vocabulary is not None and size is not None and vocabulary > size:
        raise SettingError(
            f"model.name={name!r} has a vocabulary of {size}, and the data have token ids up to {vocabulary - 1}; "
            f"allowed: {vocabulary} or more (model.options.vocab_size)"
        )


def _library(name: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise SettingError(
            f"model.name={name!r} needs the library transformers; install it: pip install 'raysim[huggingface]'"
        ) from None
    return transformers
