"""Evaluation by the field's own harness (lm-evaluation-harness), on the models that are in memory.

Questions, answers and metric are those of the task files in ``tskd/tasks/harness``, which the harness's own command
line reads too. What a model reads is its own template's prefix, in the very tokens that it is trained and scored on.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from tskd.errors import ConfigError
from tskd.models import LanguageModel
from tskd.modules.batches import check_context, encode_prefix
from tskd.modules.trainer import LightningTrainer
from tskd.records import Graded, Message, Prompt, Question
from tskd.tasks import Benchmark

TASKS = Path(__file__).parent / "tasks" / "harness"
MAX_LOGITS = 2**27  # in one batch of the harness, which computes them for whole sequences


@dataclass(frozen=True)
class HarnessEvaluator:
    """Zero-shot or few-shot as the task says; each question's answer, graded by the task's metric.

    ``max_new_tokens`` is the most that an answer may have. Where the task's YAML says another number, that is for the
    harness's command line.
    """

    task: Benchmark
    questions: Sequence[Question]
    trainer: LightningTrainer
    max_new_tokens: int

    def __post_init__(self) -> None:
        try:
            import lm_eval  # noqa: F401
        except ImportError:
            raise ConfigError(
                "The evaluation of a public benchmark needs lm-evaluation-harness: pip install 'tskd[benchmarks]'."
            ) from None
        wanted, there = self.task.harness().num_fewshot, len(self.task.examples())
        if wanted > there:
            raise ConfigError(
                f"`task.num_fewshot` is {wanted}, and the private split of {self.task.label} has {there} examples; "
                f"show fewer."
            )

    def __call__(self, model: LanguageModel) -> list[Graded]:
        """One graded answer for each question, in the order of the questions."""
        import lm_eval
        from lm_eval.tasks import TaskManager, get_task_dict

        harness = self.task.harness()
        longest = self.check_lengths(model)
        self.trainer.make_room(model.weights)
        # The harness puts nothing between a chat prompt and a choice; a plain template needs its space there.
        metadata = {**harness.metadata, "target_delimiter": model.template.continuation("")}
        with _quiet(), model.speaking() as network, _lent(network, model):
            if not model.weights.checkpoint.is_placed:
                network.to(self.trainer.device)
            manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
            tasks = get_task_dict([harness.name], manager)
            settings = tasks[harness.name].config
            settings.num_fewshot = harness.num_fewshot
            if settings.output_type == "generate_until":
                settings.generation_kwargs["max_gen_toks"] = self.max_new_tokens
            results = lm_eval.evaluate(
                _in_memory(model, network, longest, self._rows(model, longest), self.trainer.shows_progress),
                tasks,
                apply_chat_template=True,
                fewshot_as_multiturn=harness.num_fewshot > 0,
                bootstrap_iters=0,
                log_samples=True,
                confirm_run_unsafe_code=harness.runs_code,
            )
        samples = {row["doc_id"]: row for row in results["samples"][harness.name] if row["filter"] == harness.filter}
        return [
            Graded(q.prompt.id, _response(samples[index]), bool(samples[index][harness.metric]), q.split, q.group)
            for index, q in enumerate(self.questions)
        ]

    def answered_by(self, teacher: LanguageModel) -> "HarnessEvaluator":
        """Itself: a benchmark's questions all have answers."""
        return self

    def check_lengths(self, model: LanguageModel) -> int:
        """The tokens of the longest question, after the examples that it is asked with, and of its answer.

        Raises ``ModelError`` where they are more than the model has room for.
        """
        examples = self.task.examples()[: self.task.harness().num_fewshot]
        shown = [(Message("user", e.prompt.text), Message("assistant", str(e.answer))) for e in examples]
        context = tuple(chain.from_iterable(shown))
        prefixes = (model.template.prefix(replace(q.prompt, context=context)) for q in self.questions)
        longest = max((len(encode_prefix(model, prefix)) for prefix in prefixes), default=1) + self.max_new_tokens
        with_it = f"{len(examples)} examples and {self.max_new_tokens} new tokens"
        check_context(model, longest, f"The longest held-out question, with {with_it},")
        return longest

    def _rows(self, model: LanguageModel, longest: int) -> int:
        rows = self.trainer.batch_tokens // longest
        if self.task.harness().metric == "acc":  # likelihoods of choices, for which it computes all logits
            rows = min(rows, MAX_LOGITS // (longest * model.weights.config.get_text_config().vocab_size))
        return max(1, rows)


def _in_memory(model: LanguageModel, network: Any, longest: int, rows: int, progress: bool) -> Any:
    from lm_eval.models.huggingface import HFLM

    class InMemory(HFLM):  # type: ignore[misc]
        """The harness's own model class, with our template in the place of the tokenizer's."""

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            *context, last = (Message(turn["role"], turn["content"]) for turn in chat_history)
            return model.template.prefix(Prompt(last.content, tuple(context)))

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().generate_until(requests, disable_tqdm or not progress)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().loglikelihood(requests, disable_tqdm or not progress)

    return InMemory(
        pretrained=network,
        tokenizer=model.tokenizer,
        add_bos_token=model.template.adds_special_tokens,
        batch_size=rows,
        # Where a model names no limit, the harness would assume one, and cut what is longer without a word.
        max_length=model.weights.max_length or longest,
    )


@contextlib.contextmanager
def _lent(network: Any, model: LanguageModel) -> Iterator[None]:
    """To the harness: with what it needs of a model, and given back as it was."""
    settings, tokenizer = network.generation_config, model.tokenizer
    end, pad = settings.eos_token_id, tokenizer.pad_token
    # The end of a turn is often not the one token that the model's own generation settings name.
    settings.eos_token_id = sorted(model.end_tokens)
    try:
        yield
    finally:
        settings.eos_token_id = end
        tokenizer.pad_token = pad  # the harness chooses one where there is none


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's own lines, and its bar over the making of requests, which are done in a moment."""
    import lm_eval.api.task

    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    levels = [logger.level for logger in loggers]
    bar = lm_eval.api.task.tqdm
    lm_eval.api.task.tqdm = partial(bar, disable=True)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        lm_eval.api.task.tqdm = bar
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _response(sample: dict[str, Any]) -> str:
    """What the model answered: its whole text, or the choice that it finds likeliest."""
    first = sample["resps"][0][0]
    if isinstance(first, str):
        return first.strip()
    likelihoods = [likelihood for likelihood, _ in sample["filtered_resps"]]
    return str(sample["arguments"][likelihoods.index(max(likelihoods))][1]).strip()
