"""Show a plan on the terminal."""

from rich.table import Table

from tskd.config.cost_estimate import LIGHTER, Plan, _seconds
from tskd.models.memory import machine
from tskd.tracking.console import bold, console, number, shown_bytes


def show(plan: Plan) -> None:
    """The models, a table of the work, and what it comes to."""
    run = plan.run
    console.print(bold("Plan"), " ≤: at most, where texts are not written yet; memory and times are estimates")
    for role, model in run.models.items():
        checkpoint, size = model.weights.checkpoint, plan.sizes.get(model.weights)
        kind = checkpoint.dtype if checkpoint.quantization == "none" else checkpoint.quantization
        taken = size and f"{size.parameters:,} parameters, {shown_bytes(size.weights)}"
        said = f"{checkpoint.name} ({checkpoint.path}), {kind}, {taken or 'not on this machine'}"
        if model.adapter is not None:
            lacks = size is not None and model not in plan.here
            note = ", to be made first" if run.teacher_to_make else ", not on this machine" if lacks else ""
            said = f"base + {model.adapter}{note}"
        console.print(f"  {role:<10} {said}")

    table = Table(box=None, padding=(0, 0, 0, 2))
    for column in ("", "", "texts", "tokens read", "generated", "memory", "time"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    times = [plan.estimate(work) for work in plan.work]
    for work, estimate in zip(plan.work, times, strict=True):
        reads = "?" if work.reads is None else str(work.reads)
        time = "no rate yet" if estimate is None else f"≤ {_seconds(estimate)}"
        time = time if work.seconds is None else f"stored, {_seconds(work.seconds)}"
        name, memory = f"{work.stage} {work.models}", shown_bytes(work.memory)
        table.add_row(number(work.iteration, "d"), name, str(work.items), reads, str(work.writes), memory, time)
    console.print(table)

    stored = [work.seconds for work in plan.work if work.seconds is not None]
    todo = {work: time for work, time in zip(plan.work, times, strict=True) if work.seconds is None}
    known = [time for time in todo.values() if time is not None]
    console.print(f"  stored     {len(stored)} of {len(plan.work)} results, which took {_seconds(sum(stored))}")
    if known:
        console.print(f"  to make    {len(known)} in about {_seconds(sum(known))} at most, at the rate of those stored")
    if len(known) < len(todo):
        console.print(f"  to make    {len(todo) - len(known)} of which no rate is known yet: none like them is stored")
    device, there = machine(run.trainer.device)
    lack = f"; {LIGHTER}" if (plan.memory or 0) > there else ""
    console.print(f"  memory     {shown_bytes(plan.memory)} needed, and {device} has {shown_bytes(there)}{lack}")
    for line in run.advice() if plan.has_all else []:
        console.print(f"  advice     {line}")
    if plan.end is not None:
        console.print(" ", bold("will fail"), f" {plan.end}")
