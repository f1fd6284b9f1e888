import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from quantkit.errors import CheckpointError, RecipeError
from quantkit.training_state import (
    Position,
    StateStore,
    copy_weights,
    fingerprint_of,
    has_state,
    load_weights,
)

POSITION = Position(
    epoch=1,
    batch=2,
    step=5,
    loss_sum=0.1 + 0.2,
    labels=7,
    seconds=3.5,
    best_rank=0.75,
    best_epoch=1,
    history=({"epoch": 1.0, "train_loss": 0.7},),
    curve=({"step": 1.0, "loss": 1 / 3, "lr": 1e-5},),
)


def make_store(folder: Path | None, fingerprint: str = "a", *, writes: bool = True) -> StateStore:
    """A model with a tied weight and a buffer, and an optimizer that has made a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return StateStore(folder, fingerprint, model, optimizer, writes)


def make_step(store: StateStore) -> None:
    store.model(torch.rand(4, 3)).square().sum().backward()
    store.optimizer.step()
    store.optimizer.zero_grad()


@pytest.fixture
def saved(tmp_path: Path) -> StateStore:
    store = make_store(tmp_path / "state")
    make_step(store)
    store.save(POSITION, {"0.weight": torch.eye(3)})
    return store


def test_everything_comes_back(saved: StateStore) -> None:
    drawn = torch.rand(5)
    other = make_store(saved.folder)
    position, best = other.load()
    assert position == POSITION
    assert best.keys() == {"0.weight"}
    assert torch.equal(best["0.weight"], torch.eye(3))
    assert torch.equal(torch.rand(5), drawn)
    for (name, ours), theirs in zip(
        saved.model.state_dict().items(), other.model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    torch.manual_seed(1)
    make_step(saved)
    torch.manual_seed(1)
    make_step(other)
    for ours, theirs in zip(saved.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_run_without_a_folder_saves_nothing(tmp_path: Path) -> None:
    store = make_store(None)
    store.save(POSITION, {})
    assert store.load() == (Position(), {})
    assert make_store(tmp_path / "state").load() == (Position(), {})
    assert list(tmp_path.iterdir()) == []


def test_of_several_processes_one_writes_and_all_load(saved: StateStore, tmp_path: Path) -> None:
    other = make_store(saved.folder, writes=False)
    other.save(Position(), {})
    assert other.load()[0] == POSITION
    make_store(tmp_path / "none", writes=False).save(POSITION, {})
    assert not (tmp_path / "none").exists()


def test_a_step_and_an_epoch_move_the_position_on() -> None:
    position = POSITION.after_step(2.5, 4, 0.5)
    assert (position.batch, position.step, position.labels) == (3, 6, 11)
    assert (position.loss_sum, position.seconds) == (0.1 + 0.2 + 2.5, 4.0)
    position = position.with_point(0.5, 1e-3)
    assert position.curve == (*POSITION.curve, {"step": 6.0, "loss": 0.5, "lr": 1e-3})
    entry = {"epoch": 2.0}
    worse, better = position.after_epoch(0.75, entry), position.after_epoch(0.8, entry)
    assert (worse.best_rank, worse.best_epoch) == (0.75, 1)
    assert (better.best_rank, better.best_epoch) == (0.8, 2)
    # The counts of the epoch begin anew; those of the run go on.
    begun = (worse.epoch, worse.batch, worse.step, worse.loss_sum, worse.labels, worse.seconds)
    assert begun == (2, 0, 6, 0.0, 0, 0.0)
    assert (worse.history, worse.curve) == ((*POSITION.history, entry), position.curve)


def test_the_first_epoch_is_the_best_whatever_its_score() -> None:
    assert Position().after_epoch(-3.0, {}).best_epoch == 1


def test_a_state_of_another_run_is_refused_and_changes_nothing(saved: StateStore) -> None:
    other = make_store(saved.folder, "b")
    before = copy_weights(other.model)
    with pytest.raises(RecipeError, match="Resume it with what it began with, or pass --overwrite"):
        other.load()
    assert all(torch.equal(value, before[name]) for name, value in other.model.named_parameters())


def test_the_fingerprint_depends_on_the_settings_and_on_the_shapes() -> None:
    model, other = nn.Linear(2, 3), nn.Linear(3, 2)
    assert fingerprint_of(model, {"lr": 1}) == fingerprint_of(nn.Linear(2, 3), {"lr": 1})
    assert fingerprint_of(model, {"lr": 1}) != fingerprint_of(model, {"lr": 2})
    assert fingerprint_of(model, {"lr": 1}) != fingerprint_of(other, {"lr": 1})


def break_json(folder: Path) -> None:
    (folder / "state.json").write_text("{")


def spoil_position(folder: Path) -> None:
    written = json.loads((folder / "state.json").read_text())
    written["position"]["step"] = "many"
    (folder / "state.json").write_text(json.dumps(written))


def cut_tensors(folder: Path) -> None:
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lose_tensors(folder: Path) -> None:
    (folder / "state.safetensors").unlink()


def lose_json(folder: Path) -> None:
    (folder / "state.json").unlink()


def rename_a_tensor(folder: Path) -> None:
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes().replace(b"model.0.bias", b"model.0.bios"))


@pytest.mark.parametrize(
    "damage", [break_json, spoil_position, cut_tensors, lose_tensors, lose_json, rename_a_tensor]
)
def test_a_damaged_state_is_refused(damage: Callable[[Path], None], saved: StateStore) -> None:
    assert saved.folder is not None
    damage(saved.folder)
    with pytest.raises(CheckpointError) as caught:
        saved.load()
    assert str(caught.value).startswith(f"The training state in {saved.folder} is damaged (")
    assert str(caught.value).endswith("). Pass --overwrite to start over.")


def test_a_state_that_cannot_be_written_leaves_the_last_good_one(
    saved: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("quantkit.training_state.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        saved.save(Position(), {})
    assert saved.load()[0] == POSITION


def test_a_kill_while_saving_loses_nothing_and_leaves_nothing(saved: StateStore) -> None:
    folder = saved.folder
    assert folder is not None
    # As a kill between the two renames leaves it: the old state retired, the new one unnamed.
    folder.rename(folder.with_name(".state.partial-abc.old"))
    folder.with_name(".state.partial-abc").mkdir()
    assert has_state(folder)
    assert saved.load()[0] == POSITION
    saved.save(POSITION, {})
    assert list(folder.parent.iterdir()) == [folder]
    assert {path.name for path in folder.iterdir()} == {"state.json", "state.safetensors"}


def test_two_processes_may_put_back_what_a_kill_left(
    saved: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved.folder
    assert folder is not None
    retired = folder.with_name(".state.partial-abc.old")
    folder.rename(retired)
    original = Path.replace

    def overtaken(self: Path, target: Path) -> Path:
        original(self, target)  # the other process
        return original(self, target)

    monkeypatch.setattr(Path, "replace", overtaken)
    assert has_state(folder)
    assert saved.load()[0] == POSITION


def test_weights_of_another_shape_are_refused() -> None:
    model = nn.Linear(2, 3)
    weights = copy_weights(model)
    with pytest.raises(ValueError, match="bias is"):
        load_weights(model, weights | {"bias": torch.zeros(1)})  # would broadcast
    with torch.no_grad():
        model.bias.add_(1)
    assert not torch.equal(weights["bias"], model.bias)  # a copy, not a view
    load_weights(model, weights)
    assert torch.equal(weights["bias"], model.bias)
