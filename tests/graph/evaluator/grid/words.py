"""Strings."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid.rows import N, S, V, row


def cases() -> Iterator[Case]:
    for action, stop, sensitive in product((None, "LOWER", "UPPER", "NONE"), (None, ["monday", "Ä"]), (0, 1)):
        forms = {"case_change_action": action, "stopwords": stop, "is_case_sensitive": sensitive, "locale": "C"}
        yield row("StringNormalizer", S("monday", "Tuesday", "MONDAY", "x"), **forms)
        yield row("StringNormalizer", S(["monday", "Tuesday", "MONDAY", "x"]), **forms)
    yield row("StringNormalizer", S("monday", "monday"), stopwords=["monday"], is_case_sensitive=1)
    yield row("StringConcat", S("a", "b"), S("c", ""))
    yield row("StringConcat", S(["a"], ["b"]), S("c", "d"))
    for delimiter, most in product((None, "", ",", "ab"), (None, 0, 1, 2)):
        words = S("a,b,,c", "  x  y ", "", "abcabd") if delimiter else S("a b  c", "  x  y ", "", "one")
        yield row("StringSplit", words, delimiter=delimiter, maxsplit=most or None, outputs=2)
    for pattern in (r"[a-z]+", r"\w+@\w+\.com", r".*", r"(?i)ab|c"):
        yield row("RegexFullMatch", S(["abc", "AB", ""], ["a@b.com", "c", "a b"]), pattern=pattern)
    counts, indexes = [0, 4], [0, 1, 2, 3, 4, 5, 6]
    pool = [2, 3, 5, 4, 5, 6, 7, 8, 6, 7]
    for mode, skip, least, most in product(("TF", "IDF", "TFIDF"), (0, 1, 5), (1, 2), (1, 2)):
        if least > most:
            continue
        forms = {"min_gram_length": least, "max_gram_length": most, "max_skip_count": skip, "mode": mode}
        forms |= {"ngram_counts": counts, "ngram_indexes": indexes, "pool_int64s": pool}
        weights = [0.5, 1.5, 2.0, 0.1, 0.2, 3.0, 4.0] if mode != "TF" else None
        yield row("TfIdfVectorizer", V(1, 1, 3, 3, 3, 7, 8, 6, 7, 5, 6, 5, dtype=np.int64), weights=weights, **forms)
        yield row("TfIdfVectorizer", N(2, 9, 2, 6, dtype=np.int32), weights=weights, **forms)
    forms = {"min_gram_length": 1, "max_gram_length": 2, "max_skip_count": 0, "mode": "TF"}
    yield row(
        "TfIdfVectorizer",
        S("a", "b", "a", "c"),
        ngram_counts=[0, 2],
        ngram_indexes=[0, 1, 2],
        pool_strings=["a", "b", "b", "a"],
        **forms,
    )
