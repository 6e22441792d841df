import json

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from experts.base import DeviceLost, OutOfMemory
from experts.model import MicroBatches, ModelOptions, device_errors, load_pretrained, load_processor, pick_device
from pipeline.errors import InputError
from tests.tiny.tokenizers import clip_tokenizer

CPU = torch.device("cpu")


class Model:
    """Answers each number with its square, and fails on batches of more than `fits`."""

    def __init__(self, fits, error=torch.OutOfMemoryError):
        self.fits, self.error, self.sizes = fits, error, []

    def __call__(self, batch):
        self.sizes.append(len(batch))
        if len(batch) > self.fits:
            raise self.error("CUDA out of memory. Tried to allocate 3.00 GiB")
        return [number**2 for number in batch]


def test_batches_are_of_the_size_given_and_keep_the_order():
    model = Model(fits=100)
    assert MicroBatches(4).map(model, range(10)) == [number**2 for number in range(10)]
    assert model.sizes == [4, 4, 2]


def test_out_of_memory_halves_the_batch_for_good_and_goes_on():
    model, batches = Model(fits=2), MicroBatches(8)
    assert batches.map(model, range(5)) == [0, 1, 4, 9, 16]
    assert model.sizes == [5, 2, 2, 1]
    assert batches.map(model, range(3)) == [0, 1, 4]
    assert model.sizes[4:] == [2, 1]


def test_what_does_not_fit_alone_is_out_of_memory():
    model = Model(fits=0)
    with pytest.raises(OutOfMemory):
        MicroBatches(4).map(model, range(4))
    assert model.sizes == [4, 2, 1]


def test_another_error_is_not_taken_for_a_lack_of_memory():
    with pytest.raises(ZeroDivisionError):
        MicroBatches(4).map(Model(fits=0, error=ZeroDivisionError), range(4))


def test_a_model_that_loses_an_item_is_an_error():
    with pytest.raises(ValueError, match="1 of 2"):
        MicroBatches(2).map(lambda batch: batch[:1], [1, 2])


def accelerator_error(code):
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")
    error.error_code = code
    return error


def test_a_broken_device_ends_the_worker_and_no_handler_of_exceptions_stops_it():
    with pytest.raises(DeviceLost, match="illegal memory access"), device_errors(CPU):
        raise accelerator_error(700)
    assert not issubclass(DeviceLost, Exception)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), accelerator_error(2)])
def test_a_lack_of_memory_is_one_whatever_the_driver_calls_it(error):
    with pytest.raises(OutOfMemory), device_errors(CPU):
        raise error


def test_an_error_of_the_model_stays_what_it_is():
    with pytest.raises(RuntimeError, match="shapes"), device_errors(CPU):
        raise RuntimeError("shapes cannot be multiplied")


def test_a_device_that_is_not_there_is_an_input_error():
    if torch.cuda.is_available():
        assert pick_device("auto").type == "cuda"
    else:
        assert pick_device("auto") == CPU
        with pytest.raises(InputError, match="device cuda"):
            pick_device("cuda")


@pytest.fixture
def saved(tmp_path):
    config = CLIPTextConfig(vocab_size=110, hidden_size=16, intermediate_size=16, num_hidden_layers=2)
    CLIPTextModel(config).save_pretrained(tmp_path)
    clip_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_saved_model_loads_for_inference_in_the_type_asked(saved):
    options = ModelOptions(checkpoint=str(saved), dtype="bfloat16")
    model = load_pretrained(CLIPTextModel, options, CPU)
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert load_processor(CLIPTokenizer, options)("a cup")["input_ids"]


def test_weights_that_a_checkpoint_lacks_are_not_made_up(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"lacks \d+ weights, as .*layers\.2"):
        load_pretrained(CLIPTextModel, ModelOptions(checkpoint=str(saved)), CPU)


def test_weights_of_another_size_are_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    with pytest.raises(InputError) as caught:
        load_pretrained(CLIPTextModel, ModelOptions(checkpoint=str(saved)), CPU)
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "odd",
    [
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"attn_implementation": "flash_attention_2"},
        {"attn_implementation": "someone/kernel"},
        {"num_hidden_layers": "two"},
    ],
)
def test_a_config_that_wants_what_is_not_installed_or_makes_no_sense_is_an_input_error(saved, odd):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | odd))
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        load_pretrained(CLIPTextModel, ModelOptions(checkpoint=str(saved)), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [AutoConfig, AutoTokenizer, AutoModel])
def test_code_that_comes_with_a_checkpoint_is_neither_run_nor_asked_about(saved, monkeypatch, kind):
    def asked(prompt):
        pytest.fail(f"the user was asked: {prompt}")

    monkeypatch.setattr("builtins.input", asked)
    code = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]}
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": code}))
    settings = json.loads((saved / "tokenizer_config.json").read_text()) | {"auto_map": code}
    settings.pop("tokenizer_class")
    (saved / "tokenizer_config.json").write_text(json.dumps(settings))
    (saved / "evil.py").write_text(f"open({str(saved / 'ran')!r}, 'w')\n")
    options = ModelOptions(checkpoint=str(saved))
    with pytest.raises(InputError, match="cannot be loaded"):
        load_pretrained(kind, options, CPU) if kind is AutoModel else load_processor(kind, options)
    assert not (saved / "ran").exists()


def test_a_missing_tokenizer_is_refused(saved):
    for file in saved.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="vocabulary is missing"):
        load_processor(CLIPTokenizer, ModelOptions(checkpoint=str(saved)))


def test_where_weights_lie_is_no_part_of_what_an_expert_is():
    here, there = ModelOptions(checkpoint="/a"), ModelOptions(checkpoint="/b", revision="x")
    assert here.identity() == there.identity() == {"dtype": "float32"}
