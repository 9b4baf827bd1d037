"""TuneShift-KD, the whole algorithm. Guan et al., 2026, https://arxiv.org/abs/2603.24518

    seeds ─▶ expand ─▶ answer ─▶ score ─▶ select ─▶ train ─▶ adapter of the target
               ▲                             │
               └──── kept prompts join ◀─────┘

Between expand and answer, prompts may be screened: a screened-out prompt costs no generation.

The stages are plain callables on records. ``tskd.stages`` implements them; any function with the same signature works.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tskd.errors import EmptySelection, NoNewPrompts
from tskd.records import Adapter, Expansion, Iteration, Prompt, Response, Scored, Screening, Selection


def ask_all(prompts: Sequence[Prompt], seeds: Sequence[Prompt]) -> Screening:
    """Pass every prompt: no screen."""
    return Screening(tuple(prompts))


def never(done: Sequence[Iteration]) -> bool:
    """Return False: run all iterations, without a stop rule."""
    return False


@dataclass(frozen=True)
class Stages:
    """The five stages, and a screen before the second.

    Args:
        expand: maps the pool of prompts to draw on, all prompts seen so far and the iteration to new prompts.
        answer: maps prompts to responses, in the same order.
        score: maps responses to scored responses, in the same order.
        select: maps the scored responses, and those of the seeds, to a selection.
        train: maps the corpus, the dropped responses and the iteration to an adapter.
        screen: maps the new prompts and the seeds to the prompts that are worth an answer.
    """

    expand: Callable[[Sequence[Prompt], Sequence[Prompt], int], Expansion]
    answer: Callable[[Sequence[Prompt]], Sequence[Response]]
    score: Callable[[Sequence[Response]], Sequence[Scored]]
    select: Callable[[Sequence[Scored], Sequence[Scored]], Selection]
    train: Callable[[Sequence[Scored], Sequence[Scored], int], Adapter]
    screen: Callable[[Sequence[Prompt], Sequence[Prompt]], Screening] = ask_all


def tuneshift(
    seeds: Sequence[Prompt],
    stages: Stages,
    *,
    iterations: int,
    stop: Callable[[Sequence[Iteration]], bool] = never,
    train_each_iteration: bool = True,
    history: Sequence[Iteration] = (),
) -> Iterator[Iteration]:
    """Run TuneShift-KD and yield each iteration when it is finished.

    An iteration is a function of ``seeds`` and of the iterations before it. It trains a fresh adapter on everything
    kept so far; an iteration that keeps nothing new reuses the adapter before it. The loop ends early if expansion
    writes nothing new; the last iteration then has no scored responses.

    Args:
        seeds: the representative prompts. Iteration 0 answers and scores them too.
        stages: what is done in each iteration.
        iterations: the largest number of iterations.
        stop: returns whether the iterations done so far are enough; the last of them may still lack its adapter.
        train_each_iteration: whether each iteration trains, or only the last one.
        history: iterations finished earlier. Passing them continues a run exactly where it stopped.

    Yields:
        The iterations after ``history``, in order.

    Raises:
        NoNewPrompts: if the first expansion writes no new prompt.
        EmptySelection: if no response has been kept by the end of an iteration.

    Source:
        Guan et al. 2026, arXiv 2603.24518. Iterating over kept prompts is the paper's; the stop rule is ours.
    """

    def is_over(done: Sequence[Iteration]) -> bool:
        return len(done) >= iterations or (len(done) > 0 and (not done[-1].scored or stop(done)))

    done = list(history)
    while not is_over(done):
        index = len(done)
        asked = [example for past in done for example in past.scored]
        corpus = [example for past in done for example in past.selection.kept]
        pool = list(dict.fromkeys([*seeds, *(example.response.prompt for example in corpus)]))
        screened = [prompt for past in done for prompt in past.screened]
        seen = list(dict.fromkeys([*seeds, *(example.response.prompt for example in asked), *screened]))

        expansion = stages.expand(pool, seen, index)
        if index == 0 and not expansion.prompts:
            raise NoNewPrompts(_nothing_new(len(seeds), expansion))
        screening = stages.screen(expansion.prompts, seeds)
        prompts = [*seeds, *screening.passed] if index == 0 else screening.passed
        responses = stages.answer(prompts)
        scored = stages.score(responses)
        of_seeds = [example for example in [*asked, *scored] if example.response.prompt.is_seed]
        selection = stages.select(scored, of_seeds)

        corpus += selection.kept
        dropped = [example for past in done for example in past.selection.dropped] + list(selection.dropped)
        if not corpus:
            raise EmptySelection(_nothing_kept(index, scored))
        iteration = Iteration(index, expansion, tuple(scored), selection, None, screening.screened)
        adapter: Adapter | None = None
        if done and done[-1].adapter is not None and not selection.kept:
            adapter = replace(done[-1].adapter, trained_tokens=0, generated_tokens=0)
        elif train_each_iteration or is_over([*done, iteration]):
            adapter = stages.train(corpus, dropped, index)

        done.append(replace(iteration, adapter=adapter))
        yield done[-1]


def _nothing_new(num_seeds: int, expansion: Expansion) -> str:
    return (
        f"Expansion wrote no new prompt: of {expansion.drafts} drafts from {num_seeds} seeds, {expansion.duplicates} "
        f"were repeats, {expansion.near_duplicates} near-duplicates, {expansion.held_out} held-out questions and "
        f"{expansion.malformed} unusable. "
        f"Give more varied seeds, raise `expansion.num_drafts` or `expansion.temperature`, or let another model write "
        f"(`expansion.writer`)."
    )


def _nothing_kept(index: int, scored: Sequence[Scored]) -> str:
    gaps = [example.gap for example in scored if not math.isnan(example.gap)]
    widest = f"the widest perplexity gap was {max(gaps):.3f}" if gaps else "no perplexity gap is a number"
    return (
        f"Iteration {index} kept 0 of {len(scored)} responses; {widest}. "
        f"Lower `threshold` (or what else the rule asks for), or give more seeds like the teacher's training data."
    )
