"""`--model NAME=SOURCE`: parsing, and the written model files."""

from __future__ import annotations

from pathlib import Path

import pytest
from darkroom.catalogue.models import Catalogue
from darkroom.errors import InvalidInput
from darkroom_cli.local.models import ModelSource, own_files


def test_a_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    assert ModelSource.parse("flux=weights") == ModelSource("flux", str(tmp_path / "weights"))


def test_a_hub_id_is_unchanged() -> None:
    assert ModelSource.parse("sd=org/name-1.5") == ModelSource("sd", "org/name-1.5")


@pytest.mark.parametrize("text", ["flux", "flux=", "=org/name", "flux=/no/such/folder", "flux=name", "flux=a/b/c"])
def test_a_source_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="--model"):
        ModelSource.parse(text)


def test_the_model_is_served_from_the_source_instead_of_the_stand_in(tmp_path: Path) -> None:
    stand_ins, own = tmp_path / "stand-ins", tmp_path / "own"
    for folder in (stand_ins, own):
        folder.mkdir()
    (stand_ins / "sd.toml").write_text('extends = "sd"\npool = "local"\nsource = "/x"\nserved_as = "untrained"\n')
    weights = 'weights with "quotes" and\\backslashes'
    own_files(own, [ModelSource("sd", weights)], known=Catalogue.load())
    model = Catalogue.load([stand_ins, own]).get("sd")
    assert (model.source, model.pool, model.served) == (weights, "local", "sd")
    assert model.parameters == Catalogue.load().get("sd").parameters


def test_the_files_of_an_earlier_run_are_deleted(tmp_path: Path) -> None:
    known = Catalogue.load()
    own_files(tmp_path, [ModelSource("sd", "org/name")], known=known)
    own_files(tmp_path, [], known=known)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_model_is_refused_with_the_known_names(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="flux, sd"):
        own_files(tmp_path, [ModelSource("unheard-of", "org/name")], known=Catalogue.load())
