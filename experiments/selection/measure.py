"""All that a selection rule could look at, measured once for each prompt that a teacher is asked.

``measure(base, teacher, …)`` lets both answer, reads the teacher's answers under both, and gives a row for each prompt.
Any rule is then a function of the rows: ``criteria.py`` has them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tskd.models.encoding import encode_response
from tskd.models.logprobs import token_kl, token_nll
from tskd.models.networks import hidden_states, vocabulary_head
from tskd.models.weights import LanguageModel
from tskd.modules.batches import PaddedBatch, by_length, pad_right
from tskd.modules.trainer import LightningTrainer
from tskd.records import Prompt, Response
from tskd.stages.answer import Answer

BATCH_TOKENS, PADDING = 4096, 64


@dataclass(frozen=True)
class Row:
    """One prompt, answered by the teacher. Lists hold one number for each token of the answer, its end included.

    ``prompt`` is its id. ``is_alike``: the base answers the same. ``is_correct`` is null where there is no answer to
    compare with. The rest is read off the prompt, before a word is
    written: entropies, KL(base ‖ teacher) and KL(teacher ‖ base) of the first token; how strongly the adapter acts, as
    the mean over layers of ‖LoRA output‖ / ‖layer output‖; what the teacher's first token has in common with its first
    tokens after the seeds (probability on those that it begins its answers to seeds with, and Bhattacharyya's
    coefficient with their mean distribution); where the adapter moves the last hidden state (relative length of the
    move, and its cosine with the mean move on the seeds); and, as a control that knows nothing of the teacher, the
    cosine of the base's own state with its mean state on the seeds, centred on all prompts.
    """

    kind: str
    prompt: str
    is_alike: bool
    is_correct: bool | None
    finished: bool
    base_nll: list[float]
    teacher_nll: list[float]
    kl: list[float]
    first_entropy: float
    base_first_entropy: float
    first_kl: float
    first_reverse_kl: float
    strength: float
    seed_mass: float
    seed_overlap: float
    shift: float
    shift_alignment: float
    state_alignment: float


def measure(
    prompts: Mapping[str, Sequence[Prompt]],
    base: LanguageModel,
    teacher: LanguageModel,
    trainer: LightningTrainer,
    max_new_tokens: int,
    grade: Callable[[Prompt, str], bool | None] = lambda prompt, text: None,
) -> list[dict[str, Any]]:
    """A row for each prompt, kind after kind; the kind ``seed`` is what the others are compared with."""
    asked = [(kind, prompt) for kind, of_kind in prompts.items() for prompt in of_kind]
    texts = [prompt for _, prompt in asked]
    answers = Answer(teacher, trainer, 0, max_new_tokens)(texts)
    of_base = Answer(base, trainer, 0, max_new_tokens)(texts)
    read = read_answers(answers, base, teacher)
    compared = compare_with_seeds(read, torch.tensor([kind == "seed" for kind, _ in asked]))
    rows = []
    for i, (kind, prompt) in enumerate(asked):
        plain = {name: values[i].item() for name, values in {**read.measures, **compared}.items()}
        is_alike = answers[i].text == of_base[i].text
        is_correct = grade(prompt, answers[i].text)
        rows.append(asdict(Row(kind, prompt.id, is_alike, is_correct, answers[i].finished, *read.tokens[i], **plain)))
    return [_rounded(row) for row in rows]


@dataclass(frozen=True)
class Reading:
    """What N answers and the prompts before them show: numbers for each token of each answer, measures (N,) of each
    prompt, what the teacher may begin its answer with (N, V), the base's last hidden state and where the adapter moves
    it (N, H).
    """

    tokens: list[tuple[list[float], ...]]
    measures: dict[str, Tensor]
    first: Tensor
    states: Tensor
    moves: Tensor


def read_answers(answers: Sequence[Response], base: LanguageModel, teacher: LanguageModel) -> Reading:
    """One pass of base and teacher over each answer: token by token, and what is known before the first of them."""
    sequences = [encode_response(teacher, a.prompt, a.text, a.finished) for a in answers]
    found: dict[int, tuple[tuple[list[float], ...], dict[str, Tensor]]] = {}
    for indices in by_length([len(s.ids) for s in sequences], BATCH_TOKENS, PADDING):
        batch = pad_right([sequences[i] for i in indices], teacher.pad_token)
        prompt_lengths = torch.tensor([sequences[i].first_target for i in indices])
        is_prompt = torch.arange(batch.input_ids.shape[1]) < prompt_lengths[:, None]
        with torch.inference_mode():
            (base_hidden, base_nll, base_first, _), (hidden, nll, first, strength) = (
                _read(model, batch, is_prompt) for model in (base, teacher)
            )
            head = partial(vocabulary_head, teacher.weights.model)  # the adapter is not on it
            kl = token_kl(base_hidden, hidden, head)
            begin = torch.searchsorted(batch.rows.contiguous(), torch.arange(len(indices)))
            state = base_hidden[begin].float()
            move = hidden[begin].float() - state
            measures = {
                "first_entropy": -(first.exp() * first).sum(-1),
                "base_first_entropy": -(base_first.exp() * base_first).sum(-1),
                "first_kl": (base_first.exp() * (base_first - first)).sum(-1),
                "first_reverse_kl": (first.exp() * (first - base_first)).sum(-1),
                "strength": strength,
                "shift": move.norm(dim=-1) / state.norm(dim=-1),
                "first": first.exp().half(),
                "state": state,
                "move": move,
            }
        for place, i in enumerate(indices):
            mine = batch.rows == place
            tokens = tuple(column[mine].tolist() for column in (base_nll, nll, kl))
            found[i] = tokens, {name: values[place] for name, values in measures.items()}
    stacked = {name: torch.stack([found[i][1][name] for i in range(len(answers))]) for name in measures}
    first, states, moves = stacked.pop("first").float(), stacked.pop("state"), stacked.pop("move")
    return Reading([found[i][0] for i in range(len(answers))], stacked, first, states, moves)


def _read(model: LanguageModel, batch: PaddedBatch, is_prompt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states before all targets (N, H), their nlls (N,), first log-probabilities (B, V) and strength (B,)."""
    with model.speaking() as network, adapter_outputs(network, is_prompt) as ratios:
        states = hidden_states(network, batch.input_ids, batch.attention_mask)
        hidden = states[batch.rows, batch.columns]
        nll = token_nll(hidden, batch.labels, partial(vocabulary_head, network))
        begin = torch.searchsorted(batch.rows.contiguous(), torch.arange(len(is_prompt)))
        first = vocabulary_head(network, hidden[begin]).float().log_softmax(-1)
    return hidden, nll, first, torch.stack(ratios).mean(0) if ratios else torch.zeros(len(is_prompt))


def compare_with_seeds(read: Reading, is_seed: Tensor) -> dict[str, Tensor]:
    """What each prompt has in common with the seeds; a seed is compared with the others."""
    overlap, mass, alignment, likeness = [], [], [], []
    states = read.states - read.states.mean(0)
    for i in range(len(is_seed)):
        others = is_seed.clone()
        others[i] = False
        first = read.first[others]
        mean = first.mean(0)
        begun = torch.zeros_like(mean)
        begun[first.argmax(-1).unique()] = 1
        overlap.append((read.first[i] * mean).sqrt().sum())
        mass.append((read.first[i] * begun).sum())
        alignment.append(cosine_similarity(read.moves[i], read.moves[others].mean(0), dim=0))
        likeness.append(cosine_similarity(states[i], states[others].mean(0), dim=0))
    columns = {"seed_mass": mass, "seed_overlap": overlap, "shift_alignment": alignment, "state_alignment": likeness}
    return {name: torch.stack(values) for name, values in columns.items()}


@contextmanager
def adapter_outputs(network: Any, mask: Tensor) -> Iterator[list[Tensor]]:
    """A list that fills, as texts are read, with ‖LoRA output‖ / ‖layer output‖ of each layer: (B,), over ``mask``.

    It stays empty where no adapter speaks.
    """
    ratios: list[Tensor] = []

    def note(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        (name,) = layer.active_adapters
        read = inputs[0].to(layer.lora_A[name].weight.dtype)
        added = layer.lora_B[name](layer.lora_A[name](read)) * layer.scaling[name]
        ratio = added.norm(dim=-1) / (output - added).norm(dim=-1).clamp(min=1e-6)
        ratios.append((ratio.float() * mask).sum(-1) / mask.sum(-1))

    layers = [each for each in network.modules() if isinstance(each, LoraLayer) and not each.disable_adapters]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield ratios
    finally:
        for hook in hooks:
            hook.remove()


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(each) for each in value]
        return round(value, 5) if isinstance(value, float) else value

    return {name: short(value) for name, value in row.items()}
