"""From prompts and responses to the token ids that a model reads."""

from dataclasses import dataclass
from typing import Any

from tskd.errors import ModelError
from tskd.models.weights import LanguageModel
from tskd.records import Prompt


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids, of which those from ``first_target`` on are to be predicted."""

    ids: tuple[int, ...]
    first_target: int

    @property
    def num_targets(self) -> int:
        return len(self.ids) - self.first_target


def encode_prefix(model: LanguageModel, prefix: str) -> tuple[int, ...]:
    ids = model.tokenizer(prefix, add_special_tokens=model.template.adds_special_tokens).input_ids
    return tuple(ids) or (model.start_token,)


def encode_text(model: LanguageModel, text: str, **options: Any) -> Any:
    """What the tokenizer makes of ``text`` alone, in which even the name of a control token is nothing but text."""
    return model.tokenizer(text, add_special_tokens=False, split_special_tokens=True, **options)


def encode_response(model: LanguageModel, prompt: Prompt, text: str, finished: bool) -> TokenSequence:
    """Prompt, response and, where the response is finished, the end token. The response's tokens are the targets."""
    prefix = encode_prefix(model, model.template.prefix(prompt))
    response = encode_text(model, model.template.continuation(text)).input_ids
    end = [model.template.end_token()] if finished or not response else []  # an empty text still has its end
    return TokenSequence((*prefix, *response, *end), first_target=len(prefix))


def check_context(model: LanguageModel, length: int, what: str) -> None:
    """Raise ``ModelError`` where ``length`` tokens do not fit the model's positions."""
    limit = model.weights.max_length
    if limit is not None and length > limit:
        raise ModelError(
            f"{what} needs {length} tokens, and {model.name} has room for {limit}; "
            f"shorten the prompts, or lower the number of exemplars or of new tokens."
        )
