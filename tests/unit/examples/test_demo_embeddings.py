"""Embeddings survive their file, and texts or a model that changed are not mistaken for others."""

import dataclasses

import torch
from retrieval_demo.collection import Collection
from retrieval_demo.embeddings import Embeddings, cache_key, encode

COLLECTION = Collection("toy", ["1", "2"], ["one", "two"], ["q"], ["which?"], {"q": {"1": 1}})


class Encoder:
    """Stands in for a model: a text becomes as many equal tokens as it has letters, and at least one."""

    def encode(self, texts, **_):
        assert [len(text) for text in texts] == sorted(map(len, texts), reverse=True)
        return [torch.full((max(1, len(text)), 2), float(len(text))) for text in texts]


def test_encoding_keeps_the_order_of_the_texts_and_tells_its_progress():
    texts = ["abc", "", "a", "abcdef"] * 20
    told = []
    encoded = encode(Encoder(), texts, is_query=False, advance=told.append)
    assert [tokens[0, 0].item() for tokens in encoded] == [len(text) for text in texts]
    assert sum(told) == len(texts)
    assert len(told) > 1


def test_saved_embeddings_come_back_ragged_and_equal(tmp_path):
    ragged = Embeddings([torch.randn(3, 4)], [torch.randn(5, 4), torch.randn(1, 4)])
    ragged.save(tmp_path / "e.pt")
    back = Embeddings.load(tmp_path / "e.pt")
    assert all(torch.equal(one, other) for one, other in zip(back.documents, ragged.documents, strict=True))
    assert torch.equal(back.queries[0], ragged.queries[0])
    assert [path.name for path in tmp_path.iterdir()] == ["e.pt"]


def test_the_key_depends_on_model_and_texts():
    keys = {
        cache_key(COLLECTION, "model"),
        cache_key(COLLECTION, "other model"),
        cache_key(dataclasses.replace(COLLECTION, documents=["one", "too"]), "model"),
        cache_key(dataclasses.replace(COLLECTION, queries=["which?", "one"], documents=["two"]), "model"),
        cache_key(dataclasses.replace(COLLECTION, documents=["onetwo", ""]), "model"),
    }
    assert len(keys) == 5
    assert cache_key(COLLECTION, "model") in keys
