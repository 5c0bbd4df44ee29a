"""What was derived from raw weights is found as long as they are the same tensors with the same content, and not a moment longer."""

import gc
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompile.weights.derived import Derived
from qcompile.weights.freshness import Snapshot


def raw() -> list[Tensor]:
    return [torch.arange(256, dtype=torch.int32), torch.linspace(1, 2, 64)]


def in_place(weights: list[Tensor]) -> None:
    weights[1].mul_(2)


def behind_the_counter(weights: list[Tensor]) -> None:
    weights[0].data.zero_()


def through_numpy(weights: list[Tensor]) -> None:
    weights[1].numpy()[:] = 0


def another_storage(weights: list[Tensor]) -> None:
    weights[0].data = torch.arange(256, dtype=torch.int32)


def set_to_another(weights: list[Tensor]) -> None:
    weights[0].set_(torch.arange(256, dtype=torch.int32).untyped_storage())


def swapped(weights: list[Tensor]) -> None:
    torch.utils.swap_tensors(weights[0], torch.zeros(256, dtype=torch.int32))


def resized(weights: list[Tensor]) -> None:
    storage = weights[0].untyped_storage()
    storage.resize_(1 << 20)
    storage.resize_(1024)


CHANGES: list[Callable[[list[Tensor]], None]] = [
    in_place,
    behind_the_counter,
    through_numpy,
    another_storage,
    set_to_another,
    swapped,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_noticed(change: Callable[[list[Tensor]], None]) -> None:
    weights, derived = raw(), Derived[str]()
    snapshot = Snapshot(weights)
    derived.put(weights, "value", "key")
    assert derived.get(weights, "key") == "value" and snapshot.unchanged(weights)
    change(weights)
    assert not snapshot.unchanged(weights)
    assert any(snapshot.changed(weights))
    assert derived.get(weights, "key") is None


def test_only_the_weight_that_changed_counts_as_changed() -> None:
    weights = raw()
    snapshot = Snapshot(weights)
    in_place(weights)
    assert snapshot.changed(weights) == [False, True]


def test_what_changed_behind_its_version_counter_gets_a_higher_version() -> None:
    weights = raw()
    snapshot, version = Snapshot(weights), weights[0]._version
    behind_the_counter(weights)
    assert weights[0]._version == version
    assert snapshot.changed(weights) == [True, False]
    assert weights[0]._version == version + 1


def test_memory_that_moved_with_the_same_content_is_asked_again_and_never_read_where_it_was() -> None:
    weights = raw()
    snapshot = Snapshot(weights)
    resized(weights)
    assert snapshot.unchanged(weights) == (not any(snapshot.changed(weights)))


def test_another_set_of_weights_and_another_key_have_values_of_their_own() -> None:
    one, two, derived = raw(), raw(), Derived[int]()
    derived.put(one, 1, "a")
    derived.put(one, 2, "b")
    derived.put(two, 3, "a")
    assert [derived.get(one, "a"), derived.get(one, "b"), derived.get(two, "a"), derived.get(two, "b")] == [1, 2, 3, None]
    assert derived.get(one[:1], "a") is None


def test_a_later_content_takes_the_place_of_an_earlier_one() -> None:
    weights, derived = raw(), Derived[int]()
    for number in range(4):
        derived.put(weights, number)
        in_place(weights)
    assert list(derived.values()) == [3]
    entry = derived.entry(weights)
    assert derived.get(weights) is None and entry is not None and entry.value == 3


def test_a_value_dies_with_any_of_its_weights() -> None:
    weights, derived = raw(), Derived[int]()
    kept = weights[0]
    derived.put(weights, 1)
    del weights
    gc.collect()
    assert not derived.entries and kept.numel() == 256


def test_a_value_dies_when_another_storage_takes_the_weights_place() -> None:
    weights, derived = raw(), Derived[int]()
    derived.put(weights, 1)
    another_storage(weights)
    gc.collect()
    assert not derived.entries


def test_the_end_of_an_earlier_content_does_not_take_the_later_one_along() -> None:
    weights, derived = raw(), Derived[int]()
    before = weights[0].untyped_storage()
    derived.put(weights, 1)
    another_storage(weights)
    derived.put(weights, 2)
    del before
    gc.collect()
    assert derived.get(weights) == 2


def test_nothing_is_held_alive() -> None:
    derived = Derived[list[int]]()
    weights = [nn.Parameter(torch.zeros(4))]
    derived.put(weights, [1])
    torch.utils.swap_tensors(weights[0], nn.Parameter(torch.ones(4)))  # refuses a tensor with a weak reference


def test_releasing_a_weight_changes_nothing() -> None:
    weights, derived = raw(), Derived[int]()
    derived.put(weights, 1, "key")
    derived.put(raw(), 2, "key")  # of weights that are gone
    weights[0].untyped_storage().resize_(0)
    assert derived.get(weights, "key") == 1
    derived.clear()
    assert derived.get(weights, "key") == 1, "it cannot be derived again"


def test_clearing_forgets_what_can_be_derived_again() -> None:
    weights, derived = raw(), Derived[int]()
    derived.put(weights, 1)
    derived.clear()
    assert derived.get(weights) is None and not derived.entries


def test_dropping_forgets_one_value() -> None:
    weights, derived = raw(), Derived[int]()
    derived.put(weights, 1, "a")
    derived.put(weights, 2, "b")
    assert derived.drop(weights, "a") == 1 and derived.drop(weights, "a") is None
    assert derived.get(weights, "b") == 2


def test_a_dead_memory_does_not_matter_to_weights() -> None:
    weights = raw()
    derived = Derived[int]()
    derived.put(weights, 1)
    del derived
    gc.collect()
    in_place(weights)
    del weights


def test_threads_put_get_and_let_weights_die_side_by_side() -> None:
    derived, shared, errors = Derived[int](), raw(), list[BaseException]()

    def work(seed: int) -> None:
        try:
            for number in range(300):
                mine = raw()
                derived.put(mine, number, seed)
                assert derived.get(mine, seed) == number
                derived.put(shared, number, seed)
                assert derived.get(shared, seed) == number
                if number % 50 == 0:
                    list(derived.values())
                    gc.collect()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not errors
    assert len(derived.entries) == 4  # of the shared weights
