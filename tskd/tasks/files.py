"""A user's own case: seeds and, if there are any, held-out questions and private examples, from files.

JSON Lines, one prompt each: ``{"prompt": "…"}`` or ``{"messages": [{"role": "user", "content": "…"}, …]}``; lines that
are held out or private may add ``"answer"``, and held-out ones ``"split"``. A ``.txt`` file has one prompt per line.
"""

import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tskd.errors import TaskError
from tskd.records import PRIVATE, Message, Prompt, Question
from tskd.tasks import distinct, same_answer

RESERVED = ("base", "teacher", "target")  # `eval/<voice>_accuracy` is theirs
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Files:
    """``held_out`` may be left out: then nothing is evaluated. Without answers, agreement with the teacher is.

    ``private`` is what the teacher was fine-tuned on, for what learns from it or is measured by it; without answers, it
    is prompts alone.
    """

    drops_held_out: ClassVar[bool] = True

    seeds: str
    held_out: str | None = None
    private: str | None = None

    @property
    def label(self) -> str:
        return Path(self.private or self.seeds).stem

    def seed_prompts(self) -> list[Prompt]:
        """The distinct seeds, in the order of the file. Raises ``TaskError`` where there are none, or one repeated."""
        prompts = [_prompt(row, where) for row, where in _rows(self.seeds)]
        if not prompts:
            raise TaskError(f"{self.seeds} has no prompts; give a few that are like the teacher's training data.")
        if len(prompts) > 1 and len(distinct(prompts)) == 1:
            raise TaskError(f"All {len(prompts)} seeds in {self.seeds} are the same; give different ones.")
        return distinct(prompts)

    def questions(self) -> list[Question]:
        return [] if self.held_out is None else [_question(row, where) for row, where in _rows(self.held_out)]

    def examples(self) -> list[Question]:
        """None where no file is named. Raises ``TaskError`` where there are none in it, or one is held out too."""
        if self.private is None:
            return []
        examples = {where: _question(row, where) for row, where in _rows(self.private)}
        if not examples:
            raise TaskError(f"{self.private} has no examples; give the teacher's training data, or leave it out.")
        held_out = {question.prompt.fingerprint for question in self.questions()}
        for where, example in examples.items():
            if example.prompt.fingerprint in held_out:
                raise TaskError(f"{where}: this is asked in {self.held_out} too; leave it out of one of the files.")
        return list(examples.values())

    def is_correct(self, question: Question, response: str) -> bool:
        return question.answer is not None and same_answer(question.answer, response)

    def is_private(self, prompt: Prompt) -> bool | None:
        return None


def _question(row: dict[str, Any], where: str) -> Question:
    answer = row.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise TaskError(f"{where}: `answer` is {answer!r}; it must be a string.")
    split = str(row.get("split") or PRIVATE)
    if split in RESERVED:
        raise TaskError(f"{where}: `split` is {split!r}, which names a model's accuracy; choose another name.")
    return Question(_prompt(row, where), answer, split)


def _rows(name: str) -> list[tuple[dict[str, Any], str]]:
    """The file's rows, each with the place to name when something is wrong with it."""
    path = Path(name).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # other line separators may stand in a prompt
    except FileNotFoundError:
        raise TaskError(f"There is no file {path} (looked from {Path.cwd()}).") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read as UTF-8 text: {error}") from None
    numbered = [(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix == ".txt":
        return [({"prompt": line}, where) for line, where in numbered]
    return [(_object(line, where), where) for line, where in numbered]


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where}: not JSON ({error}); write one object per line, or name the file .txt.") from None
    if not isinstance(row, dict):
        raise TaskError(f"{where}: a {type(row).__name__} where an object with `prompt` or `messages` belongs.")
    return row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of a key that is there twice, JSON would take the last and say nothing."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return dict(pairs)


def _is_blank(text: str) -> bool:
    """Whether nothing of it can be seen: white space, control and zero-width characters."""
    return all(unicodedata.category(character) in ("Cc", "Cf", "Zs", "Zl", "Zp") for character in text)


def _prompt(row: dict[str, Any], where: str) -> Prompt:
    if "messages" in row and "prompt" in row:
        raise TaskError(f"{where}: both `prompt` and `messages`; leave one of them out.")
    if "messages" in row:
        *context, last = _messages(row["messages"], where)
        if last.role != "user":
            raise TaskError(f"{where}: the last message is the {last.role}'s; it must be the user's, to be answered.")
        text = last.content
        turns = tuple(context)
    else:
        text, turns = row.get("prompt", ""), ()
    if not isinstance(text, str) or _is_blank(text):
        found = ", ".join(row) or "nothing"
        raise TaskError(f"{where}: no text in `prompt` or `messages` (found: {found}).")
    try:
        "".join([text, *(turn.content for turn in turns)]).encode()
    except UnicodeEncodeError:
        raise TaskError(f"{where}: half of a surrogate pair, which is no text; mend the escape.") from None
    return Prompt(text.strip(), turns)


def _messages(messages: Any, where: str) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise TaskError(f"{where}: `messages` must be a list of at least one message.")
    turns = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in ROLES or not isinstance(content, str):
            raise TaskError(f"{where}: each message needs a `role` ({', '.join(ROLES)}) and a `content` text.")
        turns.append(Message(role, content))
    return turns
