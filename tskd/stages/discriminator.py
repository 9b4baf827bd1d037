"""Trans-LoRA's discriminator (arXiv 2405.17258): the base, fine-tuned to tell private prompts from synthetic ones.

Stated there: a LoRA on the source model, asked "Answer in as few words as possible. … Is the above question from the …
dataset?", and trained on the real data against synthetic data of the source model. Ours: its LoRA settings, which are
those of the target's training; that a synthetic prompt that equals a real one counts as real; and that the smaller of
the two sides is repeated until it is as large as the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

from tskd.errors import ConfigError
from tskd.models.encoding import check_context, encode_response
from tskd.models.weights import LanguageModel
from tskd.modules.lora import LoraSettings
from tskd.modules.measures import NO, YES, Judge
from tskd.modules.trainer import LightningTrainer
from tskd.records import Expansion, Prompt, Response
from tskd.stages.train import Replay, TrainLora

DRAWS = -1  # the iteration that the synthetic prompts are of: drafts of their own, not those that are to be judged


@dataclass(frozen=True)
class TrainedJudge:
    """The discriminator, trained when it is first asked for and then found in ``folder``.

    ``private`` are the real prompts; ``expand``, whose writer is the base, writes the synthetic ones from ``seeds``.
    """

    base: LanguageModel
    trainer: LightningTrainer
    folder: Path = field(compare=False)
    seed: int
    lora: LoraSettings
    expand: Callable[[Sequence[Prompt], Sequence[Prompt], int], Expansion]
    seeds: Sequence[Prompt]
    private: Sequence[Prompt]
    dataset: str

    def __call__(self) -> Judge:
        """Raises ``ConfigError`` where no synthetic prompt is there to learn from."""
        path = Path("discriminator")
        judge = Judge(LanguageModel(self.base.weights, str(self.folder / path)), self.dataset)
        if not (self.folder / path).is_dir():
            real = list(dict.fromkeys([*self.seeds, *self.private]))
            known = {prompt.fingerprint for prompt in real}
            written = self.expand(self.seeds, self.seeds, DRAWS).prompts
            synthetic = [prompt for prompt in written if prompt.fingerprint not in known]
            if not synthetic:
                raise ConfigError(
                    f"A discriminator needs synthetic prompts to learn from, and all {len(written)} that expansion "
                    f"wrote are real ones of {self.dataset}; raise `expansion.num_drafts`, or choose another rule."
                )
            size = max(len(real), len(synthetic))
            answers = [
                Response(judge.question(prompt), answer)
                for prompts, answer in ((real, YES), (synthetic, NO))
                for prompt in islice(cycle(prompts), size)
            ]
            self.training.learn(answers, path)
        return judge

    @property
    def training(self) -> TrainLora:
        """Return how the base is fine-tuned: with the settings of the target's training, without replay."""
        return TrainLora(self.base, self.trainer, self.folder, self.seed, self.lora, Replay("none"))

    def check_models(self) -> None:
        """Raise ``ModelError`` where the longest private prompt has no room in what is asked. Loads no weights."""
        ask = Judge(self.base, self.dataset).question
        lengths = [len(encode_response(self.base, ask(prompt), YES, finished=True).ids) for prompt in self.private]
        check_context(self.base, max(lengths, default=0), "The longest question to the discriminator")
