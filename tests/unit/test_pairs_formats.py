"""Every format of a row, and every way in which a row can be unusable."""

import pytest

from mallowspo.pairs.dialogues import shared_beginning, split_last_turn, to_dialogue, to_messages
from mallowspo.pairs.formats import EMPTY, EQUAL, FORMAT, NO_PREFERENCE, UnusableRow, recognise


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


THREE_TURNS = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: say Assistant: twice\n\nAssistant:"


def test_hh_dialogue_is_split_at_its_last_assistant_turn():
    row = {"chosen": THREE_TURNS + " Assistant: twice", "rejected": THREE_TURNS + " no"}
    pair = recognise(row, "plain")
    assert (pair.prompt, pair.chosen, pair.rejected) == (THREE_TURNS, " Assistant: twice", " no")
    assert pair.messages == [user("hi"), assistant("hello"), user("say Assistant: twice")]
    assert split_last_turn(THREE_TURNS + " no") == (THREE_TURNS, " no")


def test_hh_responses_lose_their_white_space_under_chat_only():
    row = {"chosen": "\n\nHuman: hi\n\nAssistant: hello \n", "rejected": "\n\nHuman: hi\n\nAssistant: no"}
    chat, plain = recognise(row, "chat"), recognise(row, "plain")
    assert (chat.prompt, chat.chosen, chat.rejected) == ("hi", "hello", "no")
    assert (plain.prompt, plain.chosen, plain.rejected) == ("\n\nHuman: hi\n\nAssistant:", " hello \n", " no")
    assert chat.messages == plain.messages == [user("hi")]
    assert chat.prompt_id == plain.prompt_id


def test_standard_columns_are_taken_as_they_are():
    pair = recognise({"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5", "rater": "ann"}, "chat")
    assert (pair.prompt, pair.messages, pair.chosen, pair.rejected) == ("2 + 2 =", [user("2 + 2 =")], " 4", " 5")
    assert pair.meta == {"chosen_complete": True, "rejected_complete": True, "rater": "ann"}


def test_prompt_may_be_called_history_and_then_stays_out_of_meta():
    pair = recognise({"history": "why?", "chosen": "so", "rejected": "no", "score": 3}, "chat")
    assert pair.prompt == "why?"
    assert pair.meta == {"chosen_complete": True, "rejected_complete": True, "score": 3}


def test_prompt_that_is_a_dialogue_becomes_messages():
    pair = recognise({"prompt": THREE_TURNS, "chosen": " a", "rejected": " b"}, "chat")
    assert pair.messages == to_messages(THREE_TURNS)
    assert len(pair.messages) == 3


@pytest.mark.parametrize("repeated", [[], [user("why?")]])
def test_conversational_columns_with_and_without_the_prompt_repeated_in_the_sides(repeated):
    row = {
        "prompt": [user("why?")],
        "chosen": [*repeated, assistant("so")],
        "rejected": [*repeated, assistant("no")],
    }
    pair = recognise(row, "chat")
    assert (pair.prompt, pair.messages, pair.chosen, pair.rejected) == ("why?", [user("why?")], "so", "no")


def test_conversational_sides_with_a_prompt_that_is_text():
    row = {"prompt": "why?", "chosen": [user("why?"), assistant("so")], "rejected": [user("why?"), assistant("no")]}
    assert recognise(row, "chat").messages == [user("why?")]


def test_conversational_under_plain_is_written_as_a_dialogue():
    pair = recognise({"prompt": [user("why?")], "chosen": [assistant("so")], "rejected": [assistant("no")]}, "plain")
    assert (pair.prompt, pair.chosen, pair.rejected) == ("\n\nHuman: why?\n\nAssistant:", " so", " no")


def test_prompt_that_conversations_share():
    shared = [{"role": "system", "content": "be kind"}, user("why?"), assistant("what?"), user("that")]
    row = {"chosen": [*shared, assistant("so")], "rejected": [*shared, assistant("no")]}
    pair = recognise(row, "chat")
    assert (pair.messages, pair.chosen, pair.rejected) == (shared, "so", "no")
    assert pair.prompt == "be kind\n\nHuman: why?\n\nAssistant: what?\n\nHuman: that\n\nAssistant:"


def test_prompt_that_texts_share_ends_before_a_space():
    pair = recognise({"chosen": "The sky is there now", "rejected": "The sky is then red"}, "chat")
    assert (pair.prompt, pair.chosen, pair.rejected) == ("The sky is", " there now", " then red")


def test_shared_beginning_leaves_something_of_both_sides():
    assert shared_beginning("a b", "a b c") == "a"
    assert shared_beginning("one", "two") == ""


def test_messages_and_dialogue_are_inverse():
    messages = [user("hi"), assistant("hello\n\nthere"), user("bye")]
    assert to_messages(to_dialogue(messages)) == messages


def test_ids_depend_on_what_they_name_alone():
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    pair = recognise(row, "chat")
    assert (pair.prompt_id, pair.pair_id) == ("ac8647777f2bc5d6", "dcfccabc33654dd9")
    assert recognise({**row, "rater": "ann"}, "plain").pair_id == pair.pair_id
    swapped = recognise({"prompt": "a", "chosen": "c", "rejected": "b"}, "chat")
    assert swapped.prompt_id == pair.prompt_id
    assert swapped.pair_id != pair.pair_id


HELLO = "\n\nHuman: hi\n\nAssistant: hello"


@pytest.mark.parametrize(
    ("row", "kind", "reason"),
    [
        ({"prompt": "a", "rejected": "b"}, EMPTY, "chosen is missing"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, EMPTY, "rejected is missing"),
        ({"prompt": None, "chosen": "b", "rejected": "c"}, EMPTY, "prompt is missing"),
        ({"prompt": " \n", "chosen": "b", "rejected": "c"}, EMPTY, "prompt is empty"),
        ({"prompt": "a", "chosen": "", "rejected": "c"}, EMPTY, "chosen is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, EMPTY, "rejected is empty"),
        ({"chosen": "one", "rejected": "two"}, EMPTY, "the sides share no beginning"),
        ({"chosen": [assistant("b")], "rejected": [assistant("c")]}, EMPTY, "share no first message"),
        ({"prompt": [], "chosen": [assistant("b")], "rejected": [assistant("c")]}, EMPTY, "prompt is an empty list"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, EQUAL, "chosen equals rejected"),
        ({"chosen": HELLO, "rejected": HELLO}, EQUAL, "chosen equals rejected"),
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, FORMAT, "chosen is a value of type int"),
        ({"prompt": "a", "chosen": "b", "rejected": [assistant("c")]}, FORMAT, "rejected is a list"),
        ({"prompt": 1.5, "chosen": "b", "rejected": "c"}, FORMAT, "prompt is a value of type float, not text"),
        ({"prompt": "a", "chosen": ["b"], "rejected": ["c"]}, FORMAT, "a message without role and content"),
        ({"chosen": HELLO, "rejected": "\n\nHuman: yo\n\nAssistant: a"}, FORMAT, "differ before their last Assistant"),
        ({"chosen": HELLO + "\n\nHuman: b", "rejected": HELLO}, FORMAT, "ends with a Human turn"),
        (
            {"prompt": [user("a"), assistant("b")], "chosen": [assistant("c")], "rejected": [assistant("d")]},
            FORMAT,
            "the prompt ends with an assistant turn",
        ),
        (
            {"prompt": "a", "chosen": [user("a"), user("b")], "rejected": [user("a"), assistant("c")]},
            FORMAT,
            "chosen has the turns (user) after the prompt",
        ),
        (
            {"prompt": "z", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
            FORMAT,
            "the prompt column differs",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_complete": "no"},
            FORMAT,
            "chosen_complete is 'no'; expected true or false",
        ),
    ],
)
def test_unusable_rows_say_why(row, kind, reason):
    with pytest.raises(UnusableRow) as caught:
        recognise(row, "chat")
    assert caught.value.kind == kind
    assert reason in str(caught.value)


def test_a_missing_number_in_meta_becomes_null():
    pair = recognise({"prompt": "a", "chosen": "b", "rejected": "c", "score": float("nan")}, "chat")
    assert pair.meta["score"] is None


SHP = {"post_id": "x1", "domain": "askculinary_test", "history": "Why salt?", "human_ref_A": "Taste.",
       "human_ref_B": "No.", "labels": 0, "score_A": 3, "score_B": 40, "score_ratio": 13.3}  # fmt: skip


@pytest.mark.parametrize(("label", "chosen"), [(1, "Taste."), (0, "No."), ("1", "Taste.")])
def test_rows_of_shp(label, chosen):
    pair = recognise({**SHP, "labels": label}, "chat")
    assert (pair.prompt, pair.chosen) == ("Why salt?", chosen)
    assert {pair.chosen, pair.rejected} == {"Taste.", "No."}
    votes = {"Taste.": 3, "No.": 40}
    assert (pair.meta["score_chosen"], pair.meta["score_rejected"]) == (votes[pair.chosen], votes[pair.rejected])
    assert pair.meta["domain"] == "askculinary_test" and pair.meta["score_ratio"] == 13.3
    assert not {"labels", "score_A", "human_ref_A", "history"} & set(pair.meta)
    plain = recognise({**SHP, "labels": label}, "plain")
    assert (plain.prompt, plain.chosen) == ("\n\nHuman: Why salt?\n\nAssistant:", f" {chosen}")
    assert plain.prompt_id == pair.prompt_id


def test_rows_of_stack_exchange_paired():
    addresses = ["https://cooking.stackexchange.com/questions/7", "https://cooking.stackexchange.com"]
    row = {"qid": 7, "question": "Why?", "response_j": "So.", "response_k": "No.", "metadata": addresses}
    pair = recognise(row, "chat")
    assert (pair.prompt, pair.chosen, pair.rejected) == ("Why?", "So.", "No.")
    assert (pair.meta["site"], pair.meta["qid"]) == ("cooking.stackexchange.com", 7)
    assert "site" not in recognise({**row, "metadata": None}, "chat").meta


@pytest.mark.parametrize(
    ("row", "kind", "says"),
    [
        ({**SHP, "labels": 2}, FORMAT, "labels is 2; SHP's is 1 where human_ref_A is preferred, else 0"),
        ({**SHP, "labels": None}, EMPTY, "labels is missing"),
        ({**SHP, "human_ref_B": None}, EMPTY, "human_ref_B is missing"),
        ({**SHP, "human_ref_B": ""}, EMPTY, "chosen is empty"),
        ({**SHP, "history": 3}, FORMAT, "history is a value of type int, not text"),
        ({"question": "Why?", "response_j": "So."}, EMPTY, "response_k is missing"),
    ],
)
def test_rows_of_the_hubs_own_formats_that_cannot_be_used(row, kind, says):
    with pytest.raises(UnusableRow) as caught:
        recognise(row, "chat")
    assert (caught.value.kind, str(caught.value)) == (kind, says)


@pytest.mark.parametrize(
    ("votes", "chosen", "votes_chosen", "votes_rejected"),
    [
        ((3, 1), "left", 3, 1),
        ((0, 2), "right", 2, 0),
        (("12", "88"), "right", 88, 12),
        ((0.75, 0.25), "left", 0.75, 0.25),
    ],
)
def test_the_side_with_more_votes_is_chosen(votes, chosen, votes_chosen, votes_rejected):
    row = {"prompt": "which?", "a": "left", "b": "right", "votes_a": votes[0], "votes_b": votes[1], "rater": "all"}
    pair = recognise(row, "plain")
    assert {pair.chosen, pair.rejected} == {"left", "right"}
    assert pair.chosen == chosen
    complete = {"chosen_complete": True, "rejected_complete": True}
    assert pair.meta == {**complete, "rater": "all", "votes_chosen": votes_chosen, "votes_rejected": votes_rejected}


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"votes_b": 3}, NO_PREFERENCE, "the votes are tied, 3 to 3"),
        ({"votes_a": 0}, FORMAT, "votes_a and votes_b sum to 0: nobody voted"),
        ({"votes_a": -1}, FORMAT, "votes_a is -1.0; votes are finite and at least 0"),
        ({"votes_a": float("nan")}, FORMAT, "votes_a is nan"),
        ({"votes_a": "many"}, FORMAT, "votes_a is 'many', not a number"),
        ({"votes_b": None}, EMPTY, "votes_b is missing"),
        ({"a": None}, EMPTY, "chosen is missing"),
    ],
)
def test_votes_that_say_nothing_are_told_apart(changes, kind, says):
    row = {"prompt": "which?", "a": "left", "b": "right", "votes_a": 3, "votes_b": 0} | changes
    with pytest.raises(UnusableRow, match=says.replace(".", r"\.")) as caught:
        recognise(row, "plain")
    assert caught.value.kind == kind
