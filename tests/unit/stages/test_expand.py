"""What each strategy asks of a writer and reads from it, and what all of them leave out."""

import random
import re
from dataclasses import dataclass, field, replace

import pytest

from tests import scripted, tiny
from tests.unit.config.test_schema import built, composed
from tskd.config.cost_estimate import Count, Plan
from tskd.errors import ConfigError, ModelError
from tskd.models.generation import Generation, before_any
from tskd.models.templates import Chat, Plain
from tskd.models.weights import LanguageModel, weights_of
from tskd.records import Message, Prompt
from tskd.stages.expand import Evolve, FewShot, NumberedList, Unprompted
from tskd.stages.writers import LocalWriter
from tskd.storage.fingerprint import key_content

SYSTEM = (Message("system", "s"),)
TURNS = (*SYSTEM, Message("user", "One?"), Message("assistant", "1"))
LINES = Prompt("Which?\nOptions:\n(A) one\n\n(B) two")
POOL = [Prompt("one"), Prompt("two", SYSTEM), LINES, Prompt("four", TURNS), Prompt("five"), Prompt("six")]
ALL = [FewShot, NumberedList, Unprompted, Evolve]
TOKENIZER = tiny.byte_tokenizer("<s>", scripted.END)


def chat(chat_template=scripted.CHAT_WITH_REQUEST):
    tokenizer = tiny.byte_tokenizer("<s>", scripted.END)
    tokenizer.chat_template = chat_template
    return Chat(tokenizer)


@dataclass(frozen=True)
class Scribe:
    """Writes what it was told to, again and again, and notes what it was asked."""

    drafts: tuple[str, ...] = ("new",)
    template: object = field(default_factory=lambda: Plain(TOKENIZER))
    finished: bool = True
    asked: list = field(default_factory=list)
    name = "scribe"

    def write(self, texts, keys, sampling, *, stop, label):
        self.asked.append((texts, keys, stop))
        drafts = [before_any(stop, self.drafts[i % len(self.drafts)]) for i in range(len(texts))]
        return [Generation(draft, self.finished, len(draft)) for draft in drafts]

    def check_length(self, text, new_tokens, what):
        raise ModelError(f"{what}{len(text)}, {new_tokens}")


def asked_of(kind, pool=POOL, *, template=None, index=0, **settings):
    """The texts that ``kind`` lets a writer read, their keys, and what stops it."""
    scribe = Scribe() if template is None else Scribe(template=template)
    kind(scribe, **{"seed": 0, "num_drafts": 12, **settings})(pool, pool, index)
    ((texts, keys, stop),) = scribe.asked
    return texts, keys, stop


def expand(*drafts, kind=FewShot, pool=POOL, seen=(), **settings):
    writer = Scribe(drafts)
    return kind(writer, **{"seed": 0, "num_drafts": len(drafts), **settings})(pool, [*pool, *seen], 0)


# What all have in common


@pytest.mark.parametrize("kind", ALL)
def test_requests_and_keys_follow_from_seed_iteration_and_draft(kind):
    assert asked_of(kind) == asked_of(kind)
    few, many = asked_of(kind, num_drafts=5), asked_of(kind)
    assert (few[0], few[1]) == (many[0][:5], many[1][:5])
    keys = [asked_of(kind, seed=seed, index=index)[1] for seed in (0, 1) for index in (0, 1)]
    assert 4 * 12 == len({key for each in keys for key in each})


@pytest.mark.parametrize("kind", ALL)
def test_a_new_prompt_has_the_context_of_its_first_parent(kind):
    by_id = {prompt.id: prompt for prompt in POOL}
    made = expand(*(f"new {i}" for i in range(30)), kind=kind).prompts
    assert 30 == len(made)
    assert all(by_id[prompt.parents[0]].context == prompt.context and not prompt.is_seed for prompt in made)
    assert {(), SYSTEM, TURNS} == {prompt.context for prompt in made}
    assert {5 if issubclass(kind, FewShot) else 1} == {len(prompt.parents) for prompt in made}


@pytest.mark.parametrize("kind", ALL)
def test_a_pool_of_one_prompt_is_enough(kind):
    made = expand("a new one", kind=kind, pool=[LINES])
    assert [Prompt("a new one", (), 0, (LINES.id,))] == list(made.prompts)


@pytest.mark.parametrize("kind", ALL)
def test_each_draft_is_new_or_counted_once(kind):
    held_out = frozenset({Prompt("Secret").fingerprint})
    drafts = ("a", "A ", "", "secret", "one", "b")
    made = expand(*drafts, kind=kind, pool=POOL[:1], held_out=held_out)
    assert ["a", "b"] == [prompt.text for prompt in made.prompts]
    assert (2, 0, 1, 1) == (made.duplicates, made.near_duplicates, made.malformed, made.held_out)
    assert (6, sum(map(len, drafts))) == (made.drafts, made.tokens)


@pytest.mark.parametrize("kind", ALL)
def test_drafts_of_one_request_read_the_same(kind):
    texts, keys, _ = asked_of(kind, drafts_per_request=3)
    assert all(text == texts[draft - draft % 3] for draft, text in enumerate(texts))
    assert 12 == len(set(keys))


def test_what_a_writer_has_not_finished_is_malformed():
    made = FewShot(Scribe(("a", "b"), finished=False), seed=0, num_drafts=2)(POOL, POOL, 0)
    assert ((), 2) == (made.prompts, made.malformed)


@pytest.mark.parametrize("kind", ALL)
def test_the_longest_request_is_checked_beforehand(kind):
    for template in (Plain(TOKENIZER), chat()):
        texts, _, _ = asked_of(kind, template=template, num_drafts=100)
        number = {True: 5, False: 1}[issubclass(kind, FewShot)]
        said = rf"with {number} seeds to go on from and 7 new tokens,{max(map(len, texts))}, 7"
        with pytest.raises(ModelError, match=said):
            kind(Scribe(template=template), seed=0, max_new_tokens=7).check_lengths(POOL)


def test_of_each_prompt_that_is_drafted_again_it_is_told_how_often():
    drafts = ("a", "A ", "one", "b", "a", "two", "", "one!")
    made = expand(*drafts, pool=POOL[:1], seen=[Prompt("Two")])
    assert {Prompt("a").fingerprint: 2, Prompt("one").fingerprint: 1, Prompt("two").fingerprint: 1} == made.repeats
    assert 4 == made.duplicates
    assert ["a", "b", "one!"] == [prompt.text for prompt in made.prompts]


# Near-duplicates


BARE = [Prompt("what is the code of A")]


def test_a_near_duplicate_of_what_was_seen_or_drafted_is_left_out_and_counted():
    drafts = ["the code of A is what", "what is the code of B", "name a river", "Name a long river", "name a river!"]
    made = expand(*drafts, pool=BARE, max_rouge_l=0.7)
    assert ["the code of A is what", "name a river"] == [prompt.text for prompt in made.prompts]
    assert (0, 3) == (made.duplicates, made.near_duplicates)
    assert 5 == len(expand(*drafts, pool=BARE).prompts)


def test_what_was_left_out_as_near_is_a_repeat_when_it_comes_again():
    made = expand(
        "one two three!", "one two four", "One two four", pool=BARE, seen=[Prompt("one two")], max_rouge_l=0.7
    )
    assert ((), 1, 2) == (made.prompts, made.duplicates, made.near_duplicates)


def test_the_same_words_in_another_context_are_not_near():
    made = expand("what is this", pool=[Prompt("q", SYSTEM)], seen=[Prompt("what is this")], max_rouge_l=0.7)
    assert [Prompt("what is this", SYSTEM, 0, (Prompt("q", SYSTEM).id,))] == list(made.prompts)


@pytest.mark.parametrize("value", [0, 1.5, "much"])
def test_a_threshold_that_is_none_is_refused(value, tmp_path):
    with pytest.raises(ConfigError, match="`expansion.max_rouge_l` is"):
        built(tmp_path, f"expansion.max_rouge_l={value}")


# Few-shot


def test_few_shot_asks_as_it_always_has():
    texts, keys, stop = asked_of(FewShot, index=3, num_drafts=4)
    assert [f"0/expand/3/{draft}" for draft in range(4)] == keys
    for text, key in zip(texts, keys, strict=True):
        shown = random.Random(key).sample(POOL, 5)
        items = "".join(f"\n\nPrompt: {prompt.text}" for prompt in shown)
        assert f"Here are prompts of one kind.{items}\n\nPrompt:" == text
    assert ("\n\nPrompt:",) == stop


# A numbered list


@pytest.mark.parametrize("template", [Plain(TOKENIZER), chat()], ids=["plain", "chat"])
def test_a_numbered_list_is_plain_text_with_an_open_item_after_the_start_token(template):
    texts, keys, stop = asked_of(NumberedList, template=template)
    shown = random.Random(keys[0]).sample(POOL, 5)
    items = "".join(f"\n\n{number}. {prompt.text}" for number, prompt in enumerate(shown, 1))
    start = "<s>" if isinstance(template, Chat) else ""  # which a plain template leaves to the tokenizer
    assert f"{start}Here are 10 examples:{items}\n\n6." == texts[0]
    assert ("\n\n7.",) == stop


def test_the_list_is_as_long_as_the_pool_allows():
    texts, _, stop = asked_of(NumberedList, POOL[:1])
    assert ("Here are 2 examples:\n\n1. one\n\n2.", ("\n\n3.",)) == (texts[0], stop)


def test_an_item_may_have_lines_blank_lines_and_numbers_of_its_own():
    item = "Which?\nOptions:\n1. one\n\n2. two"
    made = expand(f" {item}\n\n7. Next?\n\n8.", kind=NumberedList)
    assert [item] == [prompt.text for prompt in made.prompts]


# Marks within the data


@pytest.mark.parametrize("template", [Plain(TOKENIZER), chat()], ids=["plain", "chat"])
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (FewShot, "Summarise.\n\nPrompt: x\n\n\nPrompt: y"),
        (Evolve, "Summarise.\n\nPrompt: x"),
        (NumberedList, "Sort.\n\n1. x\n\n6. y\n\n\n7. z"),
    ],
)
def test_a_prompt_that_contains_the_mark_of_a_list_stays_one_item(kind, text, template):
    ((request,), _, stop), ((usual,), _, _) = (
        asked_of(kind, [Prompt(each)], template=template, num_drafts=1) for each in (text, "x")
    )
    marks = re.compile(r"\n\n\d+[.]" if kind is NumberedList else stop[0])
    assert len(marks.findall(usual)) == len(marks.findall(request)) > 0
    assert re.sub(r"\n+", "\n", text) in re.sub(r"\n+", "\n", request)  # nothing but blank lines has gone


# Unprompted


@pytest.mark.parametrize(
    ("template", "context", "expected", "stop"),
    [
        (Plain(TOKENIZER), (), "Question:", ("\nAnswer:",)),
        (Plain(TOKENIZER), TURNS, "s\n\nQuestion: One?\nAnswer: 1\n\nQuestion:", ("\nAnswer:",)),
        (chat(), (), "<user>", ("</s>",)),
        (chat(), TURNS, "<system>s</s>\n<user>One?</s>\n<assistant>1</s>\n<user>", ("</s>",)),
        (chat("{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"), (), "[INST]", ("[/INST]",)),
        (chat("{% for m in messages %}{{ m.content }}{% endfor %}"), (), "", ()),
    ],
    ids=["plain", "plain with turns", "chat", "chat with turns", "another end than the answer's", "no end"],
)
def test_unprompted_the_writer_reads_all_that_stands_before_a_users_text(template, context, expected, stop):
    texts, _, stopped_by = asked_of(Unprompted, [Prompt("one", context)], template=template, num_drafts=2)
    assert ([expected] * 2, stop) == (texts, stopped_by)


@pytest.mark.parametrize("chat_template", [None, scripted.CHAT_WITH_REQUEST])
def test_a_users_turn_ends_where_the_template_ends_it(chat_template, tmp_path, trainer):
    before = ":" if chat_template is None else ">"
    follows = {before: list("ab"), **dict.fromkeys("ab", scripted.END if chat_template else "\n"), "\n": "A"}
    follows |= dict(zip("Answer", "nswer:", strict=True))
    folder = scripted.save_model(tmp_path / "m", follows, chat_template=chat_template)
    writer = LocalWriter(LanguageModel(tiny.weights(folder)), trainer)
    made = Unprompted(writer, seed=0, num_drafts=20, max_new_tokens=30)([Prompt("q")], [Prompt("q")], 0)
    assert {"a", "b"} == {prompt.text for prompt in made.prompts}
    assert (18, 0) == (made.duplicates, made.malformed)


# Evolve


@pytest.mark.parametrize("template", [Plain(TOKENIZER), chat()], ids=["plain", "chat"])
def test_each_operation_is_asked_of_each_prompt(template):
    operations = ("turn it", "shorten it")
    texts, _, _ = asked_of(Evolve, template=template, operations=operations, num_drafts=200)
    assert {(o, p.text) for o in operations for p in POOL} == {
        (o, p.text) for text in texts for o in operations for p in POOL if f"to {o}." in text and f": {p.text}" in text
    }
    assert len(POOL) * 2 == len(set(texts))


def test_a_label_before_the_rewritten_prompt_is_not_of_it():
    made = expand("Rewritten prompt: a", "Prompt: b", "c\n\nPrompt: d", "Rewritten prompt:", kind=Evolve)
    assert (["a", "b", "c"], 1) == ([prompt.text for prompt in made.prompts], made.malformed)


def test_a_prompt_that_comes_back_as_it_was_is_a_repeat():
    assert (1, ()) == ((made := expand("One", kind=Evolve, pool=POOL[:1])).duplicates, made.prompts)


def test_without_an_operation_there_is_nothing_to_ask(tmp_path):
    with pytest.raises(ConfigError, match="`expansion.operations` is empty"):
        built(tmp_path, "expansion=evolve", "expansion.operations=[]")


# Writers, and strategies of one's own


CHECKPOINT = "model@expansion.writer.checkpoint"


def test_any_checkpoint_can_write_and_one_that_is_there_already_is_the_same(llama, tmp_path):
    target = built(tmp_path, f"{CHECKPOINT}=atlas_neox")
    assert target.stages.expand.writer.model == target.target
    assert {"base", "teacher", "target"} == set(target.models)
    other = built(tmp_path, f"{CHECKPOINT}=qwen2_5_7b", f"expansion.writer.checkpoint.path={llama}", "expansion=self")
    writer = other.models["writer"]
    assert ("qwen2_5_7b", writer) == (writer.name, other.stages.expand.writer.model)
    assert weights_of(writer.weights.checkpoint) is writer.weights


def test_the_choice_of_a_checkpoint_outweighs_an_experiments_writer(tmp_path):
    experiment = "experiment=translora/bbh_gemma_2b_to_gemma_7b"
    assert "target" == composed(experiment)["expansion"]["writer"]
    assert "llama3" == composed(experiment, f"{CHECKPOINT}=llama3")["expansion"]["writer"]["checkpoint"]["name"]


@pytest.mark.parametrize("writer", ["nobody", "{}", "{name: x}", "[base]"])
def test_a_writer_that_is_none_is_one_line(tmp_path, writer):
    with pytest.raises(ConfigError, match="`expansion.writer` is .*; use one of base, teacher, target, or choose"):
        built(tmp_path, f"expansion.writer={writer}")


def test_writers_are_told_apart_by_their_weights_and_settings(tmp_path):
    of = {name: key_content(built(tmp_path, f"expansion.writer={name}").stages.expand) for name in ("base", "teacher")}
    assert of["base"] != of["teacher"]
    assert of["base"] == key_content(built(tmp_path, f"{CHECKPOINT}=atlas_llama").stages.expand)
    assert of["base"] != key_content(built(tmp_path, "expansion.max_rouge_l=0.7").stages.expand)
    scribes = [replace(built(tmp_path).stages.expand, writer=Scribe((draft,), template=None)) for draft in "ab"]
    assert key_content(scribes[0]) != key_content(scribes[1])


MINE = """
from dataclasses import dataclass, field
from tskd.modules.engine import Generation
from tskd.records import Prompt
from tskd.stages.expand import Strategy


@dataclass(frozen=True)
class Backwards(Strategy):
    ending: str = "."

    def request(self, shown, rng):
        return self.writer.template.prefix(Prompt(shown[0].text[::-1]))

    def read(self, draft):
        return draft + self.ending if draft else None


@dataclass(frozen=True)
class Echo:
    address: str
    name = "echo"
    template = None

    def write(self, texts, keys, sampling, *, stop, label):
        return [Generation(f"{text} {key}", True, 1) for text, key in zip(texts, keys, strict=True)]

    def check_length(self, text, new_tokens, what):
        pass


@dataclass(frozen=True)
class Verbatim(Backwards):
    def request(self, shown, rng):
        return shown[0].text
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_expansion.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("mine")
def test_a_strategy_of_ones_own_is_a_class_named_by_its_target(tmp_path):
    own = ("allow=my_expansion", "expansion=self", "expansion._target_=my_expansion.Backwards", "+expansion.ending='?'")
    made = built(tmp_path, *own, "expansion.num_drafts=5", "expansion.max_rouge_l=0.9")
    made.check_models()
    expansion = made.stages.expand(made.seeds, made.seeds, 0)
    assert 5 == len(expansion.prompts) + expansion.duplicates + expansion.malformed + expansion.near_duplicates
    assert all(prompt.text.endswith("?") for prompt in expansion.prompts)
    reads = Plan(made)
    reads.before()
    reads.expand(made.seeds, made.seeds, 0)
    assert Count(5) == reads.work[-1].items


@pytest.mark.usefixtures("mine")
def test_a_writer_of_ones_own_is_a_class_named_by_its_target(tmp_path):
    own = ("allow=my_expansion", "expansion=self", "expansion._target_=my_expansion.Verbatim", "expansion.num_drafts=5")
    made = built(tmp_path, *own, "expansion.writer={_target_: my_expansion.Echo, address: here}")
    made.check_models()
    assert {"base", "teacher", "target"} == set(made.models)
    prompts = made.stages.expand(made.seeds, made.seeds, 0).prompts
    assert all(prompt.text.endswith(f"0/expand/0/{draft}.") for draft, prompt in enumerate(prompts))
    planned = Plan(made)
    planned.before()
    planned.expand(made.seeds, made.seeds, 0)
    assert ("writer", Count(5), None) == (planned.work[-1].models, planned.work[-1].items, planned.work[-1].reads)
