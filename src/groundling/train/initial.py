"""`init_from`: start a run from a bundle's weights, model settings and tokenizer."""

import dataclasses

from groundling.bundle import Bundle, load_bundle
from groundling.bundle.layout import require_language_model
from groundling.bundle.weights import plain_state_dict
from groundling.config import differences
from groundling.errors import ConfigError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.text.build import TokenizerConfig
from groundling.train.settings import PretrainConfig

MODEL_MAY_DIFFER = ("dropout", "attention_dropout", "block_size")
"""Model settings that may differ from the bundle's; block_size only downwards."""
TOKENIZER_MAY_DIFFER = ("unknown", "replacement")
"""Tokenizer settings that may differ from the bundle's: how to treat unknown characters depends on the text."""
POSITIONS = "positions.wpe.weight"


def read_initial(config: PretrainConfig, source: str) -> tuple[PretrainConfig, Bundle]:
    """Load the bundle that a run starts from; return the config with the bundle's model, and the bundle.

    Args:
        config: its model is either left at the defaults or agrees with the bundle's.
        source: `config.init_from`; for a resumed run its checkpoint.

    Raises:
        ConfigError: a setting disagrees with the bundle, or the bundle is a reward model.
        CheckpointError: there is no bundle, or it is damaged.
    """
    require_language_model(source)
    bundle = load_bundle(source)
    model = bundle.config if config.model == GPTConfig() else config.model
    _require_agreement(config, model, bundle)
    model = dataclasses.replace(model, vocab_size=bundle.config.vocab_size)
    return dataclasses.replace(config, model=model), bundle


def take_weights(model: GPT, bundle: Bundle) -> None:
    """Copy a bundle's weights into a model, whose context may be shorter."""
    weights = plain_state_dict(bundle.model)
    if POSITIONS in weights:
        weights[POSITIONS] = weights[POSITIONS][: model.block_size]
    model.load_state_dict(weights, strict=False)


def _require_agreement(config: PretrainConfig, model: GPTConfig, bundle: Bundle) -> None:
    theirs = dataclasses.replace(bundle.config, vocab_size=model.vocab_size)
    may = tuple(f"model.{name}:" for name in MODEL_MAY_DIFFER)
    wrong = [line for line in differences(theirs, model, "model.") if not line.startswith(may)]
    if model.block_size > theirs.block_size:
        wrong.append(f"model.block_size: {theirs.block_size} -> {model.block_size}")
    may = tuple(f"data.tokenizer.{name}:" for name in TOKENIZER_MAY_DIFFER)
    asked = differences(TokenizerConfig(), config.data.tokenizer, "data.tokenizer.")
    wrong += [line for line in asked if not line.startswith(may)]
    if wrong:
        raise ConfigError(
            f"a run that starts from {config.init_from} takes its model and its tokenizer, and these settings differ: "
            f"{'; '.join(wrong)}; leave them out, or leave init_from out to train a new model"
        )
