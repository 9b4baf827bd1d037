"""How prompts, responses and few-shot requests become text."""

import pytest

from tests import scripted, tiny
from tskd.errors import ModelError
from tskd.models.encoding import encode_prefix, encode_response
from tskd.models.templates import LIST_MARK, Chat, Plain, first_prompt, template_for
from tskd.models.weights import LanguageModel
from tskd.records import Message, Prompt

TURNS = (Message("system", "Be brief."), Message("user", "One?"), Message("assistant", "1"))


def tokenizer(chat_template=None):
    made = tiny.byte_tokenizer("<s>", scripted.END)
    made.chat_template = chat_template
    return made


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ((), "Question: Two?\nAnswer:"),
        (TURNS[:1], "Be brief.\n\nQuestion: Two?\nAnswer:"),
        (TURNS, "Be brief.\n\nQuestion: One?\nAnswer: 1\n\nQuestion: Two?\nAnswer:"),
    ],
)
def test_plain_writes_the_turns_before_the_question(context, expected):
    assert expected == Plain(tokenizer()).prefix(Prompt("Two?", context))


def test_plain_puts_the_space_before_an_answer_on_the_answers_side():
    template = Plain(tokenizer())
    assert not template.prefix(Prompt("q")).endswith(" ")
    assert template.continuation("7") == " 7"


def test_plain_braces_in_a_turn_are_text():
    assert (
        Plain(tokenizer()).prefix(Prompt("{y}", (Message("system", "{x} {0}"),))) == "{x} {0}\n\nQuestion: {y}\nAnswer:"
    )


def test_plain_asks_for_one_more_item_of_a_list():
    asked = Plain(tokenizer()).few_shot([Prompt("one"), Prompt("two")])
    assert asked.endswith(f"{LIST_MARK} one{LIST_MARK} two{LIST_MARK}")


def test_chat_renders_the_turns_and_opens_the_assistants():
    rendered = Chat(tokenizer(scripted.CHAT_WITH_REQUEST)).prefix(Prompt("Two?", TURNS))
    assert rendered == "<system>Be brief.</s>\n<user>One?</s>\n<assistant>1</s>\n<user>Two?</s>\n<assistant>"


def test_chat_asks_for_one_more_prompt_in_a_single_user_turn():
    asked = Chat(tokenizer(scripted.CHAT_WITH_REQUEST)).few_shot([Prompt("one", TURNS), Prompt("two")])
    assert asked.count("<user>") == 1
    assert f"{LIST_MARK} one{LIST_MARK} two" in asked
    assert asked.endswith("<assistant>")


@pytest.mark.parametrize(
    ("chat_template", "ends_with"),
    [
        (scripted.CHAT, "</s>"),
        ("{% for m in messages %}{{ m.content }}#{% endfor %}", "#"),
        ("{% for m in messages %}{{ m.content | trim }}\n#\n{% endfor %}", "#"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "</s>"),
    ],
    ids=["eos", "a token of its own", "after a line break", "none: eos"],
)
def test_the_chat_template_says_which_token_ends_a_turn(chat_template, ends_with):
    made = tokenizer(chat_template)
    assert made.convert_tokens_to_ids(ends_with) == Chat(made).end_token()


@pytest.mark.parametrize(
    ("kind", "chat_template", "expected"),
    [("auto", None, Plain), ("plain", None, Plain), ("auto", scripted.CHAT, Chat), ("plain", scripted.CHAT, Plain)],
)
def test_auto_is_chat_where_there_is_a_chat_template(kind, chat_template, expected):
    assert isinstance(template_for(tokenizer(chat_template), kind), expected)


@pytest.mark.parametrize(
    ("kind", "said"), [("chat", "has no chat template.*set `template: plain`"), ("caht", "no template 'caht'")]
)
def test_a_template_that_cannot_be_had_is_refused(kind, said):
    with pytest.raises(ModelError, match=said):
        template_for(tokenizer(), kind)


@pytest.mark.parametrize(
    ("draft", "expected"),
    [
        (" What? ", "What?"),
        (" What?\n\nPrompt: And?", "What?"),
        ("Prompt: What?", "What?"),
        (" a\nb", "a\nb"),
        ("", None),
        ("  \n", None),
        ("\n\nPrompt: late", None),
        ("Prompt:", None),
    ],
)
def test_a_draft_holds_one_prompt_or_none(draft, expected):
    assert expected == first_prompt(draft)


def test_a_start_token_comes_once_with_either_template(tmp_path):
    with_start = "{{ bos_token }}" + scripted.CHAT_WITH_REQUEST
    for name, chat_template in (("plain", None), ("chat", with_start)):
        model = LanguageModel(tiny.weights(scripted.save_model(tmp_path / name, {}, chat_template=chat_template)))
        ids = encode_prefix(model, model.template.prefix(Prompt("q")))
        assert (1, model.start_token) == (ids.count(model.start_token), ids[0])


def test_an_empty_prefix_is_the_start_token(llama):
    model = LanguageModel(tiny.weights(llama))
    assert (model.start_token,) == encode_prefix(model, "")


def test_an_empty_response_still_has_a_token_to_score(tmp_path):
    model = LanguageModel(tiny.weights(scripted.save_model(tmp_path / "chat", {}, chat_template=scripted.CHAT)))
    sequence = encode_response(model, Prompt("q"), "", finished=False)
    assert (1, model.template.end_token()) == (sequence.num_targets, sequence.ids[-1])
