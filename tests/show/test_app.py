"""The app on somebody's own photographs: what is asked is answered, and computed once only."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from objemb_lib.search.objects import photograph
from objemb_lib.show import app
from objemb_lib.show.widgets import ObjectSearch


@pytest.fixture
def photos(real_photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three photographs of COCO, as the folder that the app searches; an empty cache."""
    place = tmp_path / "photos"
    place.mkdir()
    for file in sorted((real_photographs / "coco" / "val2017").glob("*.jpg"))[:3]:
        shutil.copy(file, place)
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(app.PHOTOS, str(place))
    return place


def test_a_photograph_finds_itself_and_the_next_visitor_waits_for_nothing(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = app.gallery()
    assert [Path(file).name for file in gallery.files] == sorted(p.name for p in photos.iterdir())
    first = app.ways(gallery)
    assert [(way.network, way.boxes) for way in first] == [
        ("student", "detected"), ("efficientnet_lite0", "detected"),
    ]  # fmt: skip
    for way in first:
        own = way.query_photograph(photograph(photos / gallery.files[1]))
        best = way.search(own, 0, 1).matches[0]
        assert best.image == 1 and best.score > 0.99  # it was detected in a batch
        assert np.allclose(best.box, own.boxes[0], atol=4) and len(own.boxes) <= app.TOP

    monkeypatch.setattr(app, "own_boxes", lambda *_: pytest.fail("detected once more"))
    monkeypatch.setattr(app.Retriever, "build", lambda *_, **__: pytest.fail("embedded once more"))
    again = ObjectSearch(app.ways(gallery))
    assert again.pictures.error == "" and len(again.pictures.rows[1]["cards"]) == 2
