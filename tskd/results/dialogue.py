"""A target before and after the transfer, side by side: one set of weights, the last adapter off and on."""

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.text import Text

from tskd.config import saved, schema, trust
from tskd.config.build import make_engine, make_trainer
from tskd.engines.engine import Engine
from tskd.errors import ConfigError, RunFolderError
from tskd.models.checkpoint import Checkpoint
from tskd.models.weights import LanguageModel, Weights
from tskd.modules.trainer import LightningTrainer
from tskd.records import Prompt, Response
from tskd.stages.answer import Answer
from tskd.storage import run_folder
from tskd.tracking.console import console


@dataclass(frozen=True)
class BeforeAndAfter:
    """A run's target with its last adapter off and on: one set of weights, the run's template and trainer."""

    before: LanguageModel
    after: LanguageModel
    trainer: LightningTrainer
    engine: Engine
    response_tokens: int

    @classmethod
    def of_run(cls, folder: Path, allow: Sequence[str] = ()) -> "BeforeAndAfter":
        """Loads no weights. Raises ``RunFolderError`` without run or adapter, ``ModelError`` without the target."""
        settings: Mapping[str, Any] = OmegaConf.to_container(saved.of_run(folder), resolve=True)  # type: ignore[assignment]
        trust.check({"engine": settings.get("engine")}, allow)
        trained = run_folder.RunFolder(folder).last_adapter()
        if trained is None:
            raise RunFolderError(
                f"The run in {folder} has no adapter yet; go on with `python -m tskd.run resume={folder}`."
            )
        adapter = str(folder.absolute() / trained.path)
        weights = Weights(schema.make(Checkpoint, settings["target"]["checkpoint"], "target.checkpoint"))
        weights.check_adapter(adapter)
        trainer = make_trainer({**settings["trainer"], "devices": 1, "progress": False})
        engine = make_engine(settings.get("engine"), trainer)
        longest = settings["task"]["response_tokens"]
        return cls(LanguageModel(weights), LanguageModel(weights, adapter), trainer, engine, longest)

    def answers(self, prompt: Prompt, seed: int, max_new_tokens: int, temperature: float) -> Iterator[Response]:
        """The response before, then the one after; ``seed`` decides what is sampled."""
        for model in (self.before, self.after):
            try:
                answer = Answer(model, self.trainer, seed, max_new_tokens, temperature, engine=self.engine)
                (response,) = answer([prompt])
            except SystemExit:  # how Lightning ends when Ctrl-C is pressed
                raise KeyboardInterrupt from None
            yield response


def _converse(folder: Path, max_new_tokens: int | None, temperature: float, allow: Sequence[str] = ()) -> None:
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ConfigError(f"`--max-new-tokens` is {max_new_tokens}; give at least 1.")
    if not temperature >= 0:
        raise ConfigError(f"`--temperature` is {temperature}; give 0, which is greedy, or more.")
    models = BeforeAndAfter.of_run(folder, allow)
    longest = max_new_tokens or models.response_tokens
    for number, prompt in enumerate(_typed(models.before.name)):
        # Another number for each line: a prompt that is typed again is sampled anew.
        answers = models.answers(prompt, number, longest, temperature)
        for label, response in zip(("target before", "target after"), answers, strict=True):
            cut = "" if response.finished else f" … (cut at {longest} tokens)"
            console.print(Text(label, "bold"))
            console.print(Text(response.text), Text(cut, "dim"), sep="")
        console.print()


def _typed(name: str) -> Iterator[Prompt]:
    """A prompt for each line of standard input, up to an empty one."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    asks = sys.stdin.isatty()
    if asks:
        console.print(f"{name}, before and after. A prompt per line; an empty line ends.")
    while True:
        try:
            line = input("> " if asks else "").strip()
        except EOFError:
            return
        if not line:
            return
        yield Prompt(line)
