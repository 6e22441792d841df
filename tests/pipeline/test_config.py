import pytest
import yaml

from pipeline.config import Profile, load_expert, load_profile, pin_experts
from pipeline.errors import InputError
from pipeline.yaml_files import shipped

SAM, CLIP = {"checkpoint": "facebook/sam-vit-base"}, {"checkpoint": "openai/clip-vit-base-patch32"}
IVM = {"model": "ivm", "sam": SAM, "condition": CLIP}


def profile(tmp_path, **fields):
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump({"experts": {"shapes": {}}} | fields))
    return str(path)


@pytest.mark.parametrize("name", shipped("profile"))
def test_shipped_profiles_load(name, monkeypatch):
    monkeypatch.setenv("LLM_BASE_URL", "http://localhost:8000/v1")
    monkeypatch.setenv("LLM_MODEL", "some-model")
    assert load_profile(name).experts


def test_a_variable_that_is_not_set_is_bad_input(monkeypatch):
    monkeypatch.delenv("LLM_BASE_URL", raising=False)
    with pytest.raises(InputError, match=r"llm.yaml: field 'instruct.llm.base_url' needs .* LLM_BASE_URL"):
        load_profile("llm")


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (0.5, "auto")])
def test_an_expert_whose_pool_has_no_gpu_takes_none(tmp_path, gpus, device):
    entry = {"expert": "shapes", "pool": {"gpus": gpus}}
    assert load_expert(load_profile(profile(tmp_path, experts={"shapes": entry})), "shapes").placement.device == device


def test_an_entry_is_the_expert_of_its_own_name_unless_it_says_another(tmp_path):
    loaded = load_profile(profile(tmp_path, experts={"shapes": {}, "again": {"expert": "shapes"}}))
    assert {name: entry.expert for name, entry in loaded.experts.items()} == {"shapes": "shapes", "again": "shapes"}


def test_the_discriminator_is_of_the_model_that_the_profile_names(tmp_path):
    for fields, model in (({}, "small"), ({"epochs": 3}, "small"), (IVM | {"folds": 3, "epochs": 3}, "ivm")):
        loaded = load_profile(profile(tmp_path, discriminator=fields))
        assert loaded.discriminator.model == model
        assert loaded.discriminator.objective == "graded"
        again = Profile.model_validate_json(loaded.model_dump_json())
        assert again == loaded and type(again.discriminator) is type(loaded.discriminator)


def test_a_checkpoint_that_is_not_there_names_the_field(tmp_path):
    loaded = load_profile(profile(tmp_path, discriminator=IVM | {"sam": {"checkpoint": str(tmp_path / "gone")}}))
    with pytest.raises(InputError, match=r"^discriminator\.sam: .*gone does not exist"):
        pin_experts(loaded)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shard_pair": 3}, "unknown key 'shard_pair'"),
        ({"shard_pairs": 0}, "field 'shard_pairs'"),
        ({"shard_pairs": "many"}, "field 'shard_pairs'"),
        ({"experts": {}}, "field 'experts'"),
        ({"experts": {"shapes": {"pool": {"worker": 1}}}}, "unknown key 'experts.shapes.pool.worker'"),
        ({"experts": {"shapes": {"pool": {"gpus": 1.5}}}}, "field 'experts.shapes.pool.gpus'"),
        ({"experts": {"shapes": {"pool": {"workers": 3, "max_workers": 2}}}}, "max_workers 2 is below workers 3"),
        ({"experts": {"shapes": {"timeout_s": 0}}}, "field 'experts.shapes.timeout_s'"),
        ({"experts": {"nosuch": {}}}, "no expert 'nosuch'"),
        ({"experts": {"human": {"expert": "shapes"}}}, "'human' means something else"),
        ({"experts": {"a/b": {"expert": "shapes"}}}, "folder name"),
        ({"experts": {"shapes": {"options": {"nosuch": 1}}}}, "unknown key 'experts.shapes.options.nosuch'"),
        ({"instruct": {"simplifier": "magic"}}, "field 'instruct.simplifier'"),
        ({"weight": {"rule": "magic"}}, "field 'weight.rule'"),
        ({"discriminator": {"folds": 1}}, "field 'discriminator.folds'"),
        ({"discriminator": {"model": "big"}}, "model 'big': give small or ivm"),
        ({"discriminator": {"model": "ivm", "condition": CLIP}}, "field 'discriminator.sam'"),
        ({"discriminator": IVM | {"lora": 1}}, "unknown key 'discriminator.lora'"),
        ({"discriminator": IVM | {"objective": "best"}}, "field 'discriminator.objective'"),
        ({"discriminator": {"sam": SAM}}, "unknown key 'discriminator.sam'"),
        (
            {"discriminator": IVM | {"condition": CLIP | {"version": "x"}}},
            "unknown key 'discriminator.condition.version'",
        ),
    ],
)
def test_a_bad_profile_is_one_line_with_file_and_field(tmp_path, fields, words):
    path = profile(tmp_path, **fields)
    with pytest.raises(InputError) as caught:
        load_profile(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{broken", "- a list", "", "\0"])
def test_a_file_that_is_no_profile_is_one_line(tmp_path, content):
    path = tmp_path / "p.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        load_profile(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_profile_names_the_shipped_ones():
    with pytest.raises(InputError, match="embedded"):
        load_profile("nosuch")


def test_a_missing_profile_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        load_profile(str(tmp_path / "none.yaml"))
