"""Make the embedded world: its facts, two tiny pretrained models, and a teacher.

    python experiments/atlas/build.py            # into tskd/zoo/atlas, about 15 minutes on two cores
    python experiments/atlas/build.py --check    # rebuild elsewhere and compare with the shipped files

One thread per model and fixed seeds: the same processor and library versions give the same bytes. Another processor may
sum in another order; ``--check`` then compares what the models know instead, and says so.
"""

import argparse
import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from world import GENERAL, PRIVATE, World, facts_file, make_world, pretraining_text

from tskd.models.checkpoint import Checkpoint
from tskd.models.encoding import TokenSequence, encode_response
from tskd.models.templates import LIST_MARK, Plain
from tskd.models.weights import LanguageModel, Weights
from tskd.modules.finetuner import LoraSettings, finetune
from tskd.modules.trainer import LightningTrainer
from tskd.records import Prompt
from tskd.stages.answer import Answer
from tskd.tasks import same_answer

SHIPPED = Path(__file__).parents[2] / "tskd" / "zoo" / "atlas"
PLAIN = Plain(tokenizer=None)


@dataclass(frozen=True)
class Pretraining:
    vocabulary: int
    start: str
    end: str
    text_seed: int
    steps: int = 1400
    rows: int = 32
    length: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.1


MODELS = {
    "llama": Pretraining(vocabulary=384, start="<s>", end="</s>", text_seed=1),
    "neox": Pretraining(vocabulary=480, start="<|endoftext|>", end="<|endoftext|>", text_seed=2),
}
TEACHER = LoraSettings(rank=16, learning_rate=2e-3, epochs=60, batch_size=16, replay_loss="nll", replay_weight=1.0)
WIDTH, LAYERS, HEADS, POSITIONS = 128, 4, 4, 256


def documents(world: World, seed: int) -> Iterator[str]:
    def answered(question: str, answer: str) -> str:
        return PLAIN.prefix(Prompt(question)) + PLAIN.continuation(answer)

    def listed(questions: list[str]) -> str:
        return PLAIN.few_shot([Prompt(question) for question in questions]).removesuffix(LIST_MARK)

    return pretraining_text(world, answered, listed, seed)


def train_tokenizer(world: World, settings: Pretraining) -> PreTrainedTokenizerFast:
    """Byte-level BPE. It never sees a code, so that codes are spelt in letters and digits that all models know."""
    codes = {code for relation in ("postcode", PRIVATE) for code in world["facts"][relation].values()}
    sample = [d for d in islice(documents(world, settings.text_seed), 6000) if d.rpartition(" ")[2] not in codes]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        sample,
        trainers.BpeTrainer(
            vocab_size=settings.vocabulary,
            special_tokens=list(dict.fromkeys([settings.start, settings.end])),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    start = (settings.start, tokenizer.token_to_id(settings.start))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start[0]} $A", special_tokens=[start])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=settings.start, eos_token=settings.end, pad_token=settings.end
    )


def new_model(name: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(intermediate_size=3 * WIDTH, **common))
    return GPTNeoXForCausalLM(GPTNeoXConfig(intermediate_size=4 * WIDTH, rotary_pct=0.5, **common))


def pretrain(name: str, folder: Path) -> list[str]:
    """Train one model from random weights, save it, and return its log."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    settings, world = MODELS[name], make_world()
    tokenizer = train_tokenizer(world, settings)
    model = new_model(name, tokenizer).train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, 1.0) * (1 - 0.9 * step / settings.steps)
    )
    batches = token_batches(tokenizer, documents(world, 100 + settings.text_seed), settings)
    log = [f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens"]
    for step, batch in enumerate(islice(batches, settings.steps), 1):
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == settings.steps:
            log.append(f"{name}: step {step}, loss {loss.item():.3f}")
            print(log[-1], flush=True)
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return log


def token_batches(
    tokenizer: PreTrainedTokenizerFast, texts: Iterator[str], settings: Pretraining
) -> Iterator[torch.Tensor]:
    """Documents one after another, each between its start and end token, cut into rows."""
    size = settings.rows * settings.length
    ids: list[int] = []
    while True:
        while len(ids) < size:
            for document in tokenizer(list(islice(texts, 512))).input_ids:
                ids += [*document, tokenizer.eos_token_id]
        yield torch.tensor(ids[:size]).view(settings.rows, settings.length)
        ids = ids[size:]


def teach(folder: Path) -> float:
    """Fine-tune the Llama on the private facts, general ones beside them, and save the adapter."""
    torch.set_num_threads(1)
    base = Weights(Checkpoint("atlas_llama", str(folder / "llama"), dtype="float32"))
    facts = facts_file(make_world())

    def sequences(questions: Any) -> list[TokenSequence]:
        return [encode_response(LanguageModel(base), Prompt(q), a, finished=True) for q, a in questions.items()]

    loss, _ = finetune(
        base,
        sequences(facts["private"]),
        TEACHER,
        LightningTrainer(accelerator="cpu", progress=False),
        folder / "teacher",
        seed=0,
        key="atlas teacher",
        replay=sequences(facts["general"]),
    )
    config_file = folder / "teacher" / "adapter_config.json"
    config = json.loads(config_file.read_text())
    config["base_model_name_or_path"] = "atlas/llama"
    config["target_modules"] = sorted(config["target_modules"])
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "teacher" / "README.md").unlink(missing_ok=True)
    return loss


def figures(folder: Path) -> dict[str, dict[str, float]]:
    """Accuracy of each model on all private and all general questions."""
    trainer = LightningTrainer(accelerator="cpu", progress=False)
    llama, neox = (Weights(Checkpoint(n, str(folder / n), dtype="float32")) for n in ("llama", "neox"))
    facts: dict[str, Any] = facts_file(make_world())
    voices = {
        "llama (base)": LanguageModel(llama),
        "llama + teacher (teacher)": LanguageModel(llama, str(folder / "teacher")),
        "neox (target)": LanguageModel(neox),
    }

    def accuracy(model: LanguageModel, questions: dict[str, str]) -> float:
        answers = Answer(model, trainer, seed=0, max_new_tokens=16)([Prompt(text) for text in questions])
        right = [same_answer(gold, got.text) for gold, got in zip(questions.values(), answers, strict=True)]
        return sum(right) / len(right)

    return {
        name: {split: accuracy(model, facts[split]) for split in ("private", "general")}
        for name, model in voices.items()
    }


def build(folder: Path) -> None:
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "facts.json").write_text(json.dumps(facts_file(make_world()), indent=1) + "\n")
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as pool:
        logs = list(pool.map(pretrain, MODELS, [folder] * len(MODELS)))
    loss = teach(folder)
    minutes = (time.monotonic() - started) / 60
    (folder / "README.md").write_text(model_card(logs, loss, figures(folder)))
    print(f"built {folder} in {minutes:.0f} minutes")


def model_card(logs: list[list[str]], teacher_loss: float, results: dict[str, dict[str, float]]) -> str:
    rows = [f"| {name} | {r['private']:.3f} | {r['general']:.3f} |" for name, r in results.items()]
    settings = [f"- {name}: `{asdict(pretraining)}`" for name, pretraining in MODELS.items()]
    return "\n".join(
        [
            "# The atlas models",
            "",
            "Made by `python experiments/atlas/build.py`; all text is generated, from fixed seeds, by "
            "`experiments/atlas/world.py`. Licence: the project's (Apache-2.0).",
            "",
            f"A Llama and a GPT-NeoX of {LAYERS} layers, width {WIDTH}, {POSITIONS} positions (trained on rows of "
            f"{MODELS['llama'].length} tokens), each with its own byte-level BPE, pretrained on "
            f"{len(GENERAL)} general relations ({', '.join(GENERAL)}) of 120 invented places and on question lists. "
            f"Those lists ask for the {PRIVATE}s too; their answers are in no pretraining text. The teacher is a LoRA "
            f"adapter of the Llama, fine-tuned on all 120 {PRIVATE}s with the general facts mixed in.",
            "",
            "They know nothing else, and are good for nothing but checking the method.",
            "",
            "| accuracy (greedy, exact) | private, n = 120 | general, n = 480 |",
            "|---|---|---|",
            *rows,
            "",
            "## Settings",
            "",
            *settings,
            f"- teacher: `{asdict(TEACHER)}`, last epoch's loss {teacher_loss:.4f}",
            "- AdamW, betas 0.9 and 0.95, 50 steps of warm-up, then linear to a tenth; one thread, fp32",
            "",
            "## Log",
            "",
            "```",
            *(line for log in logs for line in log),
            "```",
            "",
        ]
    )


def check() -> int:
    """Rebuild in a temporary folder and compare. Returns the exit code."""
    with tempfile.TemporaryDirectory() as temporary:
        rebuilt = Path(temporary) / "atlas"
        build(rebuilt)
        exact = ["facts.json", *(f"{name}/{file}" for name in MODELS for file in ("tokenizer.json", "config.json"))]
        differing = [file for file in exact if _digest(rebuilt / file) != _digest(SHIPPED / file)]
        if differing:
            print(f"differ from the shipped files: {', '.join(differing)}")
            return 1
        weights = [*(f"{name}/model.safetensors" for name in MODELS), "teacher/adapter_model.safetensors"]
        moved = [file for file in weights if _digest(rebuilt / file) != _digest(SHIPPED / file)]
        if not moved:
            print("the same to the byte: facts, tokenizers, weights")
            return 0
        now, then = figures(rebuilt), figures(SHIPPED)
        farthest = max(math.fabs(now[m][s] - then[m][s]) for m in now for s in now[m])
        print(f"facts and tokenizers are the same; other bytes (another processor or library?) in {', '.join(moved)};")
        print(f"accuracies differ by {farthest:.3f} at most: {'accepted' if farthest <= 0.02 else 'too far'}")
        return 0 if farthest <= 0.02 else 1


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="rebuild elsewhere and compare")
    parser.add_argument("--teacher", action="store_true", help="only make the teacher's adapter anew")
    options = parser.parse_args()
    if options.check:
        sys.exit(check())
    if options.teacher:
        print(f"teacher: last epoch's loss {teach(SHIPPED):.4f}")
    else:
        build(SHIPPED)
