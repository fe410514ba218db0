"""The range of texts with a prefix, and how long tags are kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tesazure.store.filters import following
from tesazure.store.tables import stored_tag

texts = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("ab\ud7ff\ue000\U0010ffff"),
    max_size=5,
)


@given(prefix=texts.filter(bool), other=texts, rest=texts)
def test_following_ends_the_range_of_a_prefix(prefix: str, other: str, rest: str) -> None:
    low, high = prefix.encode(), following(prefix).encode()
    for text in (other, prefix + rest):
        within = low <= text.encode() and (not high or text.encode() < high)
        assert within == text.startswith(prefix)


@given(text=texts.map(lambda text: text * 200), other=texts.map(lambda text: text * 200))
def test_stored_tags_are_short_and_different(text: str, other: str) -> None:
    assert len(stored_tag(text).encode()) <= 512
    assert (stored_tag(text) == stored_tag(other)) == (text == other)
