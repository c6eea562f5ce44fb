"""A draft finds its way back to the text, whatever departs between them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.whisper.rows import Draft, Row

EOT = 99


def play(draft: list[int], text: list[int], limit: int = 1000) -> Row:
    """Decode with a model that always says `text`: after each token of an offer it answers with the truth's next."""
    row = Row((50, 51), limit, Draft(draft), eot=EOT)
    truth = [50, 51, *text, EOT]
    while not row.done:
        window = (row.tokens + row.offer())[row.cached :]
        ahead = truth[row.cached + 1 :] + [EOT] * len(window)
        agreed = 0
        while agreed < len(window) - 1 and window[agreed + 1] == ahead[agreed]:
            agreed += 1
        # Behind the first wrong token a model says anything at all.
        chosen = ahead[: agreed + 1] + [7] * (len(window) - agreed - 1)
        row.take(len(row.offer()), agreed, chosen, [-1.0] * len(window))
    return row


tokens = st.lists(st.integers(0, 20), max_size=30)


@given(tokens, tokens)
def test_any_draft_comes_out_as_the_text(draft: list[int], text: list[int]) -> None:
    row = play(draft, text)
    assert row.text == text
    assert len(row.log_probs) == len(text) + 1
    assert row.passes <= len(text) + 1


@given(tokens, st.integers(1, 10), st.booleans())
def test_the_limit_counts_the_end_of_text(text: list[int], limit: int, drafted: bool) -> None:
    row = play(text if drafted else [], text, limit)
    assert row.text == text[:limit]
    assert len(row.log_probs) == min(limit, len(text) + 1)


@pytest.mark.parametrize(
    ("draft", "passes"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], 1),  # right
        ([1, 2, 9, 4, 5, 6, 7, 8], 2),  # another token in place of one
        ([1, 2, 9, 3, 4, 5, 6, 7, 8], 2),  # one too many
        ([1, 2, 4, 5, 6, 7, 8], 3),  # one missing: the first guess is wrong
        ([1, 2, 9, 10, 11, 4, 5, 6, 7, 8], 3),  # three in place of one
        ([9, 1, 2, 3, 4, 5, 6, 7, 8], 2),  # wrong from the start
        ([], 9),
    ],
)
def test_passes_for_one_departure(draft: list[int], passes: int) -> None:
    assert play(draft, [1, 2, 3, 4, 5, 6, 7, 8]).passes == passes


def test_a_repeated_token_is_found_by_the_one_before_it() -> None:
    # "4" occurs twice within reach; "3 4" once.
    draft = [1, 9, 4, 8, 3, 4, 5, 6, 7]
    text = [1, 3, 4, 5, 6, 7]
    assert play(draft, text).passes == 2


def test_accepted_is_of_the_first_pass_alone() -> None:
    assert play([1, 2, 9, 4, 5], [1, 2, 3, 4, 5]).accepted == 2
    assert play([1, 2, 3], [1, 2, 3, 4, 5]).accepted == 3
    assert play([], [1, 2]).accepted == 0


def test_nothing_is_offered_once_the_draft_is_lost() -> None:
    row = Row((50,), 100, Draft([1, 2, 3]), eot=EOT)
    for token in (10, 11):
        row.take(len(row.offer()), 0, [token, *[7] * len(row.offer())], [-1.0] * 4)
    assert row.offer() == []
