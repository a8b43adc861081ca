"""Labels for data that have none: texts clustered into topics by TF-IDF and k-means (scikit-learn)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from fedmed_cli.errors import InputError

if TYPE_CHECKING:
    from fedmed_cli.data.batches import Batch

DEFAULT_TOPICS = 10
SAMPLE_ROWS = 20_000
_FEATURES = 2**14


def fit(batches: Iterable[Batch], num_topics: int, seed: int) -> Callable[[Batch], list[str]]:
    """Learn topics from the first 20,000 examples; the result names the topic of each example of a batch.

    Only one thread works and every draw comes from `seed`, so that the same data give the same topics.
    InputError where there are fewer examples than topics.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from threadpoolctl import threadpool_limits

    texts: list[str] = []
    for batch in batches:
        texts += _join_texts(batch)
        if len(texts) >= SAMPLE_ROWS:
            break
    texts = texts[:SAMPLE_ROWS]
    if len(texts) < num_topics:
        raise InputError(f"{len(texts)} examples are too few for {num_topics} topics")
    counts: Any = HashingVectorizer(n_features=_FEATURES, alternate_sign=False, norm=None, stop_words="english")
    weights: Any = TfidfTransformer(sublinear_tf=True)
    means: Any = MiniBatchKMeans(num_topics, random_state=seed % 2**32, n_init=3, batch_size=4096)
    with threadpool_limits(1):
        means.fit(weights.fit_transform(counts.transform(texts)))

    def topics(batch: Batch) -> list[str]:
        with threadpool_limits(1):
            numbers = means.predict(weights.transform(counts.transform(_join_texts(batch))))
        return [f"topic-{number + 1:02d}" for number in numbers.tolist()]

    return topics


def _join_texts(batch: Batch) -> list[str]:
    return [f"{question} {answer}" for question, answer in zip(batch.questions, batch.answers, strict=True)]
