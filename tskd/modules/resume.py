"""A trainer that goes on where an earlier attempt was killed: after its last batch, or its last epoch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tskd.modules.trainer import LightningTrainer
from tskd.runtime import processes
from tskd.storage.fingerprint import cache_key
from tskd.storage.journal import Journal

if TYPE_CHECKING:
    from tskd.modules.resident import Resident


@dataclass(frozen=True)
class ResumableTrainer(LightningTrainer):
    """Keep finished batches and checkpoints of finished epochs in ``journal``, and skip them in the next attempt."""

    journal: Journal = field(kw_only=True)

    def predict(self, module: "Resident", batches: Sequence[list[int]]) -> dict[int, Any]:
        """As ``LightningTrainer``. The batches that are left are those of the earlier attempt, so results agree."""
        if (content := module.content()) is not None:
            found, module.note = self.recall([type(module), content])
            # All processes skip what the first has found; another may have begun to write already.
            found = processes.all_gather(found if processes.rank() == 0 else {})
            module.results = {i: module.from_journal(result) for i, result in found.items()}
        return super().predict(module, batches)

    def fit(
        self,
        module: "Resident",
        epochs: int,
        checkpoint: Path | None = None,
        save: Callable[[Callable[[Path], None]], None] | None = None,
    ) -> None:
        if (content := module.content()) is not None:
            key = cache_key([type(module), content])
            is_first = processes.rank() == 0  # it alone writes, for all hold the same
            checkpoint = processes.all_gather({0: self.journal.checkpoint(key)} if is_first else {})[0]
            save = partial(self.journal.replace_checkpoint, key) if is_first else None
        super().fit(module, epochs, checkpoint, save)

    def recall(self, content: Any) -> tuple[dict[int, Any], Callable[[Mapping[int, Any]], None]]:
        key = cache_key(content)
        return self.journal.read(key), partial(self.journal.add, key)
