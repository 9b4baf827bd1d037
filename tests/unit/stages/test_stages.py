"""The stages that need a model, on models whose words are known beforehand."""

import math
from collections import Counter

import pytest

from tests import scripted, tiny
from tests.scripted import END
from tskd.errors import ConfigError, ModelError
from tskd.models.generation import Generation
from tskd.models.templates import LIST_MARK
from tskd.models.weights import LanguageModel
from tskd.modules.lora import LoraSettings
from tskd.records import Message, Prompt, Response, Scored
from tskd.stages.answer import Answer
from tskd.stages.expand import FewShot
from tskd.stages.score import Score
from tskd.stages.train import Replay, TrainLora
from tskd.stages.writers import LocalWriter

SYSTEM = (Message("system", "s"),)
POOL = [Prompt("one"), Prompt("two", SYSTEM), Prompt("three"), Prompt("four", SYSTEM)]


def speaker(folder, follows):
    return LanguageModel(tiny.weights(scripted.save_model(folder, follows)))


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """Writes one of four letters after a colon, and ends."""
    return speaker(tmp_path_factory.mktemp("letters") / "m", {":": " ", " ": list("abcd")})


def expand(writer, trainer, *, seen=(), index=0, pool=POOL, **settings):
    settings = {"seed": 0, "num_drafts": 40, "num_exemplars": 2, "max_new_tokens": 8, "temperature": 1.0, **settings}
    return FewShot(LocalWriter(writer, trainer), **settings)(pool, [*pool, *seen], index)


def test_expansion_leaves_out_what_was_seen_whatever_its_case_and_space(letters, trainer):
    made = expand(letters, trainer, pool=POOL[::2], seen=[Prompt("A"), Prompt(" b\n")])
    assert {"c", "d"} == {prompt.text for prompt in made.prompts}
    assert (made.drafts, made.duplicates, made.malformed) == (40, 38, 0)
    assert 40 * len(" a") + 40 == made.tokens  # the end token counts


def test_each_new_prompt_comes_once(letters, trainer):
    made = expand(letters, trainer, pool=POOL[::2])
    assert dict.fromkeys("abcd", 1) == Counter(prompt.text for prompt in made.prompts)


def test_the_same_words_in_another_context_are_another_prompt(letters, trainer):
    made = expand(letters, trainer, pool=POOL[1::2], seen=[Prompt(text) for text in "abcd"])
    assert set("abcd") == {prompt.text for prompt in made.prompts}


def test_a_new_prompt_names_its_parents_and_keeps_the_context_of_the_first(letters, trainer):
    by_id = {prompt.id: prompt for prompt in POOL}
    made = expand(letters, trainer, index=3).prompts
    for prompt in made:
        assert len(set(prompt.parents)) == 2
        assert by_id[prompt.parents[0]].context == prompt.context
        assert (prompt.iteration, prompt.is_seed) == (3, False)
    assert {(), SYSTEM} == {prompt.context for prompt in made}


def test_a_pool_smaller_than_the_number_of_exemplars_is_shown_whole(letters, trainer):
    made = expand(letters, trainer, pool=POOL[:2], num_exemplars=5).prompts
    assert {frozenset(p.id for p in POOL[:2])} == {frozenset(prompt.parents) for prompt in made}


def test_drafts_of_one_request_follow_the_same_exemplars_by_keys_of_their_own(letters, trainer, monkeypatch):
    asked = []

    def generate(model, requests, *_, **__):
        asked.extend(requests)
        return [Generation("", True, 1)] * len(requests)

    monkeypatch.setattr("tskd.stages.writers.generate", generate)
    expand(letters, trainer, num_drafts=31, drafts_per_request=3)
    assert all(request.ids == asked[draft - draft % 3].ids for draft, request in enumerate(asked))
    assert len({request.ids for request in asked}) > 3
    assert len({request.key for request in asked}) == 31


def test_expansion_follows_from_seed_and_iteration(letters, trainer):
    drafts = {key: expand(letters, trainer, seed=key[0], index=key[1]) for key in [(0, 0), (0, 1), (1, 0)]}
    assert drafts[0, 0] == expand(letters, trainer)
    assert len({tuple((p.text, p.parents) for p in made.prompts) for made in drafts.values()}) == 3


def test_a_draft_that_the_limit_cut_is_counted_and_left_out(tmp_path, trainer):
    endless = speaker(tmp_path / "m", {":": " ", " ": "a", "a": "a"})
    made = expand(endless, trainer, num_drafts=5)
    assert (made.prompts, made.drafts, made.malformed, made.tokens) == ((), 5, 5, 40)


def test_a_new_prompt_ends_where_the_lists_next_would_begin(tmp_path, trainer):
    chain = dict(zip("Prompt", "rompt:", strict=True))
    lists = speaker(
        tmp_path / "m", {":": " ", " ": list("abcd"), **dict.fromkeys("abcd", "\n"), "\n": ["\n", "P"], **chain}
    )
    made = expand(lists, trainer, max_new_tokens=200)
    assert {"a", "b", "c", "d"} <= {prompt.text for prompt in made.prompts}
    assert not any(LIST_MARK in prompt.text for prompt in made.prompts)


def test_answers_come_in_the_order_of_the_prompts_each_as_if_asked_alone(llama, trainer):
    ask = Answer(LanguageModel(tiny.weights(llama)), trainer, seed=0, max_new_tokens=6, temperature=1.0)
    prompts = [Prompt("x" * n) for n in (3, 40, 1, 17)]
    answers = ask(prompts)
    assert prompts == [answer.prompt for answer in answers]
    assert answers == [ask([prompt])[0] for prompt in prompts]


def test_the_same_prompt_is_answered_alike_whoever_wrote_it_and_when(llama, trainer):
    ask = Answer(LanguageModel(tiny.weights(llama)), trainer, seed=0, max_new_tokens=6, temperature=1.0)
    first, second = ask([Prompt("x"), Prompt("x", (), 4, ("parent",))])
    assert first.text == second.text


@pytest.mark.parametrize(("limit", "finished", "tokens"), [(9, True, 4), (4, True, 4), (3, False, 3)])
def test_an_answer_is_finished_when_its_end_token_came_within_the_limit(tmp_path, trainer, limit, finished, tokens):
    teacher = speaker(tmp_path / "m", {":": " ", " ": "o", "o": "k", "k": END})
    answer = Answer(teacher, trainer, seed=0, max_new_tokens=limit)([Prompt("q")])[0]
    assert Response(Prompt("q"), "ok", finished, tokens) == answer


def test_scoring_measures_the_surprise_of_either_model(tmp_path, trainer):
    # Among four letters, all as likely, one costs log 4; the sure steps cost nothing: blank, letter, end.
    base = speaker(tmp_path / "base", {":": " ", " ": list("abcd")})
    teacher = speaker(tmp_path / "teacher", {":": " ", " ": "c"})
    scored = Score(base, teacher, trainer)([Response(Prompt("q"), "c")])[0]
    assert math.log(4) / 3 == pytest.approx(scored.base_nll, abs=1e-6)
    assert pytest.approx(scored.teacher_nll, abs=1e-6) == 0
    assert (3, pytest.approx(4 ** (1 / 3) - 1)) == (scored.tokens, scored.gap)


def example(text, answer="a"):
    return Scored(Response(Prompt(text), answer), 1.0, 0.5, 2)


def train(folder, save_to, trainer, **settings):
    lora = LoraSettings(rank=2, epochs=2, batch_size=2, learning_rate=1e-2, replay_weight=5.0)
    settings = {"seed": 0, "lora": lora, "replay": Replay("none"), **settings}
    return TrainLora(LanguageModel(tiny.weights(folder)), trainer, save_to, **settings)


CORPUS, DROPPED = [example("one"), example("two", "bb")], [example("three"), example("four")]


def test_the_adapter_is_saved_in_the_folder_of_its_iteration(neox, tmp_path, trainer):
    adapter = train(neox, tmp_path, trainer)(CORPUS, [], 4)
    assert (tmp_path / "iteration_4" / "adapter" / "adapter_model.safetensors").is_file()
    assert (adapter.path, adapter.target, adapter.num_examples) == ("iteration_4/adapter", "tiny-neox", 2)
    assert 2 * (len(" a") + len(" bb") + 2) == adapter.trained_tokens  # two epochs, end tokens too
    assert adapter.generated_tokens == 0


def test_the_target_learns_from_the_teachers_text_in_its_own_tokens(llama, neox, tmp_path, trainer):
    said = Answer(LanguageModel(tiny.weights(llama)), trainer, seed=0, max_new_tokens=5)([Prompt("q")])[0]
    adapter = train(neox, tmp_path, trainer)([Scored(said, 1.0, 0.5, 5)], [], 0)
    assert math.isfinite(adapter.loss)


def saved(folder):
    return (folder / "iteration_0" / "adapter" / "adapter_model.safetensors").read_bytes()


def test_without_replay_what_was_dropped_plays_no_part(neox, tmp_path, trainer):
    for name, dropped in (("a", []), ("b", DROPPED)):
        train(neox, tmp_path / name, trainer)(CORPUS, dropped, 0)
    assert saved(tmp_path / "a") == saved(tmp_path / "b")


@pytest.mark.parametrize("source", ["free", "dropped"])
def test_replay_changes_what_is_learnt_and_says_what_it_cost(neox, tmp_path, trainer, source):
    adapters = {}
    for chosen in ("none", source):
        replay = Replay(chosen, num_texts=4, max_new_tokens=6)
        adapters[chosen] = train(neox, tmp_path / chosen, trainer, replay=replay)(CORPUS, DROPPED, 0)
    assert saved(tmp_path / "none") != saved(tmp_path / source)
    assert 0 < adapters[source].generated_tokens <= 4 * 6
    assert adapters["none"].trained_tokens == adapters[source].trained_tokens


def test_replay_of_dropped_prompts_is_none_where_nothing_was_dropped(neox, tmp_path, trainer):
    for name, replay in (("a", Replay("none")), ("b", Replay("dropped"))):
        train(neox, tmp_path / name, trainer, replay=replay)(CORPUS, [], 0)
    assert saved(tmp_path / "a") == saved(tmp_path / "b")


def test_free_texts_cost_once_even_where_a_run_is_resumed(neox, tmp_path, trainer):
    replay = Replay("free", num_texts=4, max_new_tokens=6)
    straight = train(neox, tmp_path, trainer, replay=replay)
    first, second = straight(CORPUS, [], 0), straight(CORPUS, [], 1)
    assert (first.generated_tokens > 0, second.generated_tokens) == (True, 0)
    assert second == train(neox, tmp_path, trainer, replay=replay)(CORPUS, [], 1)


@pytest.mark.parametrize("source", ["free", "dropped"])
def test_what_is_replayed_is_the_untouched_targets_whatever_was_trained_before(neox, tmp_path, trainer, source):
    replay = Replay(source, num_texts=4, max_new_tokens=6)
    stage = train(neox, tmp_path / "straight", trainer, replay=replay)
    stage(CORPUS, DROPPED, 1)
    stage(CORPUS, DROPPED, 0)
    train(neox, tmp_path / "alone", trainer, replay=replay)(CORPUS, DROPPED, 0)
    assert saved(tmp_path / "straight") == saved(tmp_path / "alone")


def test_a_target_that_brings_an_adapter_is_refused(neox, tmp_path, trainer):
    with pytest.raises(ConfigError, match="must come without an adapter"):
        TrainLora(LanguageModel(tiny.weights(neox), "some"), trainer, tmp_path, seed=0, lora=LoraSettings())


def test_an_example_beyond_the_context_is_refused_before_training(neox, tmp_path, trainer):
    with pytest.raises(ModelError, match=r"longest training example needs .* tiny-neox has room for 512"):
        train(neox, tmp_path, trainer)([example("x" * 600)], [], 0)
    assert list(tmp_path.iterdir()) == []
