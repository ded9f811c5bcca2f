"""Prompt and response apart, one BOS, one EOS, cuts from the right side."""

import json

import pandas as pd
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mallowspo.errors import InputError
from mallowspo.pairs.tokens import check_tokenizer, tokenize_pairs, tokenize_prompt, tokenize_response
from mallowspo.settings import TokenSettings

PLAIN = TokenSettings(template="plain", max_prompt=8, max_response=6)
CHAT = TokenSettings(template="chat", max_prompt=200, max_response=6)
TURNS = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a{% endif %}"
ASK = [{"role": "user", "content": "hi"}]


def byte_tokenizer(adds_bos=False, adds_eos=False, chat_template=TURNS, bos="<s>", eos="</s>", pad=None):
    """One token a byte; its special tokens as told. No pad token unless named."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    special = {name: token for name, token in (("bos_token", bos), ("eos_token", eos), ("pad_token", pad)) if token}
    core.add_special_tokens(list(dict.fromkeys(special.values())))
    if adds_bos or adds_eos:
        pattern = (f"{bos} " if adds_bos else "") + "$A" + (f" {eos}" if adds_eos else "")
        written = [(token, core.token_to_id(token)) for token in (bos, eos) if token]
        core.post_processor = processors.TemplateProcessing(single=pattern, special_tokens=written)
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=chat_template, **special)


def text(tokenizer, ids):
    return tokenizer.decode(ids)


def test_plain_prompt_gets_the_bos_that_the_tokenizer_adds():
    tokenizer = byte_tokenizer(adds_bos=True)
    ids, cut = tokenize_prompt(tokenizer, "abc", ASK, PLAIN)
    assert (text(tokenizer, ids), cut) == ("<s>abc", False)
    assert text(tokenizer, tokenize_prompt(byte_tokenizer(), "abc", ASK, PLAIN)[0]) == "abc"


def test_plain_prompt_never_ends_with_an_eos_that_the_tokenizer_adds():
    tokenizer = byte_tokenizer(adds_bos=True, adds_eos=True)
    assert text(tokenizer, tokenize_prompt(tokenizer, "abc", ASK, PLAIN)[0]) == "<s>abc"


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("written", ["", "<s>", "<s><s>"])
def test_exactly_one_bos_whoever_writes_it(adds_bos, written):
    tokenizer = byte_tokenizer(adds_bos=adds_bos, chat_template=written + TURNS)
    ids, _ = tokenize_prompt(tokenizer, "unused", ASK, CHAT)
    expected = 1 if adds_bos or written else 0
    assert ids.count(tokenizer.bos_token_id) == expected
    assert text(tokenizer, ids[expected:]) == "uhi\na"


def test_bos_written_in_the_text_of_a_plain_prompt_is_not_doubled():
    tokenizer = byte_tokenizer(adds_bos=True)
    assert text(tokenizer, tokenize_prompt(tokenizer, "<s>abc", ASK, PLAIN)[0]) == "<s>abc"


def test_prompt_is_cut_from_the_left_and_keeps_its_bos():
    tokenizer = byte_tokenizer(adds_bos=True)
    ids, cut = tokenize_prompt(tokenizer, "0123456789", ASK, PLAIN)
    assert (text(tokenizer, ids), len(ids), cut) == ("<s>3456789", 8, True)
    without = byte_tokenizer()
    assert text(without, tokenize_prompt(without, "0123456789", ASK, PLAIN)[0]) == "23456789"


def test_cut_that_lands_on_a_bos_inside_the_prompt_does_not_double_it():
    tokenizer = byte_tokenizer(adds_bos=True)
    assert text(tokenizer, tokenize_prompt(tokenizer, "0123<s>456789", ASK, PLAIN)[0]) == "<s>456789"


def test_prompt_cut_to_one_token_is_one_token():
    one = TokenSettings(template="plain", max_prompt=1, max_response=1)
    tokenizer = byte_tokenizer(adds_bos=True)
    assert tokenize_prompt(tokenizer, "abc", ASK, one) == ([tokenizer.bos_token_id], True)
    assert text(tokenizer, tokenize_prompt(byte_tokenizer(), "abc", ASK, one)[0]) == "c"


def test_prompt_that_just_fits_is_not_cut():
    assert tokenize_prompt(byte_tokenizer(), "12345678", ASK, PLAIN)[1] is False


def test_prompt_without_any_token_is_an_error():
    with pytest.raises(InputError, match="has no tokens"):
        tokenize_prompt(byte_tokenizer(), "", ASK, PLAIN)


def test_eos_ends_a_complete_response_only():
    tokenizer = byte_tokenizer(adds_bos=True, adds_eos=True)
    complete, cut = tokenize_response(tokenizer, "yes", True, PLAIN)
    assert (text(tokenizer, complete), cut) == ("yes</s>", False)
    unfinished, cut = tokenize_response(tokenizer, "yes", False, PLAIN)
    assert (text(tokenizer, unfinished), cut) == ("yes", False)


@pytest.mark.parametrize(
    ("response", "complete", "expected", "cut"),
    [
        ("12345", True, "12345</s>", False),
        ("123456", True, "123456", True),  # the EOS does not fit: the end is cut off
        ("123456", False, "123456", False),
        ("1234567", True, "123456", True),
    ],
)
def test_response_is_cut_from_the_right(response, complete, expected, cut):
    tokenizer = byte_tokenizer()
    ids, was_cut = tokenize_response(tokenizer, response, complete, PLAIN)
    assert (text(tokenizer, ids), was_cut) == (expected, cut)


def test_response_that_writes_its_eos_gets_no_second_one():
    tokenizer = byte_tokenizer()
    assert text(tokenizer, tokenize_response(tokenizer, "yes</s>", True, PLAIN)[0]) == "yes</s>"


def test_empty_response_is_an_error():
    with pytest.raises(InputError, match="has no tokens"):
        tokenize_response(byte_tokenizer(), "", True, PLAIN)


def test_pad_changes_nothing():
    ids = [tokenize_response(byte_tokenizer(pad=pad), "yes", True, PLAIN)[0] for pad in (None, "</s>", "<pad>")]
    assert ids[0] == ids[1] == ids[2]


def test_missing_eos_is_named_with_its_fix():
    tokenizer = byte_tokenizer(eos=None)
    with pytest.raises(InputError, match=r"no EOS token.*set eos_token in tokenizer_config.json"):
        tokenize_response(tokenizer, "yes", True, PLAIN)
    with pytest.raises(InputError, match="no EOS token"):
        check_tokenizer(tokenizer, PLAIN)
    assert text(tokenizer, tokenize_response(tokenizer, "yes", False, PLAIN)[0]) == "yes"


def test_missing_chat_template_is_named_with_its_fix():
    tokenizer = byte_tokenizer(chat_template=None)
    with pytest.raises(InputError, match=r"no chat template; set tokens.template: plain"):
        tokenize_prompt(tokenizer, "hi", ASK, CHAT)
    check_tokenizer(tokenizer, PLAIN)


def test_messages_that_the_template_refuses_are_an_input_error():
    tokenizer = byte_tokenizer(chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match="roles must alternate"):
        tokenize_prompt(tokenizer, "hi", ASK, CHAT)


def pair_table(**changes):
    meta = json.dumps({"chosen_complete": True, "rejected_complete": False})
    row = {"pair_id": "p1", "prompt": "ask", "messages": json.dumps(ASK), "chosen": "yes", "rejected": "no no no"}
    return pd.DataFrame([{**row, "meta": meta, **changes}])


def test_pairs_carry_ids_flags_and_their_own_completeness():
    tokenizer = byte_tokenizer(adds_bos=True)
    [pair] = tokenize_pairs(tokenizer, pair_table(), PLAIN)
    shown = [text(tokenizer, ids) for ids in (pair.prompt, pair.chosen, pair.rejected)]
    assert (pair.pair_id, shown) == ("p1", ["<s>ask", "yes</s>", "no no "])
    assert (pair.prompt_truncated, pair.chosen_truncated, pair.rejected_truncated) == (False, False, True)


@pytest.mark.parametrize(
    ("window", "prompt", "chosen", "rejected"),
    [
        (None, "<s>sk me that", "yes</s>", "no no n"),
        (19, "<s>sk me that", "yes</s>", "no no n"),
        (12, "<s>that", "yes</s>", "no no n"),
        (8, "<s>", "yes</s>", "no no n"),  # a prompt keeps one token
        (3, "<s>", "ye", "no"),  # so a response may have the window but for one
    ],
)
def test_a_pair_longer_than_the_window_loses_the_left_of_its_prompt(window, prompt, chosen, rejected):
    tokenizer = byte_tokenizer(adds_bos=True)
    settings = TokenSettings(template="plain", max_prompt=11, max_response=7)
    [pair] = tokenize_pairs(tokenizer, pair_table(prompt="ask me that", rejected="no no no"), settings, window)
    shown = [text(tokenizer, ids) for ids in (pair.prompt, pair.chosen, pair.rejected)]
    assert shown == [prompt, chosen, rejected]
    assert (pair.prompt_truncated, pair.chosen_truncated) == (True, chosen != "yes</s>")


def test_a_pair_that_just_fits_the_window_is_whole():
    settings = TokenSettings(template="plain", max_prompt=50, max_response=50)
    tables = pair_table(prompt="ask", rejected="no no no")
    whole, cut = (next(tokenize_pairs(byte_tokenizer(), tables, settings, window)) for window in (11, 10))
    assert (len(whole.prompt), whole.prompt_truncated) == (3, False)
    assert (len(cut.prompt), cut.prompt_truncated) == (2, True)


#: Writes a user's words otherwise once they are answered, as templates do that leave out earlier reasoning.
FORGETFUL = (
    "{% for m in messages %}{{ m.role[0] }}{{ m.content[:2] if messages[-1].role == 'assistant' else m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}a{% endif %}"
)
#: Knows no generation prompt; a response has a header all the same.
HEADLESS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
#: Needs no header: what ends the user's turn begins the answer.
INST = "{% for m in messages %}{{ '[' + m.content + ']' if m.role == 'user' else ' ' + m.content + '\n' }}{% endfor %}"


def template_facts(template, **changes):
    [pair] = tokenize_pairs(byte_tokenizer(chat_template=template), pair_table(**changes), CHAT)
    return pair.header, pair.prefix_changed


def test_a_template_that_changes_the_prompt_once_it_is_answered_is_told():
    long = json.dumps([{"role": "user", "content": "a long question"}])
    assert template_facts(FORGETFUL, messages=long) == (1, True)
    assert template_facts(FORGETFUL) == (1, False)  # its question has two letters
    assert template_facts(TURNS, messages=long) == (1, False)


def test_the_rows_of_such_a_template_are_what_the_policy_generates_from():
    tokenizer = byte_tokenizer(chat_template=FORGETFUL)
    long = json.dumps([{"role": "user", "content": "a long question"}])
    [pair] = tokenize_pairs(tokenizer, pair_table(messages=long), CHAT)
    assert text(tokenizer, [*pair.prompt, *pair.chosen]) == "ua long question\nayes</s>"


def test_a_template_without_a_generation_prompt_is_refused_if_responses_have_a_header():
    with pytest.raises(InputError, match=r"^pair p1: the chat template writes 'assistant:' before a response, but not"):
        template_facts(HEADLESS)
    assert template_facts(INST) == (0, False)


def test_a_template_that_refuses_a_response_here_is_told():
    template = "{% if messages[-1].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}" + TURNS
    assert template_facts(template) == (1, True)


def test_a_template_that_drops_the_response_is_no_reason_to_refuse():
    assert template_facts("{% for m in messages %}{{ m.content if m.role == 'user' }}{% endfor %}") == (0, False)


def test_a_pair_that_cannot_be_tokenized_is_named():
    with pytest.raises(InputError, match=r"^pair p1: the response '' has no tokens"):
        list(tokenize_pairs(byte_tokenizer(), pair_table(chosen=""), PLAIN))
