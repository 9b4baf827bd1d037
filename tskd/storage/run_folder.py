"""One run on disk: written stage by stage, read back, and continued.

    config.yaml                       the resolved configuration
    iteration_0/prompts.jsonl         new prompts, and iteration_0/expansion.json: what they cost
    iteration_0/screened.jsonl        those of them that were not worth an answer, where a screen says so
    iteration_0/{responses,scored,kept,dropped}.jsonl, and selection.json: the threshold that decided
    iteration_0/adapter/              PEFT format, and iteration_0/adapter.json: what was trained, if anything was
    discriminator/                    its adapter, where selection asks a discriminator
    evaluation/{base,teacher,target,iteration_0}.jsonl   each held-out question's answer, graded
    evalplus/                         EvalPlus's numbers, where they were asked for (``tskd.evalplus``)
    metrics.jsonl                     one row per finished iteration
    result.json                       the final numbers
    status.json, error.txt            how the job ended
    .journal/                         how far a stage is, until there is a result (``tskd.storage.journal``)

Every file is written whole, under another name, and then renamed: what is there is complete.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tskd.errors import RunFolderError
from tskd.records import VOICES, Adapter, Expansion, Graded, Iteration, Prompt, Response, Scored, Screening, Selection
from tskd.storage.atomic_files import Record, read_json, read_lines, write_json, write_lines, write_text
from tskd.tuneshift import Stages


@dataclass(frozen=True)
class RunFolder:
    """The files of one run. Raises ``RunFolderError``, with the file's name, where one cannot be written or read."""

    path: Path

    def iteration(self, index: int) -> Path:
        return self.path / f"iteration_{index}"

    def recording(self, stages: Stages) -> Stages:
        """The same stages, each of which writes its result before the next begins, or reads it where it is there.

        ``expand`` opens an iteration and ``train`` closes it, so a run that was stopped between two stages goes on
        from the last whole one.
        """
        current = 0

        def expand(pool: Sequence[Prompt], seen: Sequence[Prompt], index: int) -> Expansion:
            nonlocal current
            current = index
            cost_file, prompts_file = self._file("expansion.json", index), self._file("prompts.jsonl", index)
            if cost_file.is_file():
                return replace(read_json(Expansion, cost_file), prompts=tuple(read_lines(Prompt, prompts_file)))
            expansion = stages.expand(pool, seen, index)
            write_lines(prompts_file, expansion.prompts)
            write_json(cost_file, replace(expansion, prompts=()))
            return expansion

        def screen(prompts: Sequence[Prompt], seeds: Sequence[Prompt]) -> Screening:
            file = self._file("screened.jsonl", current)
            if file.is_file():
                screened = tuple(read_lines(Prompt, file))
                return Screening(tuple(prompt for prompt in prompts if prompt not in screened), screened)
            screening = stages.screen(prompts, seeds)
            if screening.screened:
                write_lines(file, screening.screened)
            return screening

        def answer(prompts: Sequence[Prompt]) -> Sequence[Response]:
            return self._kept(Response, self._file("responses.jsonl", current), lambda: stages.answer(prompts))

        def score(responses: Sequence[Response]) -> Sequence[Scored]:
            return self._kept(Scored, self._file("scored.jsonl", current), lambda: stages.score(responses))

        def select(scored: Sequence[Scored], of_seeds: Sequence[Scored]) -> Selection:
            selection = stages.select(scored, of_seeds)
            write_json(self._file("selection.json", current), {"threshold": selection.threshold})
            write_lines(self._file("dropped.jsonl", current), selection.dropped)
            write_lines(self._file("kept.jsonl", current), selection.kept)
            return selection

        def train(corpus: Sequence[Scored], dropped: Sequence[Scored], index: int) -> Adapter:
            file = self._file("adapter.json", index)
            if file.is_file():
                return self._read_adapter(file)
            adapter = stages.train(corpus, dropped, index)
            write_json(file, adapter)
            return adapter

        return Stages(expand, answer, score, select, train, screen)

    def graded(self, name: str, compute: Callable[[], Sequence[Graded]]) -> Sequence[Graded]:
        """The graded answers called ``name``, from the folder or computed and put there."""
        return self._kept(Graded, self.path / "evaluation" / f"{name}.jsonl", compute)

    @property
    def journal(self) -> Path:
        return self.path / ".journal"

    def close(self) -> None:
        """Remove the journal, and adapters that killed processes left half-written: there is a result."""
        for folder in (self.journal, *self.path.glob("iteration_*/.adapter-*")):
            shutil.rmtree(folder, ignore_errors=True)

    def history(self) -> list[Iteration]:
        """The iterations that have a row in ``metrics.jsonl``: those that are finished, evaluation included."""
        return [self._iteration(index) for index in range(len(self.rows()))]

    def rows(self) -> list[dict[str, Any]]:
        file = self.path / "metrics.jsonl"
        return read_lines(dict, file) if file.is_file() else []

    def add_row(self, row: dict[str, Any]) -> None:
        lines = [json.dumps(each) for each in [*self.rows(), row]]
        write_text(self.path / "metrics.jsonl", "".join(line + "\n" for line in lines))

    def _iteration(self, index: int) -> Iteration:
        expansion = read_json(Expansion, self._file("expansion.json", index))
        prompts = tuple(read_lines(Prompt, self._file("prompts.jsonl", index)))
        scored, kept, dropped = (
            tuple(read_lines(Scored, self._file(f"{name}.jsonl", index))) for name in ("scored", "kept", "dropped")
        )
        adapter = self._adapter(index, bool(kept))
        threshold_file, screened_file = self._file("selection.json", index), self._file("screened.jsonl", index)
        threshold = read_json(dict, threshold_file)["threshold"] if threshold_file.is_file() else None
        selection = Selection(kept, dropped, threshold)
        screened = tuple(read_lines(Prompt, screened_file)) if screened_file.is_file() else ()
        return Iteration(index, replace(expansion, prompts=prompts), scored, selection, adapter, screened)

    def _adapter(self, index: int, kept: bool) -> Adapter | None:
        """What ``tuneshift`` gave the iteration: its own adapter, or where it kept nothing, the one before."""
        file = self._file("adapter.json", index)
        if file.is_file():
            return self._read_adapter(file)
        before = None if kept or index == 0 else self._iteration(index - 1).adapter
        return None if before is None else replace(before, trained_tokens=0, generated_tokens=0)

    def last_adapter(self) -> Adapter | None:
        """The adapter that was trained last."""
        files = sorted(self.path.glob("iteration_*/adapter.json"), key=lambda file: int(file.parent.name[10:]))
        return self._read_adapter(files[-1]) if files else None

    def _read_adapter(self, file: Path) -> Adapter:
        adapter = read_json(Adapter, file)
        if not (self.path / adapter.path).resolve().is_relative_to(self.path.resolve()):
            raise RunFolderError(f"{file} names {adapter.path!r}, which is outside {self.path}; take another folder.")
        return adapter

    def _kept(self, kind: type[Record], file: Path, compute: Callable[[], Sequence[Record]]) -> Sequence[Record]:
        if file.is_file():
            return read_lines(kind, file)
        records = compute()
        write_lines(file, records)
        return records

    def _file(self, name: str, index: int) -> Path:
        return self.iteration(index) / name


def graded_as(last: str) -> dict[str, str]:
    """The name under which each voice's graded answers are kept; that of the tuned target is its iteration's."""
    return dict(zip(VOICES, ("base", "teacher", "target", last), strict=True))
