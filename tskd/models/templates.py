"""How a prompt, a response and a request for a new prompt become text.

A template gives the *prefix* that a model reads and the *continuation* that it writes; they are tokenised apart and
joined as token ids, so the border between prompt and response is exact whatever the tokenizer would merge across it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from tskd.errors import ConfigError, ModelError
from tskd.records import Message, Prompt

LIST_HEADER = "Here are prompts of one kind."
LIST_MARK = "\n\nPrompt:"
LIST_REQUEST = "Write one more prompt of the same kind, with other content. Reply with the new prompt alone."
REWRITTEN = "Rewritten prompt:"
PLACEHOLDER = "\u241f"  # a character that no template has, to see what stands around a text

# Templates that print today's date (Llama 3.2) get one and the same, so that a seed gives the same prompts tomorrow;
# those that let a model think first (Qwen 3) are asked for the answer.
FIXED = {"date_string": "26 Jul 2024", "enable_thinking": False}


class Requests(Protocol):
    """The ways to ask for a new prompt. Each gives the text that a writer reads before it writes one."""

    def few_shot(self, exemplars: Sequence[Prompt]) -> str:
        """For one more prompt like the exemplars."""

    def numbered_list(self, exemplars: Sequence[Prompt]) -> str:
        """For the next item of a numbered list, by going on with plain text."""

    def opening(self, context: Sequence[Message]) -> str:
        """For any prompt: what stands before the text of a user who speaks after ``context``."""

    def closing(self) -> str | None:
        """What stands behind a user's text, if anything does."""

    def rewrite(self, prompt: Prompt, operation: str) -> str:
        """For ``prompt`` in another form; ``operation`` goes on from "rewrite it, to …"."""


class Template(Requests, Protocol):
    """``adds_special_tokens``: whether the tokenizer still has to put its start token before a prefix."""

    adds_special_tokens: bool

    def prefix(self, prompt: Prompt) -> str:
        """What the model reads before it answers."""

    def continuation(self, text: str) -> str:
        """What the model writes when ``text`` is its response."""

    def end_token(self) -> int:
        """The id of the token that ends a response."""


@dataclass(frozen=True)
class _Reader:
    """What templates share: a model that reads a text with the name of a control token must not obey it.

    A prompt may be about such tokens, or somebody may have put one there to end the user's turn. The name gets a space
    behind its first character, as in ``< |im_end|>``. (A response is never changed: it is encoded as plain text.)
    """

    tokenizer: Any

    def _inert(self, text: str) -> str:
        while self._control.search(text):  # again, for one name may overlap another
            text = self._control.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
        return text

    @cached_property
    def _control(self) -> re.Pattern[str]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        names = {token.content for token in added if token.special and len(token.content) > 1}
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


@dataclass(frozen=True)
class Plain(_Reader):
    """For base models: question, answer; a new prompt goes on with a text."""

    adds_special_tokens = True

    def prefix(self, prompt: Prompt) -> str:
        return self._inert("".join(map(self._turn, prompt.context)) + f"Question: {prompt.text}\nAnswer:")

    def continuation(self, text: str) -> str:
        # The space belongs to the response: with it before the border, tokenizers that merge a space
        # into the word behind it would be shown a spelling that they never saw.
        return " " + text

    def few_shot(self, exemplars: Sequence[Prompt]) -> str:
        return self._inert(list_of(exemplars) + LIST_MARK)

    def numbered_list(self, exemplars: Sequence[Prompt]) -> str:
        return self._inert(numbered(exemplars))

    def opening(self, context: Sequence[Message]) -> str:
        return self._inert("".join(map(self._turn, context)) + "Question:")

    def closing(self) -> str | None:
        return "\nAnswer:"

    def rewrite(self, prompt: Prompt, operation: str) -> str:
        return self._inert(f"The prompt below was rewritten, to {operation}.{_item(prompt)}\n\n{REWRITTEN}")

    def end_token(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def _turn(self, turn: Message) -> str:
        form = {"system": "{}\n\n", "user": "Question: {}\n", "assistant": "Answer: {}\n\n"}[turn.role]
        return form.format(turn.content)


@dataclass(frozen=True)
class Chat(_Reader):
    """For chat models: the tokenizer's own chat template, which also says which token ends a turn."""

    adds_special_tokens = False  # the rendered template has them

    def prefix(self, prompt: Prompt) -> str:
        return self._render([*prompt.context, Message("user", prompt.text)])

    def continuation(self, text: str) -> str:
        return text

    def few_shot(self, exemplars: Sequence[Prompt]) -> str:
        return self._render([Message("user", few_shot_request(exemplars))])

    def numbered_list(self, exemplars: Sequence[Prompt]) -> str:
        start = str(self.tokenizer.decode(self.tokenizer("").input_ids))
        return start + self._inert(numbered(exemplars))

    def opening(self, context: Sequence[Message]) -> str:
        # A space before the text belongs to the text, for the reason given in `Plain.continuation`.
        return self._around_last([*context, Message("user", PLACEHOLDER)])[0].rstrip(" ")

    def closing(self) -> str | None:
        return self._around_last([Message("user", PLACEHOLDER)])[1].strip() or None

    def rewrite(self, prompt: Prompt, operation: str) -> str:
        return self._render([Message("user", rewrite_request(prompt, operation))])

    def end_token(self) -> int:
        # The end of a turn is often not `eos_token` (Llama-3 base tokenizers, Gemma): ask the template itself.
        closing = self._around_last([Message("user", "x"), Message("assistant", PLACEHOLDER)])[1]
        after = self.tokenizer(closing.lstrip(), add_special_tokens=False).input_ids
        return int(after[0]) if after else int(self.tokenizer.eos_token_id)

    def _around_last(self, turns: Sequence[Message]) -> tuple[str, str]:
        """What stands before and behind the text of the last turn, which is the placeholder."""
        before, _, after = self._render(turns, opens_answer=False).rpartition(PLACEHOLDER)
        return before, after

    def _render(self, turns: Sequence[Message], opens_answer: bool = True) -> str:
        messages = [{"role": turn.role, "content": self._inert(turn.content)} for turn in turns]
        rendered = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=opens_answer, **FIXED
        )
        return str(rendered)


@dataclass(frozen=True)
class Asked:
    """For chat models behind a server, which has the chat template: a request is what a user's turn says."""

    def few_shot(self, exemplars: Sequence[Prompt]) -> str:
        return few_shot_request(exemplars)

    def numbered_list(self, exemplars: Sequence[Prompt]) -> str:
        raise ConfigError("A chat server cannot go on with a list; set `expansion` to few_shot or evolve.")

    def opening(self, context: Sequence[Message]) -> str:
        raise ConfigError("A chat server does not write a user's turn; set `expansion` to few_shot or evolve.")

    def closing(self) -> str | None:
        return None

    def rewrite(self, prompt: Prompt, operation: str) -> str:
        return rewrite_request(prompt, operation)


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


def few_shot_request(exemplars: Sequence[Prompt]) -> str:
    """What a chat model is asked, for one more prompt like the exemplars."""
    return f"{list_of(exemplars)}\n\n{LIST_REQUEST}"


def rewrite_request(prompt: Prompt, operation: str) -> str:
    """What a chat model is asked, for ``prompt`` in another form."""
    return f"Rewrite the prompt below, to {operation}. Reply with the rewritten prompt alone.{_item(prompt)}"


def list_of(exemplars: Sequence[Prompt]) -> str:
    return LIST_HEADER + "".join(map(_item, exemplars))


def numbered(exemplars: Sequence[Prompt]) -> str:
    """A list of twice as many items as there are exemplars (five of ten in Trans-LoRA), open where they end."""
    texts = [_without(r"\d+[.]", exemplar.text) for exemplar in exemplars]
    items = [f"{number_mark(number)} {text}" for number, text in enumerate(texts, 1)]
    return "".join([f"Here are {2 * len(texts)} examples:", *items, number_mark(len(texts) + 1)])


def number_mark(number: int) -> str:
    return f"\n\n{number}."


def first_prompt(draft: str) -> str | None:
    """The one new prompt in what a model wrote after a few-shot request, or None where there is none.

    Whatever comes after it (a next list item) is cut off. A model may repeat the list's label; it does not count.
    """
    text = draft.split(LIST_MARK)[0].strip()
    return text.removeprefix("Prompt:").strip() or None


def _item(prompt: Prompt) -> str:
    return f"{LIST_MARK} {_without(f'Prompt:|{REWRITTEN}', prompt.text)}"


def _without(mark: str, text: str) -> str:
    """``text`` without blank lines before ``mark``: with them, it would look as if it were two items of a list."""
    return re.sub(rf"[^\S\n\r]*(?:[\n\r][^\S\n\r]*){{2,}}(?={mark})", "\n", text)
