"""One measurement in a process of its own: ``python work.py '{"kind": "score", "side": "ours", …}'``, by ``run.py``.

A side is a function that loads its model and gives back the work: a function of the responses, which is called twice,
on two of them to warm up and then, timed, on all. What it returns is compared between the sides.
"""

import json
import logging
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from tskd.engines.own import generate
from tskd.models.checkpoint import Checkpoint
from tskd.models.encoding import encode_prefix, encode_response
from tskd.models.generation import Request, Sampling
from tskd.models.weights import LanguageModel, Weights
from tskd.modules.finetuner import LoraSettings, finetune
from tskd.modules.scorer import score
from tskd.modules.trainer import LightningTrainer
from tskd.records import Prompt, Response

CUDA = torch.cuda.is_available()
ROWS = 32  # of a batch in generation
NEW_TOKENS = 16
SETTINGS = LoraSettings(rank=16, alpha=32, learning_rate=2e-4, epochs=1, batch_size=8)
Work = Callable[[Sequence[Response]], dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """What ``run.py`` asks for: which work by which side, of which model, on how much."""

    kind: str
    side: str
    model: str
    adapter: str
    data: str
    pairs: int
    dtype: str
    threads: int
    max_batch_tokens: int | None = None
    seed: int = 0

    def weights(self) -> Weights:
        return Weights(Checkpoint(Path(self.model).name, self.model, dtype=self.dtype))

    def load(self) -> Any:
        """The checkpoint as transformers loads it: what a peer starts from."""
        model = AutoModelForCausalLM.from_pretrained(self.model, dtype=_dtype(self.dtype), use_safetensors=True)
        return model.to("cuda" if CUDA else "cpu").eval()

    def teacher(self) -> Any:
        return PeftModel.from_pretrained(self.load(), self.adapter).eval()

    def trainer(self, max_batch_tokens: int | None = None) -> LightningTrainer:
        return LightningTrainer(max_batch_tokens=max_batch_tokens or self.max_batch_tokens, progress=False)

    def responses(self) -> list[Response]:
        """The first examples of each task, task after task, with their answers."""
        files = sorted(Path(self.data, "bbh").glob("*.json"))
        share = math.ceil(self.pairs / max(1, len(files)))
        rows = [row for file in files for row in json.loads(file.read_text())["examples"][:share]]
        if len(rows) < self.pairs:
            raise SystemExit(f"{self.data}/bbh has {len(rows)} examples for {self.pairs} pairs; lower --pairs.")
        return [Response(Prompt(row["input"]), row["target"]) for row in rows[: self.pairs]]


def measure(job: Job) -> dict[str, Any]:
    """Time and memory of one work by one side: ``tokens`` in ``seconds``, and what was ``computed``."""
    work = SIDES[job.kind][job.side](job)
    loaded = _peak_mb()
    responses = job.responses()
    work(responses[:2])
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    start, start_of_cpu = time.perf_counter(), time.process_time()
    computed = work(responses)
    if CUDA:
        torch.cuda.synchronize()
    found = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - start_of_cpu,
        "peak_mb": _peak_mb(),
        "loaded_mb": loaded,
        "computed": computed,
    }
    if CUDA:
        found["cuda_peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return found | _amount(job, responses)


# Scoring: each response's nll under base and teacher, summed over its tokens, which are the same for all sides.


def score_ours(job: Job) -> Work:
    weights = job.weights()
    base, teacher = LanguageModel(weights), LanguageModel(weights, job.adapter)
    with teacher.speaking():
        pass  # loads the adapter

    def work(responses: Sequence[Response]) -> dict[str, Any]:
        scored = score(responses, base, teacher, job.trainer())
        return {"nll": [(one.base_nll * one.tokens, one.teacher_nll * one.tokens) for one in scored]}

    return work


def score_lm_eval(job: Job, batch_size: int) -> Work:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model, network = LanguageModel(job.weights()), job.teacher()

    class Apart(HFLM):  # type: ignore[misc]
        """Prompt and response tokenised apart, as we do, or it would not score the same tokens."""

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            return self.tok_encode(context), self.tok_encode(continuation, add_special_tokens=False)

    special = model.template.adds_special_tokens
    # Where a model names no limit, the harness would assume one.
    limit = {"max_length": model.weights.max_length} if model.weights.max_length else {}
    harness = Apart(
        pretrained=network, tokenizer=model.tokenizer, add_bos_token=special, batch_size=batch_size, **limit
    )

    def work(responses: Sequence[Response]) -> dict[str, Any]:
        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(_texts(model, responses))]
        with network.disable_adapter():
            base = harness.loglikelihood(requests, disable_tqdm=True)
        teacher = harness.loglikelihood(requests, disable_tqdm=True)
        return {"nll": [(-of_base, -of_teacher) for (of_base, _), (of_teacher, _) in zip(base, teacher, strict=True)]}

    return work


def score_two_models(job: Job) -> Work:
    """The usual way: two models in memory, all logits, the order of the file, eight at a time."""
    model, networks = LanguageModel(job.weights()), [job.load(), job.teacher()]

    def nll(network: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits = network(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        return -logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]

    @torch.inference_mode()
    def work(responses: Sequence[Response]) -> dict[str, Any]:
        sums = []
        for start in range(0, len(responses), 8):
            sequences = [encode_response(model, r.prompt, r.text, r.finished) for r in responses[start : start + 8]]
            rows = [torch.tensor(sequence.ids, device=networks[0].device) for sequence in sequences]
            ids = pad_sequence(rows, batch_first=True)
            mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            columns = [nll(network, ids, mask) for network in networks]
            for row, sequence in enumerate(sequences):
                targets = slice(sequence.first_target - 1, len(sequence.ids) - 1)
                sums.append(tuple(column[row, targets].sum().item() for column in columns))
        return {"nll": sums}

    return work


# Training: one epoch of LoRA on the pairs, the loss over the responses alone.


def train_ours(job: Job) -> Work:
    model = LanguageModel(job.weights())
    _ = model.weights.model

    def work(responses: Sequence[Response]) -> dict[str, Any]:
        examples = [encode_response(model, r.prompt, r.text, r.finished) for r in responses]
        with tempfile.TemporaryDirectory() as folder:
            save_to = Path(folder, "adapter")
            loss, _ = finetune(
                model.weights, examples, SETTINGS, job.trainer(), save_to, seed=job.seed, key=str(job.seed)
            )
        return {"loss": loss, "tokens": sum(len(example.ids) for example in examples)}

    return work


def train_trl(job: Job) -> Work:
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    model, network = LanguageModel(job.weights()), job.load()

    def work(responses: Sequence[Response]) -> dict[str, Any]:
        rows = [{"prompt": prompt, "completion": completion} for prompt, completion in _texts(model, responses)]
        with tempfile.TemporaryDirectory() as folder:
            # Its default recomputes activations and casts to bfloat16; ours does neither.
            config = SFTConfig(
                folder, **_trainer_settings(job), bf16=False, activation_checkpointing=False, max_length=None
            )
            data, lora = Dataset.from_list(rows), SETTINGS.lora_config()
            trainer = SFTTrainer(
                network, config, train_dataset=data, processing_class=model.tokenizer, peft_config=lora
            )
            loss = trainer.train().training_loss
        trainer.model.unload()
        tokens = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
        return {"loss": loss, "tokens": tokens}

    return work


def train_transformers(job: Job) -> Work:
    model, network = LanguageModel(job.weights()), job.load()
    collate = DataCollatorForSeq2Seq(model.tokenizer)

    def work(responses: Sequence[Response]) -> dict[str, Any]:
        sequences = [encode_response(model, r.prompt, r.text, r.finished) for r in responses]
        rows = [
            {"input_ids": list(s.ids), "labels": [-100] * s.first_target + list(s.ids[s.first_target :])}
            for s in sequences
        ]
        with tempfile.TemporaryDirectory() as folder:
            adapted = get_peft_model(network, SETTINGS.lora_config())
            config = TrainingArguments(folder, **_trainer_settings(job))
            loss = Trainer(adapted, config, data_collator=collate, train_dataset=rows).train().training_loss
        adapted.unload()
        return {"loss": loss, "tokens": sum(len(sequence.ids) for sequence in sequences)}

    return work


def _trainer_settings(job: Job) -> dict[str, Any]:
    """What transformers' Trainer, and TRL's on it, are told, to do as ours does. Nothing is saved, which ours does."""
    quiet = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
    return quiet | {
        "per_device_train_batch_size": SETTINGS.batch_size,
        "num_train_epochs": SETTINGS.epochs,
        "learning_rate": SETTINGS.learning_rate,
        "use_cpu": not CUDA,
        "seed": job.seed,
    }


# Generation: sixteen new tokens after each prompt, greedy, from the teacher. Nothing ends early.


class Endless(LanguageModel):
    """A language model that no token stops."""

    @property
    def end_tokens(self) -> frozenset[int]:
        return frozenset([-1])


def generate_ours(job: Job) -> Work:
    teacher = Endless(job.weights(), job.adapter)
    with teacher.speaking():
        pass  # loads the adapter

    def work(responses: Sequence[Response]) -> dict[str, Any]:
        requests = [Request(encode_prefix(teacher, teacher.template.prefix(r.prompt))) for r in responses]
        longest = max(len(request.ids) for request in requests) + NEW_TOKENS
        made = generate(teacher, requests, Sampling(NEW_TOKENS), job.trainer(ROWS * longest))
        assert {one.tokens for one in made} == {NEW_TOKENS}
        return {"texts": [one.text for one in made]}

    return work


def generate_peft(job: Job, contiguous: bool = False) -> Work:
    model, network = LanguageModel(job.weights()), job.teacher()
    network.generation_config.eos_token_id = None
    if contiguous:  # what tskd does to a model that it loads, for the reason given in `tskd/networks.py`
        head = network.get_output_embeddings()
        head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))

    def work(responses: Sequence[Response]) -> dict[str, Any]:
        texts: list[str] = []
        for start in range(0, len(responses), ROWS):
            prompts = [model.template.prefix(response.prompt) for response in responses[start : start + ROWS]]
            rows = [torch.tensor(encode_prefix(model, prompt)) for prompt in prompts]
            pad = partial(pad_sequence, batch_first=True, padding_side="left")
            ids, mask = pad(rows, padding_value=model.pad_token), pad([torch.ones_like(row) for row in rows])
            made = network.generate(
                input_ids=ids.to(network.device),
                attention_mask=mask.to(network.device),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                use_cache=True,
                pad_token_id=model.pad_token,
            )[:, ids.shape[1] :]
            assert made.shape[1] == NEW_TOKENS
            texts += [model.tokenizer.decode(row, skip_special_tokens=True) for row in made]
        return {"texts": texts}

    return work


SIDES: dict[str, dict[str, Callable[[Job], Work]]] = {
    "score": {
        "ours": score_ours,
        "lm-eval, batch 8": partial(score_lm_eval, batch_size=8),
        "lm-eval, batch 32": partial(score_lm_eval, batch_size=32),
        "two models, all logits": score_two_models,
    },
    "train": {"ours": train_ours, "TRL SFTTrainer": train_trl, "transformers Trainer": train_transformers},
    "generate": {
        "ours": generate_ours,
        "PEFT generate": generate_peft,
        "PEFT generate, contiguous head": partial(generate_peft, contiguous=True),
    },
}


def make_adapter(job: Job) -> dict[str, Any]:
    """A random LoRA adapter that changes what the model says, in ``job.adapter``."""
    torch.manual_seed(0)
    model = get_peft_model(job.load(), SETTINGS.lora_config())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(job.adapter, save_embedding_layers=False)
    return {}


def _amount(job: Job, responses: Sequence[Response]) -> dict[str, Any]:
    """The tokens that are counted, and what they cost by the README's formulas."""
    model = LanguageModel(job.weights())
    sequences = [encode_response(model, r.prompt, r.text, r.finished) for r in responses]
    config = model.weights.config
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(
            config, dtype=config.dtype if job.dtype == "auto" else _dtype(job.dtype)
        )
    vocabulary = {id(part.weight) for part in (network.get_input_embeddings(), network.get_output_embeddings())}
    layers = [parameter for parameter in network.parameters() if id(parameter) not in vocabulary]
    size = sum(parameter.numel() for parameter in layers)
    tokens = sum(len(sequence.ids) for sequence in sequences)
    if job.kind != "generate":
        return {"tokens": tokens, "flop": 4 * size * tokens, "bytes": 0}
    read, written = sum(sequence.first_target for sequence in sequences), NEW_TOKENS * len(responses)
    steps = NEW_TOKENS * math.ceil(len(responses) / ROWS)
    bytes_read = steps * sum(parameter.numel() * parameter.element_size() for parameter in layers)
    return {"tokens": written, "flop": 2 * size * (read + written), "bytes": bytes_read}


def _texts(model: LanguageModel, responses: Sequence[Response]) -> list[tuple[str, str]]:
    """Prompt and response as text, with the token that ends it."""
    end = model.tokenizer.convert_ids_to_tokens(model.template.end_token())
    return [(model.template.prefix(r.prompt), model.template.continuation(r.text) + end) for r in responses]


def _dtype(name: str) -> Any:
    return name if name == "auto" else getattr(torch, name)


def _peak_mb() -> float:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def main(job: Mapping[str, Any]) -> dict[str, Any]:
    """What came of ``job``, as ``run.py`` takes it."""
    made = Job(**job)
    return make_adapter(made) if made.kind == "adapter" else measure(made)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    print("\n" + json.dumps(main(given)))
