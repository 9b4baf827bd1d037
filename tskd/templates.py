"""How a prompt, a response and a few-shot request become text.

A template gives the *prefix* that a model reads and the *continuation* that it writes; they are tokenised apart and
joined as token ids, so the border between prompt and response is exact whatever the tokenizer would merge across it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tskd.errors import ModelError
from tskd.records import Message, Prompt

LIST_HEADER = "Here are prompts of one kind."
LIST_MARK = "\n\nPrompt:"
LIST_REQUEST = "Write one more prompt of the same kind, with other content. Reply with the new prompt alone."

# Templates that print today's date (Llama 3.2) get one and the same, so that a seed gives the same prompts tomorrow;
# those that let a model think first (Qwen 3) are asked for the answer.
_FIXED = {"date_string": "26 Jul 2024", "enable_thinking": False}


class Template(Protocol):
    """``adds_special_tokens``: whether the tokenizer still has to put its start token before a prefix."""

    adds_special_tokens: bool

    def prefix(self, prompt: Prompt) -> str:
        """What the model reads before it answers."""

    def continuation(self, text: str) -> str:
        """What the model writes when ``text`` is its response."""

    def few_shot(self, exemplars: Sequence[Prompt]) -> str:
        """What the model reads before it writes one more prompt like the exemplars."""

    def end_token(self) -> int:
        """The id of the token that ends a response."""


@dataclass(frozen=True)
class Plain:
    """For base models: question, answer; a new prompt continues a list (as in Trans-LoRA, section 3)."""

    tokenizer: Any
    adds_special_tokens = True

    def prefix(self, prompt: Prompt) -> str:
        return "".join(map(self._turn, prompt.context)) + f"Question: {prompt.text}\nAnswer:"

    def continuation(self, text: str) -> str:
        # The space belongs to the response: with it before the border, tokenizers that merge a space
        # into the word behind it would be shown a spelling that they never saw.
        return " " + text

    def few_shot(self, exemplars: Sequence[Prompt]) -> str:
        return _list_of(exemplars) + LIST_MARK

    def end_token(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def _turn(self, turn: Message) -> str:
        form = {"system": "{}\n\n", "user": "Question: {}\n", "assistant": "Answer: {}\n\n"}[turn.role]
        return form.format(turn.content)


@dataclass(frozen=True)
class Chat:
    """For chat models: the tokenizer's own chat template, which also says which token ends a turn."""

    tokenizer: Any
    adds_special_tokens = False  # the rendered template has them

    def prefix(self, prompt: Prompt) -> str:
        return self._render([*prompt.context, Message("user", prompt.text)])

    def continuation(self, text: str) -> str:
        return text

    def few_shot(self, exemplars: Sequence[Prompt]) -> str:
        return self._render([Message("user", f"{_list_of(exemplars)}\n\n{LIST_REQUEST}")])

    def end_token(self) -> int:
        # The end of a turn is often not `eos_token` (Llama-3 base tokenizers, Gemma): ask the template itself.
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "\u241f"}]
        rendered = self.tokenizer.apply_chat_template(turns, tokenize=False, **_FIXED)
        after = self.tokenizer(rendered.rpartition("\u241f")[2].lstrip(), add_special_tokens=False).input_ids
        return int(after[0]) if after else int(self.tokenizer.eos_token_id)

    def _render(self, turns: Sequence[Message]) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **_FIXED)
        return str(rendered)


def template_for(tokenizer: Any, kind: str) -> Template:
    """``plain``, ``chat``, or ``auto``: chat where the tokenizer brings a chat template."""
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    if kind == "chat" and not has_chat:
        raise ModelError(
            f"The tokenizer of {tokenizer.name_or_path!r} has no chat template, so `template: chat` cannot be used; "
            f"set `template: plain`."
        )
    if kind not in ("auto", "plain", "chat"):
        raise ModelError(f"There is no template {kind!r}; there are auto, plain and chat.")
    return Chat(tokenizer) if has_chat and kind != "plain" else Plain(tokenizer)


def first_prompt(draft: str) -> str | None:
    """The one new prompt in what a model wrote after a few-shot request, or None where there is none.

    Whatever comes after it (a next list item) is cut off. A model may repeat the list's label; it does not count.
    """
    text = draft.split(LIST_MARK)[0].strip()
    return text.removeprefix("Prompt:").strip() or None


def _list_of(exemplars: Sequence[Prompt]) -> str:
    return LIST_HEADER + "".join(f"{LIST_MARK} {exemplar.text}" for exemplar in exemplars)
