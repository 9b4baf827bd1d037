"""1. Expand: from a few prompts to many, by showing a model some and letting it write one more."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pydantic import PositiveInt

from tskd.models import LanguageModel
from tskd.modules.batches import check_context, encode_prefix
from tskd.modules.generator import Request, Sampling, generate
from tskd.modules.trainer import LightningTrainer
from tskd.records import Expansion, Prompt
from tskd.templates import LIST_MARK, first_prompt


@dataclass(frozen=True)
class FewShot:
    """Draft ``num_drafts`` prompts, each after ``num_exemplars`` drawn from the pool; keep those never seen before.

    With ``drafts_per_request``, so many drafts follow the same exemplars, which are then read once for all of them.

    The paper's generator is few-shot too, by GPT-4o or the source model (its reviews); number, text and sampling are
    not published and are ours. A new prompt keeps the context (system prompt, earlier turns) of its first exemplar.
    ``held_out`` are fingerprints of the questions of the evaluation: a draft that repeats one is left out, and counted.
    """

    writer: LanguageModel
    trainer: LightningTrainer
    seed: int
    num_drafts: PositiveInt = 300
    num_exemplars: PositiveInt = 5
    drafts_per_request: PositiveInt = 1
    max_new_tokens: PositiveInt = 128
    temperature: float = 1.0
    top_p: float = 1.0
    held_out: Collection[str] = frozenset()

    def check_lengths(self, seeds: Sequence[Prompt]) -> None:
        """Raise ``ModelError`` where the longest of ``seeds``, shown together, leave the writer no room for a draft."""
        by_length = sorted(seeds, key=lambda seed: len(seed.text), reverse=True)[: self.num_exemplars]
        longest = len(encode_prefix(self.writer, self.writer.template.few_shot(by_length)))
        with_it = f"{len(by_length)} seeds to go on from and {self.max_new_tokens} new tokens"
        check_context(
            self.writer, longest + self.max_new_tokens, f"The longest request for a new prompt, with {with_it},"
        )

    def __call__(self, pool: Sequence[Prompt], seen: Sequence[Prompt], index: int) -> Expansion:
        """New prompts in the order drafted; repeats of ``seen`` and of each other are counted and left out."""
        keys = [f"{self.seed}/expand/{index}/{draft}" for draft in range(self.num_drafts)]
        firsts = [keys[draft - draft % self.drafts_per_request] for draft in range(self.num_drafts)]
        exemplars = [random.Random(key).sample(pool, min(self.num_exemplars, len(pool))) for key in firsts]
        requests = [
            Request(encode_prefix(self.writer, self.writer.template.few_shot(shown)), key)
            for shown, key in zip(exemplars, keys, strict=True)
        ]
        sampling = Sampling(self.max_new_tokens, self.temperature, self.top_p)
        drafts = generate(self.writer, requests, sampling, self.trainer, stop=LIST_MARK, label=f"{index} expand")

        known = {prompt.fingerprint for prompt in seen}
        prompts: list[Prompt] = []
        duplicates = malformed = held_out = 0
        for shown, draft in zip(exemplars, drafts, strict=True):
            text = first_prompt(draft.text) if draft.finished else None
            if text is None:
                malformed += 1
                continue
            prompt = Prompt(text, shown[0].context, index, tuple(parent.id for parent in shown))
            if prompt.fingerprint in self.held_out:
                held_out += 1
            elif prompt.fingerprint in known:
                duplicates += 1
            else:
                known.add(prompt.fingerprint)
                prompts.append(prompt)
        tokens = sum(draft.tokens for draft in drafts)
        return Expansion(tuple(prompts), self.num_drafts, duplicates, malformed, held_out, tokens)
