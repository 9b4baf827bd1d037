"""LoRA training of a language model on prompt-response pairs, with replay of what it said before.

The loss is the negative log-likelihood of the response tokens (TuneShift-KD), or that of an objective
(``tskd.modules.objectives``). Replay adds texts of the untouched model's own, on which the adapter is held to say
the same: an answer to forgetting that needs no data (Bansal & Sanghavi 2025, arXiv 2505.13811).
"""

import logging
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from tskd.errors import ModelError
from tskd.models.encoding import TokenSequence, check_context
from tskd.models.logprobs import token_kl, token_nll
from tskd.models.networks import fused_nll, hidden_states, vocabulary_head
from tskd.models.weights import LanguageModel, Weights
from tskd.modules.batches import PaddedBatch, by_length, pad_right, shuffled
from tskd.modules.lora import KEPT, LoraSettings, StepLog
from tskd.modules.objectives import Loss
from tskd.modules.resident import Resident, attempt, cut, epoch_loader
from tskd.modules.trainer import LightningTrainer
from tskd.runtime import interrupts, processes
from tskd.storage import atomic_files

log = logging.getLogger(__name__)


class Finetuner(Resident):
    """One adapter in training. Each step learns from a batch of examples and, beside it, as many texts of replay.

    A step's texts are computed in parts, sorted by length, none larger than ``max_tokens``; their gradients add up.
    What is learnt therefore depends neither on the memory nor on what is padded.
    """

    automatic_optimization = False

    def __init__(
        self,
        weights: Weights,
        examples: Sequence[TokenSequence],
        replay: Sequence[TokenSequence],
        settings: LoraSettings,
        key: str,
        max_tokens: int,
        max_padding: int,
        log_step: StepLog | None,
        label: str = "train",
        loss: Loss | None = None,
        drop_not_finite: bool = False,
    ) -> None:
        super().__init__(weights)
        self.weights = weights
        self.pad = LanguageModel(weights).pad_token
        self.texts = [*examples, *replay]
        self.num_examples = len(examples)
        self.settings = settings
        self.key = key
        self.max_tokens = max_tokens
        self.max_padding = max_padding
        self.log_step = log_step
        self.label = label
        self.drop_not_finite = drop_not_finite
        self.left_out: set[int] = set()  # texts whose loss was no number
        self.of_examples = loss  # None: the mean nll of their target tokens
        self.losses: list[tuple[float, int]] = []  # of each step: the mean, and over how many target tokens
        self._untouched: dict[int, Tensor] = {}  # hidden states of replayed texts before the adapter, on the CPU
        self.strict_loading = False  # a checkpoint has no weights but the adapter's

    def content(self) -> Any:
        return [self.weights, repr(self.texts), self.num_examples, self.settings, type(self.of_examples), self.key]

    def train_dataloader(self) -> Any:
        return epoch_loader(self.steps(self.current_epoch))

    def steps(self, epoch: int) -> list[list[int]]:
        """For each step, the indices of its texts: those of examples come before those of replay."""
        key = f"{self.key}/epoch {epoch}"
        examples = shuffled(self.num_examples, self.settings.batch_size, key)
        replay = self._replay(len(examples), key)
        return [batch + again for batch, again in zip(examples, replay, strict=True)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {}  # of the whole model, which does not change
        checkpoint["adapter"] = self.parameters_in_training
        checkpoint["losses"] = self.losses
        checkpoint["left_out"] = sorted(self.left_out)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        with torch.no_grad():
            for parameter, trained in zip(self.parameters_in_training, checkpoint["adapter"], strict=True):
                parameter.copy_(trained)
        self.losses = checkpoint["losses"]
        self.left_out = set(checkpoint["left_out"])

    def on_train_start(self) -> None:
        """What is not in a checkpoint is made again as it was made: rounding depends on what is read together."""
        for epoch in range(self.current_epoch if self.remembers_untouched else 0):
            for batch in self.steps(epoch):
                for part in self._in_turn(batch):
                    self._remember_untouched(part)

    def training_step(self, batch: list[int]) -> None:
        interrupts.check()
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        # What dropout leaves out depends on the step alone, not on what has drawn numbers before.
        torch.manual_seed(random.Random(f"{self.key}/step {self.global_step}").getrandbits(63))
        batch = [i for i in batch if i not in self.left_out]
        while batch:
            loss = self._gradient(batch)
            norm = clip_grad_norm_(self.parameters_in_training, self.settings.max_grad_norm, foreach=True)
            if math.isfinite(loss) and norm.isfinite():
                self._log(loss, self._num_targets(batch, replay=False))
                optimizer.step()  # type: ignore[union-attr]
                break
            batch = self._without_culprits(batch, loss)
        else:
            self.losses.append((0.0, 0))
        schedule.step()  # type: ignore[union-attr, call-arg]

    def _gradient(self, batch: list[int]) -> float:
        """That of the loss of ``batch`` is where it belongs, added up over all processes; the mean nll comes back."""
        while (losses := attempt(self.accumulate, batch)) is None:
            # Of a part that failed halfway, some gradients are there already: the whole step is done again.
            largest = max(map(len, self._in_parts(batch)))
            self.parts *= 2
            self.tell_parts(largest)
        return processes.all_reduce_gradients(self.parameters_in_training, sum(losses))

    def _without_culprits(self, batch: list[int], loss: float) -> list[int]:
        """``batch`` without the texts whose own loss is no number, where they may be left out.

        Raises ``ModelError`` that names them where not, or where it is so of all: then the weights are to blame.
        """
        with torch.no_grad():  # each by itself, and in every process all of them
            culprits = [i for i in batch if not self.loss_of([i], batch)[0].isfinite()]
        named = ", ".join(self._name(i) for i in culprits[:3]) + ", …" * (len(culprits) > 3)
        is_of_all = len(culprits) == len(batch) > 1
        if not culprits or is_of_all or self.left_out.union(culprits).issuperset(range(self.num_examples)):
            what = "gradient became no number" if math.isfinite(loss) else f"loss became {loss}"
            raise ModelError(
                f"The training {what} at step {self.global_step}; lower `training.lora.learning_rate` "
                f"({self.settings.learning_rate:g}), or use float32 weights."
            )
        if not self.drop_not_finite:
            raise ModelError(
                f"The training loss became {loss} at step {self.global_step}, because of {named}; use float32 weights, "
                f"or leave such texts out: `training.not_finite=drop`."
            )
        log.warning("The training loss of %s is no number; left out from step %d on.", named, self.global_step)
        self.left_out |= set(culprits)
        return [i for i in batch if i not in self.left_out]

    def _name(self, index: int) -> str:
        is_replay = index >= self.num_examples
        return f"replayed text {index - self.num_examples + 1}" if is_replay else f"example {index + 1} of those kept"

    def accumulate(self, batch: list[int]) -> list[float]:
        """The gradient of the batch's loss, and what each part contributes to the mean nll of its examples."""
        self.optimizers().zero_grad()  # type: ignore[union-attr]
        losses, parts = [], self._in_parts(batch)
        for turn, part in enumerate(self._in_turn(batch)):
            counts = turn < len(parts)
            loss, nll = self.loss_of(part, batch)
            self.manual_backward(loss * counts)  # what does not count is for the other processes, who need this pass
            losses.append(nll * counts)
        return losses

    def loss_of(self, part: Sequence[int], batch: Sequence[int]) -> tuple[Tensor, float]:
        """What the texts ``part`` contribute to the loss of ``batch``, and of that, to the mean nll of its examples.

        The loss is that of the examples, by default their mean nll, plus ``replay_weight`` times how far the adapter
        has moved on the target tokens of replay: the mean KL to the untouched model, or their nll.
        """
        padded = pad_right([self.texts[i] for i in part], self.pad).to(self.device)
        hidden = self._hidden(padded)
        is_replay = torch.tensor([i >= self.num_examples for i in part], device=self.device)[padded.rows]
        nll = self._nll(hidden[~is_replay], padded.labels[~is_replay])
        mean = loss = nll.sum() / max(1, self._num_targets(batch, replay=False))
        if self.of_examples is not None and (mine := self._examples(part)):
            loss = self.of_examples(nll, hidden[~is_replay], self._head, mine, self._examples(batch))
        if self.remembers_untouched:
            self._remember_untouched(part)
        if is_replay.any():
            if self.settings.replay_loss == "nll":
                moved = token_nll(hidden[is_replay], padded.labels[is_replay], self._head)
            else:
                before = torch.cat([self._untouched[i] for i in part if i >= self.num_examples]).to(self.device)
                moved = token_kl(hidden[is_replay], before, self._head)
            loss = loss + self.settings.replay_weight * moved.sum() / self._num_targets(batch, replay=True)
        return loss, mean.item()

    def configure_optimizers(self) -> Any:
        settings = self.settings
        optimizer = torch.optim.AdamW(
            self.parameters_in_training, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        steps = settings.epochs * self.steps_per_epoch
        warmup = max(1, round(settings.warmup * steps))

        def rate(step: int) -> float:
            return min((step + 1) / warmup, max(0.0, (steps - step) / max(1, steps - warmup)))

        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, rate)]

    @property
    def network(self) -> Any:
        return self.weights.model

    @property
    def parameters_in_training(self) -> list[Tensor]:
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    @property
    def remembers_untouched(self) -> bool:
        return self.settings.replay_loss == "kl" and len(self.texts) > self.num_examples

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_examples / self.settings.batch_size)

    @property
    def loss(self) -> float:
        """Mean over the target tokens of the last epoch, in nats per response token."""
        last = self.losses[-self.steps_per_epoch :]
        return sum(loss * tokens for loss, tokens in last) / sum(tokens for _, tokens in last)

    def _in_parts(self, batch: Sequence[int]) -> list[list[int]]:
        """What of ``batch`` this process computes, and in which parts."""
        mine = processes.shard(sorted(batch, key=lambda i: len(self.texts[i].ids)))
        parts = by_length([len(self.texts[i].ids) for i in mine], self.max_tokens, self.max_padding)
        return [[mine[i] for i in piece] for part in parts for piece in cut(part, self.parts)]

    def _in_turn(self, batch: Sequence[int]) -> list[list[int]]:
        """The parts of this process, and in step, what it computes while others have more; that is not to count."""
        parts = self._in_parts(batch)
        turns = processes.all_reduce_max(len(parts)) if self.in_step else len(parts)
        return parts + [list(batch[:1])] * (turns - len(parts))

    def _examples(self, batch: Sequence[int]) -> list[int]:
        return [i for i in batch if i < self.num_examples]

    def _num_targets(self, batch: Sequence[int], *, replay: bool) -> int:
        return sum(self.texts[i].num_targets for i in batch if (i >= self.num_examples) is replay)

    def _hidden(self, batch: PaddedBatch) -> Tensor:
        return hidden_states(self.network, batch.input_ids, batch.attention_mask)[batch.rows, batch.columns]

    def _remember_untouched(self, part: Sequence[int]) -> None:
        """Keep what the untouched model hands to the head at the targets of replay in ``part``, once for a text."""
        missing = [i for i in part if i >= self.num_examples and i not in self._untouched]
        if self.anyone(bool(missing)):
            padded = pad_right([self.texts[i] for i in missing or part], self.pad).to(self.device)
            with torch.no_grad(), self.network.disable_adapter():
                hidden = self._hidden(padded).cpu()
            self._untouched |= {i: hidden[padded.rows.cpu() == row] for row, i in enumerate(missing)}

    def _replay(self, count: int, key: str) -> list[list[int]]:
        num_replay, size = len(self.texts) - self.num_examples, self.settings.batch_size
        if num_replay == 0:
            return [[]] * count
        order: list[int] = []
        while len(order) < count * size:
            order += shuffled(num_replay, num_replay, f"{key}/replay {len(order)}")[0]
        return [[self.num_examples + i for i in order[n * size : (n + 1) * size]] for n in range(count)]

    def _nll(self, hidden: Tensor, labels: Tensor) -> Tensor:
        if self.settings.fused_loss and len(labels):
            return fused_nll(self.network, hidden, labels)
        return token_nll(hidden, labels, self._head)

    def _head(self, hidden: Tensor) -> Tensor:
        return vocabulary_head(self.network, hidden)

    def _log(self, loss: float, tokens: int) -> None:
        self.losses.append((loss, tokens))
        if self.log_step is not None:
            self.log_step(self.global_step, loss)


@processes.on_all_ranks(without=["log_step"])
def finetune(
    weights: Weights,
    examples: Sequence[TokenSequence],
    settings: LoraSettings,
    trainer: LightningTrainer,
    save_to: Path,
    *,
    seed: int,
    key: str,
    replay: Sequence[TokenSequence] = (),
    log_step: StepLog | None = None,
    label: str = "train",
    loss: Loss | None = None,
    drop_not_finite: bool = False,
) -> tuple[float, int]:
    """Train a fresh LoRA adapter on ``examples`` and save it in PEFT's format.

    Returned are the mean nll of its last epoch, and how many examples were left out of it because their loss is no
    number; without ``drop_not_finite``, one such raises ``ModelError``. ``loss`` is that of the examples, by default
    their mean nll.

    Initial weights follow from ``seed``, the order of the examples and dropout from ``key``. The folder ``save_to`` is
    replaced, once the adapter is whole. Raises ``RunFolderError`` where it cannot be written.
    """
    settings.check_device(trainer.device)
    model = LanguageModel(weights)
    longest = max(len(sequence.ids) for sequence in [*examples, *replay])
    check_context(model, longest, "The longest training example")
    trainer.make_room(weights)
    network = weights.fresh_adapter(settings.lora_config(), seed)
    network.train()
    if settings.gradient_checkpointing:
        _checkpointing(network.get_base_model(), "enable")({"use_reentrant": False})
    max_tokens = max(1, trainer.batch_tokens // KEPT)
    max_padding = trainer.pass_cost(weights)
    module = Finetuner(
        *(weights, examples, replay, settings, key, max_tokens, max_padding, log_step, label, loss, drop_not_finite)
    )
    try:
        with torch.random.fork_rng():
            trainer.fit(module, settings.epochs)
    finally:  # the weights may serve the next job of a sweep, however this one ends
        if settings.gradient_checkpointing:
            _checkpointing(network.get_base_model(), "disable")()
        network.eval()
    network.peft_config["default"].base_model_name_or_path = weights.checkpoint.path
    if processes.rank() == 0:
        _save(network, save_to)
    weights.adopt(str(save_to))
    return module.loss, sum(i < len(examples) for i in module.left_out)


def _checkpointing(network: Any, switch: Literal["enable", "disable"]) -> Callable[..., None]:
    # Transformers 5.19, of the versions that vLLM admits, has it under its old name.
    name = f"activation_checkpointing_{switch}"
    return getattr(network, name if hasattr(network, name) else f"gradient_checkpointing_{switch}")  # type: ignore[no-any-return]


def _save(network: Any, folder: Path) -> None:
    with atomic_files.write_errors(f"the adapter {folder}"), atomic_files.replacing(folder) as partial:
        network.save_pretrained(str(partial), save_embedding_layers=False)
