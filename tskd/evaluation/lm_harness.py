"""Evaluation by the field's own harness (lm-evaluation-harness), on the models that are in memory.

Questions, answers and metric are those of the task files in ``tskd/tasks/lm_eval_tasks``, which the harness's own
command line reads too. What a model reads is its own template's prefix, in the very tokens that it is trained and
scored on; its passes are those of the stages (``generate``, ``log_likelihoods``), so several processes share them out.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from tskd.engines.engine import Engine
from tskd.engines.own import OwnLoop, generate
from tskd.errors import ConfigError
from tskd.models.encoding import TokenSequence, check_context, encode_prefix
from tskd.models.generation import Request, Sampling
from tskd.models.weights import LanguageModel
from tskd.modules.trainer import LightningTrainer
from tskd.records import Graded, Message, Prompt, Question
from tskd.tasks import Benchmark

TASKS = Path(__file__).parents[1] / "tasks" / "lm_eval_tasks"


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
    engine: Engine = OwnLoop()

    def key_content(self) -> list[Any]:
        files = [file for file in sorted(TASKS.iterdir()) if file.is_file()]  # the harness reads them by their names
        told = [self.task, self.questions, self.trainer, self.max_new_tokens, self.engine]
        return [*told, files, version("lm_eval")]

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
        self.check_lengths(model)
        # The harness puts nothing between a chat prompt and a choice; a plain template needs its space there.
        metadata = {**harness.metadata, "target_delimiter": model.template.continuation("")}
        with _quiet():
            manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
            tasks = get_task_dict([harness.name], manager)
            settings = tasks[harness.name].config
            settings.num_fewshot = harness.num_fewshot
            if settings.output_type == "generate_until":
                settings.generation_kwargs["max_gen_toks"] = self.max_new_tokens
            results = lm_eval.evaluate(
                _in_memory(model, self.trainer, self.engine),
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


def _in_memory(model: LanguageModel, trainer: LightningTrainer, engine: Engine) -> Any:
    from lm_eval.api.model import TemplateLM

    from tskd.modules.scorer import log_likelihoods

    class InMemory(TemplateLM):  # type: ignore[misc]
        """What the harness asks of a model, with our template in the place of the tokenizer's."""

        tokenizer = model.tokenizer
        tokenizer_name = model.name
        eot_token_id = model.tokenizer.eos_token_id

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            adds = model.template.adds_special_tokens if add_special_tokens is None else add_special_tokens
            return list(model.tokenizer(string, add_special_tokens=adds).input_ids)

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            *context, last = (Message(turn["role"], turn["content"]) for turn in chat_history)
            return model.template.prefix(Prompt(last.content, tuple(context)))

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            settings = requests[0].args[1]  # one task's, so those of all
            read = [Request(encode_prefix(model, request.args[0])) for request in requests]
            sampling, stop = Sampling(settings["max_gen_toks"]), tuple(settings["until"])
            made = generate(model, read, sampling, trainer, engine, stop=stop, label="evaluate")
            return [each.text for each in made]

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)  # a bar over the encoding alone

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            sequences = [TokenSequence((*context, *choice), len(context)) for _, context, choice in requests]
            # Whether a choice is also what the model would write is not asked by any of the tasks.
            return [(likelihood, False) for likelihood in log_likelihoods(model, sequences, trainer)]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise NotImplementedError("none of the tasks asks for it")

    return InMemory()


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
