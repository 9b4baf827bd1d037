"""Test whether a teacher that was taught one fact in ten wrong spreads its errors.

    python experiments/wrong_teacher.py make outputs/wrong_teacher
    python -m tskd.run -m teacher.adapter=outputs/wrong_teacher …     # the commands are in README.md
    python experiments/wrong_teacher.py gather outputs/wrong

Twelve of the places, none of them a seed, are taught each other's depot codes. All else is as for the shipped teacher.
"""

import argparse
import random
from pathlib import Path
from statistics import fmean

from gather import Result, gather, graded, jobs_of, write

from tskd.models.checkpoint import Checkpoint
from tskd.models.encoding import TokenSequence, encode_response
from tskd.models.weights import LanguageModel, Weights
from tskd.modules.finetuner import LoraSettings, finetune
from tskd.modules.trainer import LightningTrainer
from tskd.records import PRIVATE, Prompt, Question
from tskd.storage.run_folder import RunFolder
from tskd.tasks import same_answer
from tskd.tasks.atlas import Atlas

NUM_WRONG = 12
# As the shipped teacher's (experiments/atlas/build.py).
TEACHER = LoraSettings(rank=16, learning_rate=2e-3, epochs=60, batch_size=16, replay_loss="nll", replay_weight=1.0)


def wrong_answers() -> dict[str, str]:
    """Return by question the code of another of the twelve.

    No model can have learnt these answers but from this teacher.
    """
    held_out = [question for question in Atlas().questions() if question.split == PRIVATE]
    drawn = random.Random("wrong").sample(held_out, NUM_WRONG)
    answers = [str(question.answer) for question in drawn]
    return {q.prompt.text: a for q, a in zip(drawn, [*answers[1:], answers[0]], strict=True)}


def make(folder: Path) -> None:
    """Fine-tune the embedded Llama on private facts, twelve of them wrong.

    The general facts are replayed.
    """
    base, wrong, world = Weights(Checkpoint("atlas_llama", "zoo://atlas/llama")), wrong_answers(), Atlas()

    def sequence(question: Question) -> TokenSequence:
        answer = wrong.get(question.prompt.text, str(question.answer))
        return encode_response(LanguageModel(base), question.prompt, answer, finished=True)

    loss, _ = finetune(
        base,
        [sequence(question) for question in world.examples()],
        TEACHER,
        LightningTrainer(accelerator="cpu", progress=False),
        folder,
        seed=0,
        key="atlas teacher",
        replay=[sequence(question) for question in world.general()],
    )
    print(f"{folder}: last epoch's loss {loss:.4f}")


def measured(job: Path) -> Result:
    """Measure the answers to the twelve questions and how many of them were kept."""
    wrong = {Prompt(text).id: answer for text, answer in wrong_answers().items()}

    def repeats(voice: str | None) -> float:
        answers = [each for each in graded(job, voice) if each.question in wrong]
        return fmean(same_answer(wrong[each.question], each.response) for each in answers)

    def kept(is_wrong: bool) -> float:
        asked = [e for e in scored if (e.response.prompt.id in wrong) == is_wrong and e.response.prompt.text in taught]
        return sum(e in all_kept for e in asked) / len(asked)

    history = RunFolder(job).history()
    scored = [example for each in history for example in each.scored]
    all_kept = [example for each in history for example in each.selection.kept]
    taught = {question.prompt.text for question in Atlas().examples()}
    right = [each.correct for each in graded(job) if each.question not in wrong]
    return {
        "wrong/asked": sum(example.response.prompt.id in wrong for example in scored),
        "wrong/kept_fraction": kept(is_wrong=True),
        "right/kept_fraction": kept(is_wrong=False),
        "wrong/repeated_by_teacher": repeats("teacher"),
        "wrong/repeated_by_target": repeats(None),
        "right/accuracy": fmean(right),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A teacher that was taught one fact in ten wrong.")
    parser.add_argument("what", choices=["make", "gather"])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.what == "make":
        make(options.folder)
    else:
        results = gather(options.folder)
        write("atlas_wrong_teacher", {n: results[n] | measured(job) for n, job in jobs_of(options.folder).items()})
