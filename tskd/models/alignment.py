"""Two tokenizations of one text, aligned by the text that their tokens cover."""

from bisect import bisect_left
from collections.abc import Sequence

from tskd.errors import ModelError
from tskd.models.encoding import encode_text
from tskd.models.weights import LanguageModel
from tskd.records import Response


def token_ends(model: LanguageModel, response: Response) -> list[int]:
    """Where each target token of ``response`` ends, in characters of its text; the end token, one beyond the text.

    What a template puts before the text (a space) is counted below 0.
    """
    text = model.template.continuation(response.text)
    offsets = encode_text(model, text, return_offsets_mapping=True).offset_mapping
    ends = [end - (len(text) - len(response.text)) for _, end in offsets]
    return [*ends, len(response.text) + 1] if response.finished or not ends else ends


def aligned(theirs: Sequence[int], ours: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest groups of tokens that cover the same text in two tokenizations, as indices into either.

    Tokens are given by where they end, and a group ends wherever one token of each does (as in TRL's GOLD). The bytes
    of one character, which end together, stay together. A token beyond the last common end is in no group.
    """
    borders = sorted(set(theirs) & set(ours))
    groups: list[tuple[list[int], list[int]]] = [([], []) for _ in range(len(borders) + 1)]
    for side, ends in enumerate((theirs, ours)):
        for token, end in enumerate(ends):
            groups[bisect_left(borders, end)][side].append(token)
    return groups[:-1]


def _check_offsets(*models: LanguageModel) -> None:
    """Raise ``ModelError`` where a tokenizer does not tell which characters a token covers. Loads no weights."""
    for model in models:
        if not model.tokenizer.is_fast:
            raise ModelError(
                f"The tokenizer of {model.name!r} does not tell which characters its tokens cover, by which teacher "
                f"and target are aligned; use a model with a `tokenizer.json`, or `training=lora`."
            )
