from __future__ import annotations

from pathlib import Path

import torch

from common.features import FeatureStore, file_key
from common.features.store import content_key
from tests.features.helpers import KEY, tiles


def test_content_key_is_of_elements_shape_dtype_and_encoder():
    image, organ = tiles(), tiles() > 0.5
    base = content_key("f", image, organ)
    assert base == content_key("f", image.clone(memory_format=torch.preserve_format), organ)
    changed = image.clone()
    changed[3, 0, 4, 4] = torch.nextafter(changed[3, 0, 4, 4], torch.tensor(2.0))
    others = [
        content_key("g", image, organ),
        content_key("f", changed, organ),
        content_key("f", image, ~organ),
        content_key("f", image),
        content_key("f", image.transpose(2, 3), organ),
        content_key("f", image.flatten(), organ),
        content_key("f", image.double(), organ),
        content_key("f", torch.zeros(4), torch.zeros(2)),
        content_key("f", torch.zeros(2), torch.zeros(4)),
        content_key("f", torch.zeros(4, dtype=torch.int32), torch.zeros(2)),
    ]
    assert len({base, *others}) == 1 + len(others)


def test_file_key_is_of_bytes_order_recipe_and_encoder_but_not_of_names(tmp_path):
    def file(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    a, b, same = file("a", b"abc" * 10**6), file("b", b"x"), file("c", b"abc" * 10**6)
    base = file_key("f", [a, b], "recipe")
    assert base == file_key("f", [str(same), b], "recipe")
    others = [
        file_key("f", [b, a], "recipe"),
        file_key("f", [a], "recipe"),
        file_key("f", [a, b], "recipe 2"),
        file_key("g", [a, b], "recipe"),
        file_key("f", [file("d", b"abc" * 10**6 + b"a"), b], "recipe"),
        file_key("f", [file("e", b"abc" * (10**6 - 1) + b"abd"), b], "recipe"),
    ]
    assert len({base, *others}) == 1 + len(others)


def test_an_alias_leads_to_the_content(tmp_path):
    store = FeatureStore(tmp_path)
    assert store.resolve("12" + KEY[2:]) is None
    store.set_alias("12" + KEY[2:], KEY)
    assert FeatureStore(tmp_path).resolve("12" + KEY[2:]) == KEY
    assert store.get(store.resolve("12" + KEY[2:])) is None  # the features are still to come
