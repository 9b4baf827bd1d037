"""Compare what rules and thresholds keep of the same responses; train nothing.

    python experiments/rules.py outputs/generators   # reads the jobs with few-shot prompts and no filter

The responses are scored again, with all that any rule looks at. Writes ``results/atlas_rules.json``.
"""

import argparse
from pathlib import Path

from gather import Result, jobs_of, write

from tskd.models.checkpoint import Checkpoint
from tskd.models.weights import LanguageModel, Weights
from tskd.modules.scorer import score
from tskd.modules.trainer import LightningTrainer
from tskd.records import PRIVATE, Scored
from tskd.stages.select import stage, subsets, thresholds
from tskd.storage.run_folder import RunFolder
from tskd.tasks.atlas import Atlas

RULES: dict[str, dict[str, stage.Rule]] = {  # by threshold: what conf/selection sets, or says to try
    "ppl_difference": {
        "1.5": thresholds.PplDifference(1.5),
        **{level: thresholds.PplDifference(float(level)) for level in ("0", "0.5", "4", "16", "64", "256")},
        "auto": thresholds.PplDifference("auto"),
    },
    "log_ppl_difference": {"0.4": thresholds.LogPplDifference(0.4)},
    "ppl_ratio": {"1.5": thresholds.PplRatio(1.5)},
    "inverse_ppl_difference": {"0.1": thresholds.InversePplDifference(0.1)},
    "kl": {"0.4": thresholds.Kl(0.4)},
    "target_gap": {"0.2": thresholds.TargetGap(0.2)},
    "seed_shift": {"0.3": thresholds.SeedShift(0.3), "auto": thresholds.SeedShift("auto")},
    "seed_likeness": {"auto": thresholds.SeedLikeness("auto")},
    "seed_gap": {"auto": thresholds.SeedGap("auto"), "auto and recall 0.9": thresholds.SeedGap("auto", recall=0.9)},
    "confident_teacher": {"2 and 3.5": thresholds.ConfidentTeacher(2.0, 3.5)},
    "top_gap": {"best half": subsets.Top(0.5)},
    "quantile": {"best half": subsets.Quantile(0.5)},
    "random": {"as many as 1.5": subsets.Random(0, thresholds.PplDifference(1.5))},
    "all": {"–": subsets.KeepAll()},
}
MEASURES = ("kl", "seed_shift", "seed_likeness", "target_nll_per_byte")


def scored_again(job: Path) -> list[Scored]:
    """Score the responses of the job's first iteration again, with every measure."""
    base, target = (Weights(Checkpoint(f"atlas_{name}", f"zoo://atlas/{name}")) for name in ("llama", "neox"))
    responses = [example.response for example in RunFolder(job).history()[0].scored]
    return score(
        responses,
        LanguageModel(base),
        LanguageModel(base, "zoo://atlas/teacher"),
        LightningTrainer(accelerator="cpu", progress=False),
        MEASURES,
        LanguageModel(target),
        Atlas().seed_prompts(),
    )


def result_of(rule: stage.Rule, scored: list[Scored]) -> Result:
    """Summarise what the rule keeps; ``facts`` is the share of held-out questions."""
    private = {question.prompt.id for question in Atlas().examples()}
    held_out = {question.prompt.id for question in Atlas().questions() if question.split == PRIVATE}
    of_seeds = [example for example in scored if example.response.prompt.is_seed]
    kept = {example.response.prompt.id for example in stage.Select(rule)(scored, of_seeds).kept}
    asked = {example.response.prompt.id for example in scored}
    return {
        "select/kept": len(kept),
        "select/precision": len(kept & private) / len(kept),
        "select/recall": len(kept & private) / len(asked & private),
        "facts": len(kept & held_out) / len(held_out),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What each rule keeps of the same responses.")
    parser.add_argument("sweep", type=Path)
    results = {}
    for name, job in jobs_of(parser.parse_args().sweep).items():
        words = name.split(",")
        if {"expansion=few_shot", "selection=all"} <= set(words):
            scored = scored_again(job)
            seed = next(word for word in words if word.startswith("seed="))
            results |= {
                f"{seed},{rule},{level}": result_of(made, scored)
                for rule, levels in RULES.items()
                for level, made in levels.items()
            }
    write("atlas_rules", results)
