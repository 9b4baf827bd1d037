"""1. Expand: from a few prompts to many.

A strategy says what a writer reads before it writes one more prompt, made from prompts of the pool, and how that prompt
is read out of what it wrote. All else is the same for all: what is drawn, what a new prompt inherits, and what is left
out. One of your own is a subclass of ``Strategy`` in a file of yours, named by ``_target_``.
"""

import math
import random
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt

from tskd.errors import ConfigError
from tskd.models.generation import Generation, Sampling
from tskd.models.templates import LIST_MARK, REWRITTEN, first_prompt, number_mark
from tskd.records import Expansion, Message, Prompt, Question
from tskd.stages.near_duplicates import Similar
from tskd.stages.writers import Writer


@dataclass(frozen=True)
class Strategy(ABC):
    """Draft ``num_drafts`` prompts, each from ``drawn`` prompts of the pool; keep those that are new.

    With ``drafts_per_request``, so many drafts follow the same text, which is then read once for all of them. A new
    prompt has the context (system prompt, earlier turns) of the first that it was drafted from.

    ``held_out`` are fingerprints of the questions of the evaluation: a draft that repeats one is left out, and counted.
    So is one whose ROUGE-L with a prompt seen before, in the same context, is ``max_rouge_l`` or more (Self-Instruct,
    arXiv 2212.10560, has 0.7).
    """

    writer: Writer
    seed: int
    num_drafts: PositiveInt = 300
    drafts_per_request: PositiveInt = 1
    max_new_tokens: PositiveInt = 128
    temperature: NonNegativeFloat = 0.9
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_rouge_l: Annotated[float, Field(gt=0, le=1)] | None = None
    held_out: Collection[str] = frozenset()

    @property
    def drawn(self) -> int:
        """How many prompts of the pool a request is made from, as far as there are so many."""
        return 1

    @abstractmethod
    def request(self, shown: Sequence[Prompt], rng: random.Random) -> str:
        """What the writer reads before it writes a prompt that is made from those ``shown``."""

    def longest(self, shown: Sequence[Prompt]) -> str:
        """The longest request that can be made from those ``shown``."""
        return self.request(shown, random.Random(0))

    def stop(self, pool: Sequence[Prompt]) -> tuple[str, ...]:
        """The texts that end a draft; without one, only the writer's end token does."""
        return ()

    def read(self, draft: str) -> str | None:
        """The new prompt in what the writer wrote, without the space around it, or ``None`` where there is none."""
        return draft or None

    def check_lengths(self, seeds: Sequence[Prompt]) -> None:
        """Raise ``ModelError`` where the longest of ``seeds``, shown together, leave the writer no room for a draft."""
        shown = sorted(seeds, key=lambda seed: len(self.longest([seed])), reverse=True)[: self.drawn]
        with_it = f"{len(shown)} seeds to go on from and {self.max_new_tokens} new tokens"
        what = f"The longest request for a new prompt, with {with_it},"
        self.writer.check_length(self.longest(shown), self.max_new_tokens, what)

    def __call__(self, pool: Sequence[Prompt], seen: Sequence[Prompt], index: int) -> Expansion:
        """New prompts in the order drafted; repeats of ``seen`` and of each other are counted and left out."""
        keys = [f"{self.seed}/expand/{index}/{draft}" for draft in range(self.num_drafts)]
        requests, parents = [], []
        for draft in range(self.num_drafts):
            rng = random.Random(keys[draft - draft % self.drafts_per_request])
            parents.append(rng.sample(pool, min(self.drawn, len(pool))))
            requests.append(self.request(parents[-1], rng))
        sampling = Sampling(self.max_new_tokens, self.temperature, self.top_p)
        drafts = self.writer.write(requests, keys, sampling, stop=self.stop(pool), label=f"{index} expand")
        return self._new(drafts, parents, seen, index)

    def _new(
        self, drafts: Sequence[Generation], parents: Sequence[Sequence[Prompt]], seen: Sequence[Prompt], index: int
    ) -> Expansion:
        known = {prompt.fingerprint for prompt in seen}
        # What is near what was seen stays near it, for that only grows: nothing else need remember what was left out.
        # Any other measure of likeness (of embeddings, say) would be another class in the place of `Similar`.
        similar: dict[tuple[Message, ...], Similar] = defaultdict(lambda: Similar(self.max_rouge_l or math.inf))
        for prompt in seen:
            similar[prompt.context].add(prompt.text)
        prompts: list[Prompt] = []
        repeats = Counter[str]()
        near_duplicates = malformed = held_out = 0
        for shown, draft in zip(parents, drafts, strict=True):
            text = self.read(draft.text.strip()) if draft.finished else None
            if text is None:
                malformed += 1
                continue
            prompt = Prompt(text, shown[0].context, index, tuple(parent.id for parent in shown))
            if prompt.fingerprint in self.held_out:
                held_out += 1
            elif prompt.fingerprint in known:
                repeats[prompt.fingerprint] += 1
            elif similar[prompt.context].has(text):
                near_duplicates += 1
                known.add(prompt.fingerprint)
            else:
                known.add(prompt.fingerprint)
                prompts.append(prompt)
                similar[prompt.context].add(text)
        return Expansion(
            tuple(prompts),
            drafts=self.num_drafts,
            duplicates=repeats.total(),
            malformed=malformed,
            held_out=held_out,
            tokens=sum(draft.tokens for draft in drafts),
            near_duplicates=near_duplicates,
            repeats=dict(repeats),
        )


@dataclass(frozen=True)
class FewShot(Strategy):
    """One more of a list of ``num_exemplars`` prompts.

    The paper's generator is few-shot too, by GPT-4o or the source model (its reviews); number, text and sampling are
    not published and are ours.
    """

    num_exemplars: PositiveInt = 5

    @property
    def drawn(self) -> int:
        return self.num_exemplars

    def request(self, shown: Sequence[Prompt], rng: random.Random) -> str:
        return self.writer.template.few_shot(shown)

    def stop(self, pool: Sequence[Prompt]) -> tuple[str, ...]:
        return (LIST_MARK,)

    def read(self, draft: str) -> str | None:
        return first_prompt(draft)


@dataclass(frozen=True)
class NumberedList(FewShot):
    """The next item of a numbered list, which the writer goes on with as plain text, chat model or not.

    Trans-LoRA's generator (arXiv 2405.17258); it publishes no sampling, and the blank lines between the items, by which
    prompts of several lines can be told apart, are ours.
    """

    def request(self, shown: Sequence[Prompt], rng: random.Random) -> str:
        return self.writer.template.numbered_list(shown)

    def stop(self, pool: Sequence[Prompt]) -> tuple[str, ...]:
        return (number_mark(min(self.drawn, len(pool)) + 2),)

    def read(self, draft: str) -> str | None:
        return draft or None


@dataclass(frozen=True)
class Unprompted(Strategy):
    """What the writer makes of an open user's turn, with no exemplar before it: Magpie's idea (arXiv 2406.08464).

    Of the pool it uses contexts alone, so the parent of a new prompt is the one whose context it goes on from.
    """

    temperature: NonNegativeFloat = 1.0

    def request(self, shown: Sequence[Prompt], rng: random.Random) -> str:
        return self.writer.template.opening(shown[0].context)

    def stop(self, pool: Sequence[Prompt]) -> tuple[str, ...]:
        closing = self.writer.template.closing()
        return () if closing is None else (closing,)


@dataclass(frozen=True)
class Evolve(Strategy):
    """A prompt of the pool, rewritten by one of the ``operations``: Evol-Instruct's idea (arXiv 2304.12244).

    The operations and all wording are ours. It needs a writer that follows instructions.
    """

    operations: tuple[str, ...] = (
        "make it harder: the answer takes one more step",
        "make it rarer: it asks about something of the same kind that is seldom asked about",
        "word it differently: other words in another order, and still the same answer",
    )

    def __post_init__(self) -> None:
        if not self.operations:
            raise ConfigError("`expansion.operations` is empty; give at least one.")

    def request(self, shown: Sequence[Prompt], rng: random.Random) -> str:
        return self.writer.template.rewrite(shown[0], rng.choice(self.operations))

    def longest(self, shown: Sequence[Prompt]) -> str:
        return self.writer.template.rewrite(shown[0], max(self.operations, key=len))

    def stop(self, pool: Sequence[Prompt]) -> tuple[str, ...]:
        return (LIST_MARK,)

    def read(self, draft: str) -> str | None:
        return first_prompt(draft.removeprefix(REWRITTEN))


@dataclass(frozen=True)
class Private:
    """The teacher's private prompts themselves, in the place of synthetic ones: what a generator has to come up to.

    Answered by the teacher they are REFRESH (UpgradeBench, arXiv 2608.20918), which keeps .96 to 1.05 of retraining
    there; with their own answers (``tskd.stages.answer.Gold``) they are the original data.
    """

    private: Sequence[Question]
    seed: int
    num_drafts: PositiveInt = 300

    def __call__(self, pool: Sequence[Prompt], seen: Sequence[Prompt], index: int) -> Expansion:
        """At most ``num_drafts`` of those not seen, drawn by chance, in the order of the split.

        Like seeds they have no parents, for they are given, not written.
        """
        known = {prompt.fingerprint for prompt in seen}
        there = {question.prompt.fingerprint: question.prompt for question in self.private}
        new = [prompt for fingerprint, prompt in there.items() if fingerprint not in known]
        drawn = set(random.Random(f"{self.seed}/private/{index}").sample(new, min(self.num_drafts, len(new))))
        prompts = tuple(replace(prompt, iteration=index) for prompt in new if prompt in drawn)
        return Expansion(prompts, drafts=len(prompts))
