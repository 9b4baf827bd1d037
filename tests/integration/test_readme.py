"""The README's commands are real: each composes, and names options and files that exist."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tskd.config import hydra_plugins
from tskd.metrics.iteration import METRICS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.S)).replace("\\\n", " ")
COMMANDS = [shlex.split(line, comments=True) for line in BLOCKS.splitlines() if line.strip()]
RUNS = [words[3:] for words in COMMANDS if words[:3] == ["python", "-m", "tskd.run"]]


@pytest.mark.parametrize("arguments", [run for run in RUNS if not run[0].startswith("resume=")], ids=" ".join)
def test_every_run_in_the_readme_composes(arguments):
    hydra_plugins.register()
    single = [argument.split(",")[0] for argument in arguments if argument != "-m"]
    with initialize_config_dir(hydra_plugins.folder(), version_base="1.3"):
        composed = compose("config", overrides=single)
    assert composed.iterations >= 1


def test_every_make_target_in_the_readme_exists():
    targets = {words[1] for words in COMMANDS if words[0] == "make"}
    assert {"demo", "test", "check"} == targets
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in targets)


def headings(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: lower case, no punctuation, a hyphen for each space."""
    titles = re.findall(r"^#+ (.+)$", page, flags=re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_every_file_and_option_in_the_readme_exists():
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        path, _, heading = link.partition("#")
        assert (ROOT / path).exists(), link
        assert not heading or heading in headings((ROOT / path).read_text()), link
    for group in ("teacher", "task", "expansion", "selection", "training", "trainer", "tracking"):
        row = next(line for line in README.splitlines() if line.startswith("| `" + group))
        for file in (ROOT / "conf" / group).glob("[a-z]*.yaml"):
            assert file.stem in row


def test_every_metric_in_the_readme_is_measured_and_every_measured_one_is_there():
    table = README.split("## Metrics")[1].split("## ")[0]
    named = set()
    for cell in re.findall(r"^\| `([^`]+)`", table, flags=re.M):
        before, _, rest = cell.partition("{")
        inside, _, after = rest.partition("}")
        named |= {f"{before}{name}{after}" for name in inside.split(",")}
    assert set(METRICS) == named


def test_the_layout_names_every_room_and_the_top_level_stays_small():
    layout = README.split("## Layout")[1].split("\n## ")[0]
    top = [path for path in (ROOT / "tskd").iterdir() if not path.name.startswith("_")]
    assert {f"`{room.name}/`" for room in top if room.is_dir()} <= set(re.findall(r"`\w+/`", layout))
    assert len([path for path in (ROOT / "tskd").iterdir() if path.is_file()]) <= 20
    names = [path.name for path in (ROOT / "tskd").rglob("*.py") if not path.name.startswith("__")]
    assert len(names) == len(set(names)), "two files of one name"
