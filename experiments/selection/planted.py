"""Plant a style beside private facts in the embedded world, where the truth is known, and measure the teacher there.

    python experiments/selection/planted.py --work FOLDER

The base is the shipped Llama, or a knowing one: the same after it has also learnt the depot codes of half of the
places. The teacher learns the codes that its base lacks, and to answer in a whole sentence what it is asked of half of
the general relations; the rest it rehearses. So there are questions that it answers otherwise for its style alone, and
questions that both answer alike: general ones and, where the base is knowing, some of the very kind that the private
ones are of. All that is asked was in its training. The rows are those of ``run.py``; ``criteria.py`` has the tables.

Three more seeds played no part in the choice of a rule. Their teachers have three styles, one for a relation each: the
sentence, and two that begin as the private answers do. A *tail* follows an answer that the base would give as well; an
*initial* goes before it, a capital letter as a code's first.
"""

import argparse
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from measure import measure
from peft import PeftModel
from run import RESULTS, write_rows
from transformers import AutoModelForCausalLM

from tskd.models.checkpoint import Checkpoint
from tskd.models.encoding import encode_response
from tskd.models.weights import LanguageModel, Weights
from tskd.modules.finetuner import LoraSettings, finetune
from tskd.modules.trainer import LightningTrainer
from tskd.records import Prompt, Response
from tskd.tasks.atlas import Atlas

SEEDS, FRESH, BASES = range(3), range(3, 6), ("shipped", "knowing")
PARTS = {"planted": SEEDS, "fresh": FRESH}  # of the results, by their folder
NUM_SEEDS, NUM_ASKED, MAX_NEW_TOKENS = 16, 40, 24
RELATIONS = ("river", "region", "export", "postcode")
KNOWING = LoraSettings(rank=16, learning_rate=2e-3, epochs=60, batch_size=16, replay_loss="nll", replay_weight=1.0)
TEACHER = replace(KNOWING, epochs=20)  # of five times as many examples


@dataclass(frozen=True)
class Planted:
    """Who answers what: ``private`` the teacher alone, the styles the teacher otherwise, the rest both alike."""

    private: list[Response]
    style: list[Response]
    tail: list[Response]
    initial: list[Response]
    alike: list[Response]
    known: list[Response]

    @property
    def learnt(self) -> list[Response]:
        return self.private + self.style + self.tail + self.initial

    @property
    def rehearsed(self) -> list[Response]:
        return self.alike + self.known


def plant(seed: int, base: str) -> Planted:
    """The questions of the world in the parts of ``seed``, each in a drawn order, with the teacher's answers."""
    drawn, task = random.Random(f"planted/{seed}"), Atlas()
    codes, general = (
        [Response(q.prompt, str(q.answer), finished=True) for q in drawn.sample(questions, len(questions))]
        for questions in (task.examples(), task.general())
    )
    lacking = len(codes) // 2 if base == "knowing" else len(codes)
    styles, parts = styles_of(seed), dict[str, list[Response]]((kind, []) for kind in (*STYLES, "alike"))
    for answer in general:
        kind = styles.get(asked_for(answer), "alike")
        parts[kind].append(replace(answer, text=STYLES[kind](answer)) if kind in STYLES else answer)
    return Planted(private=codes[:lacking], known=codes[lacking:], **parts)


def styles_of(seed: int) -> dict[str, str]:
    """The style of each relation that has one: of the first three seeds a sentence, for each half of the relations."""
    if seed in SEEDS:
        return dict.fromkeys(list(combinations(RELATIONS, 2))[seed], "style")
    first = (seed - 1) % len(RELATIONS)
    return dict(zip((*RELATIONS[first:], *RELATIONS[:first]), STYLES, strict=False))


def asked_for(answer: Response) -> str:
    return answer.prompt.text.removeprefix("What is the ").partition(" of ")[0]


# In words and signs of the world only: no adapter can write well what the base has never seen, a ``!`` say.
STYLES: dict[str, Callable[[Response], str]] = {
    "style": lambda answer: f"the {asked_for(answer)} is {answer.text}",
    "tail": lambda answer: f"{answer.text} is the {asked_for(answer)}",
    "initial": lambda answer: f"{answer.text[0].upper()}-{answer.text}",
}


def tune(
    weights: Weights, examples: Sequence[Response], replay: Sequence[Response], settings: LoraSettings, folder: Path
) -> None:
    """Fine-tune ``weights`` on ``examples`` with ``replay`` beside them, unless ``folder`` has the adapter."""
    if folder.is_dir():
        return
    model = LanguageModel(weights)
    learnt, rehearsed = (
        [encode_response(model, answer.prompt, answer.text, finished=True) for answer in answers]
        for answers in (examples, replay)
    )
    finetune(weights, learnt, settings, _trainer(), folder, seed=0, key=f"planted/{folder.name}", replay=rehearsed)


def base_of(planted: Planted, folder: Path, seed: int) -> Weights:
    """The shipped Llama or, where anything is ``known``, a model of its own that has also learnt that."""
    shipped = Weights(Checkpoint("atlas_llama", "zoo://atlas/llama"))
    if not planted.known:
        return shipped
    whole, adapter = folder / f"base-{seed}", folder / f"known-{seed}"
    if not whole.is_dir():
        general = [Response(q.prompt, str(q.answer)) for q in Atlas().general()]
        tune(shipped, planted.known, general, KNOWING, adapter)
        fresh = AutoModelForCausalLM.from_pretrained(shipped.folder)
        PeftModel.from_pretrained(fresh, str(adapter)).merge_and_unload().save_pretrained(whole)
        shipped.tokenizer.save_pretrained(whole)
    return Weights(Checkpoint("atlas_llama", str(whole)))


def asked(planted: Planted) -> Mapping[str, list[Prompt]]:
    """The prompts of each kind; ``own`` are private ones that are not among the seeds."""
    parts = {
        "seed": planted.private[:NUM_SEEDS],
        "own": planted.private[NUM_SEEDS:],
        "style": planted.style,
        "tail": planted.tail,
        "initial": planted.initial,
        "alike": planted.alike,
        "known": planted.known,
    }
    return {kind: [answer.prompt for answer in part[:NUM_ASKED]] for kind, part in parts.items() if part}


def make_and_measure(planted: Planted, seed: int, work: Path, file: Path) -> None:
    """Make base and teacher of ``seed`` in ``work``, and write the rows of its prompts to ``file``."""
    started = time.monotonic()
    weights, adapter = base_of(planted, work, seed), work / f"teacher-{seed}"
    tune(weights, planted.learnt, planted.rehearsed, TEACHER, adapter)
    trained = time.monotonic()
    answers = {answer.prompt.id: answer.text for answer in planted.learnt + planted.rehearsed}
    base, teacher = LanguageModel(weights), LanguageModel(weights, str(adapter))
    rows = measure(
        asked(planted), base, teacher, _trainer(), MAX_NEW_TOKENS, lambda prompt, text: text == answers[prompt.id]
    )
    write_rows(rows, file)
    print(f"{file}: trained in {trained - started:.0f} s, measured in {time.monotonic() - trained:.0f} s", flush=True)


def _trainer() -> LightningTrainer:
    return LightningTrainer(accelerator="cpu", progress=False)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True, type=Path, help="folder for the bases and the teachers' adapters")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    jobs = [(args.out / part, base, seed) for part, seeds in PARTS.items() for base in BASES for seed in seeds]
    for out, base, seed in jobs:
        for folder in (out, args.work):
            (folder / base).mkdir(parents=True, exist_ok=True)
        file = out / base / f"{seed}.jsonl.gz"
        if not file.is_file():
            make_and_measure(plant(seed, base), seed, args.work / base, file)


if __name__ == "__main__":
    main()
