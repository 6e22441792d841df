import pytest

from manifests.manifest import load_manifest
from pipeline.config import Profile, load_profile
from pipeline.units import compare, describe, differences, fingerprints
from pipeline.units import units_of as units_of_run


def units_of(profile, **fields):
    return units_of_run(profile, load_manifest("demo").model_copy(update=fields))


@pytest.fixture
def profile():
    return load_profile("embedded")


def changed(profile, **fields):
    return Profile.model_validate(profile.model_dump() | fields)


def without(profile, name):
    return changed(
        profile, experts={key: entry for key, entry in profile.model_dump()["experts"].items() if key != name}
    )


def test_the_same_profile_changes_nothing(profile):
    changes = compare(describe(units_of(profile)), units_of(profile))
    assert (changes.stale, changes.grown) == ((), ())


def test_a_new_expert_makes_what_reads_it_grow_and_nothing_stale(profile):
    changes = compare(describe(units_of(without(profile, "text"))), units_of(profile))
    assert changes.stale == ()
    assert changes.grown == ("discriminator", "scores", "labels")


def test_an_expert_taken_out_is_stale_with_all_that_read_it(profile):
    changes = compare(describe(units_of(profile)), units_of(without(profile, "text")))
    assert changes.stale == ("candidates/text", "discriminator", "scores", "labels")


def test_a_changed_simplifier_makes_everything_stale(profile):
    changes = compare(describe(units_of(profile)), units_of(changed(profile, instruct={"simplifier": "verbatim"})))
    assert changes.stale == tuple(units_of(profile))


def test_a_changed_weight_rule_leaves_samples_experts_and_discriminator(profile):
    changes = compare(describe(units_of(profile)), units_of(changed(profile, weight={"rule": "identity"})))
    assert changes.stale == ("scores", "labels")


def test_another_image_root_makes_everything_stale(profile):
    changes = compare(describe(units_of(profile, images="/a")), units_of(profile, images="/b"))
    assert changes.stale == tuple(units_of(profile))


def test_an_ivm_is_its_checkpoints_weights_wherever_they_lie_and_run(profile):
    def learned(version="a", lies="/a", **fields):
        places = {name: {"checkpoint": lies, "version": version} for name in ("sam", "condition")}
        return units_of(changed(profile, discriminator={"model": "ivm", **places, **fields}))

    derived = ("discriminator", "scores", "labels")
    assert compare(describe(units_of(profile)), learned()).stale == derived
    assert compare(describe(learned()), learned(lies="/b", device="cpu", encode_batch=8)).stale == ()
    assert compare(describe(learned()), learned("b")).stale == derived
    assert compare(describe(learned()), learned(objective="pn")).stale == derived
    given = {"discriminator_from": {"run": "runs/demo", "id": "ivm@1"}}
    assert compare(describe(units_of(changed(profile, **given))), learned()).stale == derived


def test_a_given_discriminator_makes_what_reads_it_stale_wherever_it_was_copied_from(profile):
    def given(run, id):
        return units_of(changed(profile, discriminator_from={"run": run, "id": id}))

    first = given("runs/demo", "small@1")
    derived = ("discriminator", "scores", "labels")
    assert compare(describe(units_of(profile)), first).stale == derived
    assert compare(describe(first), given("runs/demo", "small@2")).stale == derived
    assert compare(describe(first), units_of(profile)).stale == derived
    assert compare(describe(first), given("s3://bucket/demo", "small@1")).stale == ()


def test_a_new_expert_leaves_a_given_discriminator_as_it_is(profile):
    given = {"discriminator_from": {"run": "runs/demo", "id": "small@1"}}
    changes = compare(
        describe(units_of(changed(without(profile, "text"), **given))), units_of(changed(profile, **given))
    )
    assert (changes.stale, changes.grown) == ((), ("scores", "labels"))


def test_more_workers_change_nothing(profile):
    more = changed(profile, pools={"samples": {"workers": 4}})
    assert fingerprints(units_of(more)) == fingerprints(units_of(profile))


def test_fingerprints_follow_what_a_unit_reads(profile):
    before = fingerprints(units_of(profile))
    after = fingerprints(units_of(changed(profile, instruct={"simplifier": "verbatim"})))
    assert all(before[name] != after[name] for name in before)


def test_differences_name_the_leaf_and_both_values():
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}
    assert differences(old, new) == ["a.c: 2 → 5", "d: 3 → absent", "e: absent → 4"]
